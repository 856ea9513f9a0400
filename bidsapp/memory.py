"""How much memory this process may still take: the system's account, and the control groups' limits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from bidsapp.cpus import control_groups, read_small

#: Version 1 says "no limit" with a number near 2**63.
_NO_LIMIT = 1 << 60
_FILES = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that can be taken before the system or a control group (a job, a container) is out of them.

    Parameters
    ----------
    root : Path
        Where ``proc`` and ``sys`` are.

    Returns
    -------
    int or None
        The least of the kernel's MemAvailable and of what every control group around this process
        leaves; None where nothing is known (not on Linux).
    """
    return min([*_of_the_system(root), *_of_groups(root)], default=None)


def resident_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory that this process holds; None where that is not known (not on Linux)."""
    words = read_small(root / "proc/self/statm").split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 and words[1].isdigit() else None


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
            # files that were read count as used, and are given back when memory is short
            yield max(0, int(limit) - int(used) + _page_cache(group))


def _page_cache(group: Path) -> int:
    """Bytes of files that a control group holds and can give back at once."""
    rows = dict(line.split()[:2] for line in read_small(group / "memory.stat").splitlines() if " " in line)
    found = rows.get("total_inactive_file", rows.get("inactive_file", ""))
    return int(found) if found.isdigit() else 0
