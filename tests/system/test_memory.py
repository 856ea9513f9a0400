"""How much memory is available: the least of what the system and the control groups leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from bidsapp.system.resources import available_memory, resident_memory

GB = 1 << 30


def write(root: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def machine(root: Path, available: int = 16 * GB) -> Path:
    return write(
        root, {"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable: {available // 1024} kB\nBuffers: 1 kB"}
    )


def test_memory_of_the_system(tmp_path):
    assert available_memory(machine(tmp_path)) == 16 * GB


@pytest.mark.parametrize(
    ("limit", "used", "cache", "expected"),
    [
        (8 * GB, 3 * GB, 0, 5 * GB),
        (8 * GB, 3 * GB, GB, 6 * GB),  # files that were read are given back
        (8 * GB, 9 * GB, 0, 0),
        (64 * GB, 0, 0, 16 * GB),
        ("max", 3 * GB, 0, 16 * GB),
        ("nonsense", "", 0, 16 * GB),
    ],
)
def test_a_group_of_version_2(tmp_path, limit, used, cache, expected):
    group = "sys/fs/cgroup/job"
    files = {"proc/self/cgroup": "0::/job", f"{group}/memory.max": limit, f"{group}/memory.current": used}
    files |= {f"{group}/memory.stat": f"anon 5\ninactive_file {cache}"}
    assert available_memory(write(machine(tmp_path), files)) == expected


def test_limits_of_parent_groups_apply(tmp_path):
    files = {"proc/self/cgroup": "0::/job/task"}
    for path, limit in (("job/task", 8 * GB), ("job", 4 * GB), (".", "max")):
        files |= {
            f"sys/fs/cgroup/{path}/memory.max": limit,
            f"sys/fs/cgroup/{path}/memory.current": GB,
        }
    assert available_memory(write(machine(tmp_path), files)) == 3 * GB


@pytest.mark.parametrize("limit", [6 * GB, (1 << 63) - 4096])
def test_a_group_of_version_1(tmp_path, limit):
    group = "sys/fs/cgroup/memory/slurm"
    files = {"proc/self/cgroup": "5:cpu:/other\n4:memory:/slurm\n0::/"}
    files |= {f"{group}/memory.limit_in_bytes": limit, f"{group}/memory.usage_in_bytes": 2 * GB}
    files |= {f"{group}/memory.stat": f"inactive_file 7\ntotal_inactive_file {GB}"}
    expected = 5 * GB if limit == 6 * GB else 16 * GB
    assert available_memory(write(machine(tmp_path), files)) == expected


def test_nothing_is_known_without_proc(tmp_path):
    assert available_memory(tmp_path) is None
    assert resident_memory(tmp_path) is None
    assert available_memory(write(tmp_path, {"proc/meminfo": "MemAvailable: much"})) is None


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="not on Linux")
def test_this_process():
    before = resident_memory()
    block = bytearray(b"x" * (200 << 20))
    grown = resident_memory() - before
    assert 150 << 20 < grown < 250 << 20
    assert len(block) < available_memory() + len(block)
    assert available_memory() > 0
