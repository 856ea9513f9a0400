"""CPUs and memory that this process may use (scheduler, affinity, control groups), and amounts in words."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

#: Variables with a job's CPUs on this node: SLURM's in order of preference, PBS's, Grid Engine's, LSF's.
_SCHEDULERS = (
    *("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"),
    *("PBS_NCPUS", "NCPUS", "NSLOTS", "LSB_DJOB_NUMPROC"),
)


def available_cpus(environ: Mapping[str, str] | None = None, root: Path = Path("/")) -> int:
    """Count the CPUs this process may use.

    No single source is enough: a scheduler's variables do not reach into a container with a clean
    environment, SLURM without cgroups does not set the affinity, and ``docker --cpus`` sets only a quota.
    Returns the smallest of the scheduler's allocation, the affinity and the quota (rounded up); at least 1.

    Parameters
    ----------
    environ : mapping, optional
        Environment variables; those of this process by default.
    root : Path
        Where ``proc`` and ``sys`` are.
    """
    environ = os.environ if environ is None else environ
    allowed = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    given = (v for v in map(environ.get, _SCHEDULERS) if v and v.isdigit() and int(v) > 0)
    allowed += [int(v) for v in list(given)[:1]]
    # A quota of 1.5 CPUs gets two threads: with one, a third of it would be idle.
    allowed += [max(1, -(-quota // period)) for quota, period in _quotas(root)]
    return min(allowed)


def _quotas(root: Path) -> Iterator[tuple[int, int]]:
    """Microseconds of CPU time per period, and of the period, of every control group around this process."""
    for version, group in control_groups(root, "cpu"):
        if version == 2:
            yield from _pair(read_small(group / "cpu.max").split())
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            yield from _pair([read_small(group / name).strip() for name in names])


def control_groups(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """Give the folders of the control groups around this process, each with its version, 1 or 2.

    The limits of all groups above a group apply to it too. In a container the group that
    ``/proc/self/cgroup`` names is often not visible, and the mounted top is the container's own. ``root`` has
    the folders ``proc`` and ``sys``; ``controller`` is ``cpu`` or ``memory`` (groups of version 2 have all).
    """
    for line in read_small(root / "proc/self/cgroup").splitlines():
        # hierarchy:controllers:path; no controllers: version 2.
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers:
            yield from ((2, group) for group in _upwards(root / "sys/fs/cgroup", path))
        elif controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / controllers
            top = top if top.is_dir() else root / "sys/fs/cgroup" / controller
            yield from ((1, group) for group in _upwards(top, path))


def _upwards(top: Path, path: str) -> Iterator[Path]:
    """Folders from a group up to the top of its hierarchy."""
    group = PurePosixPath(path.lstrip("/"))
    if ".." not in group.parts:  # a group outside this namespace
        for part in (group, *group.parents):
            yield top / part
    else:
        yield top


def _pair(words: list[str]) -> Iterator[tuple[int, int]]:
    """Quota and period, if both are positive numbers ("max" and -1 mean no limit)."""
    if len(words) == 2 and all(w.isdigit() and int(w) > 0 for w in words):
        yield int(words[0]), int(words[1])


def read_small(path: Path) -> str:
    """Read a small file of the kernel; "" if it does not exist."""
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""


#: In version 1, a number near 2**63 means "no limit".
_NO_LIMIT = 1 << 60
_FILES = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes left before the system or a control group (a job, a container) runs out of memory.

    The least of the kernel's MemAvailable and of what every control group around this process leaves; None if
    nothing is known (not on Linux). ``root`` has the folders ``proc`` and ``sys``.
    """
    return min([*_of_the_system(root), *_of_groups(root)], default=None)


def resident_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory that this process holds; None if that is not known (not on Linux)."""
    words = read_small(root / "proc/self/statm").split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 and words[1].isdigit() else None


def peak_memory() -> int:
    """Bytes of memory that this process has held at most since it started."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _of_the_system(root: Path) -> Iterator[int]:
    for line in read_small(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if name == "MemAvailable" and words and words[0].isdigit():
            yield int(words[0]) * 1024


def _of_groups(root: Path) -> Iterator[int]:
    for version, group in control_groups(root, "memory"):
        limit, used = (read_small(group / name).strip() for name in _FILES[version])
        if limit.isdigit() and used.isdigit() and int(limit) < _NO_LIMIT:
            # files that were read count as used, but are released when memory is short
            yield max(0, int(limit) - int(used) + _page_cache(group))


def _page_cache(group: Path) -> int:
    """Bytes of cached files that a control group can release at once."""
    rows = dict(line.split()[:2] for line in read_small(group / "memory.stat").splitlines() if " " in line)
    found = rows.get("total_inactive_file", rows.get("inactive_file", ""))
    return int(found) if found.isdigit() else 0


def as_text(n_bytes: float) -> str:
    """Write an amount of bytes: ``1.5 GB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"


def as_duration(seconds: float | None) -> str:
    """Write a rough time: ``20 s``, ``3 min``, ``1.5 h``, ``12 days``."""
    if seconds is None:
        return "not known"
    for unit, size in (("days", 172_800), ("h", 5_400), ("min", 90)):
        if seconds >= size:
            value = seconds / {"days": 86_400, "h": 3_600, "min": 60}[unit]
            return f"{value:.0f} {unit}" if value >= 10 or unit == "min" else f"{value:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
