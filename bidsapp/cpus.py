"""How many CPUs this process may use: the scheduler's allocation, the affinity, the control group's quota."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

#: What SLURM says of a task, in order of preference; both hold for one node.
_SLURM = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")


def available_cpus(environ: Mapping[str, str] | None = None, root: Path = Path("/")) -> int:
    """Count the CPUs this process may use, never the machine's where any of these says less.

    Each of them can be missing or too large on its own: SLURM's variables do not reach into a container
    with a clean environment, SLURM without cgroups does not set the affinity, and ``docker --cpus``
    sets neither but a quota.

    Parameters
    ----------
    environ : mapping, optional
        Environment variables; those of this process by default.
    root : Path
        Where ``proc`` and ``sys`` are.

    Returns
    -------
    int
        The smallest of SLURM's allocation, the affinity and the quota (rounded up); at least 1.
    """
    environ = os.environ if environ is None else environ
    allowed = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    slurm = next((v for v in map(environ.get, _SLURM) if v and v.isdigit() and int(v) > 0), None)
    if slurm:
        allowed.append(int(slurm))
    # A quota of 1.5 CPUs gets two threads: rounded down, a third of it would lie idle.
    allowed += [max(1, -(-quota // period)) for quota, period in _quotas(root)]
    return min(allowed)


def _quotas(root: Path) -> Iterator[tuple[int, int]]:
    """Microseconds of CPU time, and of the period they are for, of every control group around this process.

    A group is held by the quotas of all groups above it too. In a container the group that
    ``/proc/self/cgroup`` names is often not to be seen, and the mounted top is the container's own.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        # hierarchy:controllers:path; no controllers: version 2.
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers:
            top = root / "sys/fs/cgroup"
            for group in _upwards(top, path):
                yield from _pair(_text(group / "cpu.max").split())
        elif "cpu" in controllers.split(","):
            top = root / "sys/fs/cgroup" / controllers
            top = top if top.is_dir() else root / "sys/fs/cgroup/cpu"
            for group in _upwards(top, path):
                names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                yield from _pair([_text(group / name).strip() for name in names])


def _upwards(top: Path, path: str) -> Iterator[Path]:
    """Folders from a group up to the top of its hierarchy."""
    group = PurePosixPath(path.lstrip("/"))
    if ".." not in group.parts:  # a group outside this name space
        for part in (group, *group.parents):
            yield top / part
    else:
        yield top


def _pair(words: list[str]) -> Iterator[tuple[int, int]]:
    """Quota and period, where both are positive numbers ("max" and -1 mean none)."""
    if len(words) == 2 and all(w.isdigit() and int(w) > 0 for w in words):
        yield int(words[0]), int(words[1])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
