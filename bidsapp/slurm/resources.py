"""What a job asks of the cluster: time and memory of the dry run's estimates, with a margin."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from bidsapp.errors import AppError, ExitCode
from bidsapp.planning.estimate import Needs

#: Estimated times may be wrong by a factor of two or more (docs/reference/checks.md), memory by far less.
TIME_MARGIN, MEMORY_MARGIN = 3.0, 1.25
#: Imports, checks of the input and loading the models, which the estimates leave out; minutes.
STARTING = 15
_STEP = 15
#: The group level reads tables and draws a page: minutes and MiB, several times what it takes.
GROUP_TIME, GROUP_MEMORY = 30, 4096
#: Parts of a run (``Needs.seconds``) by the step of a run in shards that does them;
#: the last step, ``gather``, does all others.
STEPS = {"prepare": ("betas", "targets", "ridge", "latents", "stage 1"), "shard": ("stage 2",)}
_TIME = re.compile(r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+|\d+-\d+:\d\d|\d+-\d+:\d\d:\d\d", re.ASCII)


@dataclass(frozen=True)
class Resources:
    """What a task of a job asks for.

    Attributes
    ----------
    time : str
        As sbatch takes it.
    memory : int
        MiB, SLURM's "M".
    cpus : int
    gres : str or None
        Generic resources, ``gpu:1`` for one.
    """

    time: str
    memory: int
    cpus: int
    gres: str | None = None

    @property
    def gpu(self) -> bool:
        """Whether a GPU is asked for."""
        return asks_for_gpu(self.gres)


def asks_for_gpu(gres: str | None) -> bool:
    """Tell whether there is a GPU among generic resources as ``--gres`` takes them."""
    return any(re.match(r"(gres[:/])?gpu(:|$)", part) for part in (gres or "").split(","))


def is_time(text: str) -> bool:
    """Tell whether sbatch takes this as a time limit: minutes, [H:]MM:SS, D-H[:MM[:SS]]."""
    return _TIME.fullmatch(text) is not None


def time_limit(needs: Iterable[Needs], step: str | None = None, shards: int = 1) -> str:
    """Give the time limit of an array's tasks: of the subject that takes longest.

    Parameters
    ----------
    needs : iterable of Needs
        Of each subject.
    step : str or None
        One of :data:`STEPS`, or ``gather``; the whole run by default.
    shards : int
        Into how many tasks the step ``shard`` is split.

    Returns
    -------
    str
        ``TIME_MARGIN`` times the estimate and ``STARTING`` minutes, rounded up to a quarter of an hour,
        as ``D-HH:MM:SS``.

    Raises
    ------
    AppError
        Exit code 64 where the estimate is not known.
    """
    longest = 0.0
    for need in needs:
        parts = [seconds for name, seconds in need.seconds.items() if step in (None, _step_of(name))]
        known = [s for s in parts if s is not None]
        if len(known) < len(parts):
            raise AppError(
                "How long a task takes is not known: these models were not measured on such a device. Give "
                "--time, generously: what a task has made when it is stopped is kept, and the same "
                "submission goes on from there.",
                exit_code=ExitCode.USAGE,
            )
        longest = max(longest, sum(known) * (_largest_share(need, shards) if step == "shard" else 1))
    minutes = math.ceil((TIME_MARGIN * longest / 60 + STARTING) / _STEP) * _STEP
    return as_limit(minutes)


def _largest_share(need: Needs, shards: int) -> float:
    """Give the largest part of stage 2 that a shard gets: whole blocks, one at least."""
    if not need.images or not need.at_once:
        return 1 / shards
    return min(1.0, math.ceil(_blocks(need) / shards) * need.at_once / need.images)


def _blocks(need: Needs) -> int:
    return math.ceil(need.images / max(1, need.at_once))


def most_shards(needs: Iterable[Needs]) -> int:
    """Give how many shards of a subject can have something to do; 0 where it is not known."""
    return max(map(_blocks, needs), default=0)


def _step_of(part: str) -> str:
    return next((step for step, parts in STEPS.items() if part in parts), "gather")


def as_limit(minutes: int) -> str:
    """Write minutes as ``D-HH:MM:SS``."""
    days, rest = divmod(minutes, 24 * 60)
    return f"{days}-{rest // 60:02d}:{rest % 60:02d}:00"


def memory_limit(needs: Iterable[Needs]) -> int:
    """Give the memory of an array's tasks in MiB: the largest estimate with its margin, whole GiB."""
    most = max(need.memory for need in needs)
    return 1024 * math.ceil(MEMORY_MARGIN * most / 1024**3)
