"""How many CPUs are used by default: what the scheduler, the affinity and the control groups allow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bidsapp.system import resources as cpus
from bidsapp.system.resources import available_cpus


@pytest.fixture
def eight(monkeypatch):
    """A process that may run on eight CPUs."""
    monkeypatch.setattr(cpus.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, 8),
        ({"SLURM_CPUS_PER_TASK": "3"}, 3),
        ({"SLURM_CPUS_PER_TASK": "3", "SLURM_CPUS_ON_NODE": "6"}, 3),
        ({"SLURM_CPUS_ON_NODE": "6"}, 6),
        ({"SLURM_CPUS_PER_TASK": "64"}, 8),  # bound to fewer than were asked for
        ({"SLURM_CPUS_PER_TASK": "many"}, 8),
        ({"SLURM_CPUS_PER_TASK": "0"}, 8),
        ({"SLURM_CPUS_PER_TASK": ""}, 8),
        ({"PBS_NCPUS": "5", "NCPUS": "5"}, 5),
        ({"NSLOTS": "6"}, 6),
        ({"LSB_DJOB_NUMPROC": "7"}, 7),
    ],
)
def test_slurm_and_affinity(eight, tmp_path, environ, expected):
    assert available_cpus(environ, tmp_path) == expected


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("1000 100000", 1),
        ("6400000 100000", 8),
        ("", 8),
        ("nonsense", 8),
        ("200000 0", 8),
    ],
)
def test_quota_of_a_container(eight, tmp_path, quota, expected):
    """The container's own group is mounted as the top."""
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": f"{quota}\n"}
    assert available_cpus({}, write(tmp_path, files)) == expected


def test_limits_of_parent_groups_apply(eight, tmp_path):
    files = {
        "proc/self/cgroup": "0::/slurm/job_7/step_0\n",
        "sys/fs/cgroup/slurm/job_7/step_0/cpu.max": "max 100000\n",
        "sys/fs/cgroup/slurm/job_7/cpu.max": "300000 100000\n",
        "sys/fs/cgroup/slurm/cpu.max": "500000 100000\n",
    }
    assert available_cpus({}, write(tmp_path, files)) == 3


def test_a_hidden_group_leaves_the_mounted_top(eight, tmp_path):
    files = {"proc/self/cgroup": "0::/../../elsewhere\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"}
    assert available_cpus({}, write(tmp_path, files)) == 4


@pytest.mark.parametrize(("quota", "expected"), [("250000", 3), ("-1", 8)])
@pytest.mark.parametrize("folder", ["cpu,cpuacct", "cpu"])
def test_quota_of_version_1(eight, tmp_path, quota, expected, folder):
    files = {
        "proc/self/cgroup": f"5:memory:/job\n3:{folder}:/job\n0::/\n",
        f"sys/fs/cgroup/{folder}/job/cpu.cfs_quota_us": f"{quota}\n",
        f"sys/fs/cgroup/{folder}/job/cpu.cfs_period_us": "100000\n",
    }
    assert available_cpus({}, write(tmp_path, files)) == expected


def test_the_smallest_limit_applies(eight, tmp_path):
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "500000 100000\n"}
    assert available_cpus({"SLURM_CPUS_PER_TASK": "4"}, write(tmp_path, files)) == 4
    assert available_cpus({"SLURM_CPUS_PER_TASK": "6"}, write(tmp_path, files)) == 5


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_a_process_bound_to_one_cpu_uses_one():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from bidsapp.system.resources import available_cpus; print(available_cpus())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
