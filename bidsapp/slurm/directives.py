"""Options of sbatch's that a user adds: which ones the scripts set themselves, and which choose nodes."""

from __future__ import annotations

import re

_TASKS = "a task is one process on one node"
#: Options that would break the scripts or contradict the printed plan, and what to do instead.
_OWN = {
    **dict.fromkeys(
        ("array", "a"), "task numbers correspond to subjects; choose subjects with --participant-label"
    ),
    **dict.fromkeys(("nodes", "N", "ntasks", "n", "ntasks-per-node"), _TASKS),
    **dict.fromkeys(("time", "t"), "give --time instead"),
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), "give --mem instead"),
    **dict.fromkeys(("cpus-per-task", "c", "cpus-per-gpu"), "give --cpus instead"),
    **dict.fromkeys(
        ("gres", "gpus", "G", "gpus-per-node", "gpus-per-task", "gpus-per-socket"),
        "give --gpus or --gres instead, so that the app uses the GPU",
    ),
    **dict.fromkeys(("partition", "p"), "give --partition instead"),
    **dict.fromkeys(("account", "A"), "give --account instead"),
    **dict.fromkeys(("qos", "q"), "give --qos instead"),
    **dict.fromkeys(("job-name", "J"), "give --job-name instead"),
}
_OF_NODES = {"constraint", "C", "prefer", "nodelist", "w", "exclude", "x", "exclusive", "reservation"}


def _name(directive: str) -> str:
    """Name an option: ``constraint`` for ``--constraint=a100``, ``C`` for ``-Ca100``."""
    found = re.match(r"--([^\s=]*)|-(.?)", directive)
    return (found[1] or found[2] or "") if found else ""


def in_place_of(directive: str) -> str | None:
    """State what to do instead of an option that the scripts set themselves; None for any other."""
    return _OWN.get(_name(directive))


def chooses_nodes(directive: str) -> bool:
    """Whether an option restricts a job to some nodes of its partition."""
    return _name(directive) in _OF_NODES
