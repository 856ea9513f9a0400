"""A full disk is one clear error, whichever library meets it, and ends no process by a signal."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.fault_runs import small_disk

from bidsapp.errors import ExitCode
from bidsapp.storage.atomic import atomic_path
from bidsapp.storage.hdf5 import write_hdf5
from bidsapp.storage.stages import Stages
from bidsapp.system.logging import log_to_file
from bidsapp.system.write_errors import CannotWrite, reason, writing

#: More than fits: the disk is of 256 kB.
MANY = np.zeros(100_000)


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "size=256k") as place:
        yield place


def write_arrays(path: Path) -> None:
    with write_hdf5(path) as (file, _):
        for i in range(9):
            file.create_dataset(f"{i}", data=MANY[:9000])


WRITERS: dict[str, Callable[[Path], object]] = {
    "bytes": lambda path: path.write_bytes(MANY.tobytes()),
    "numpy": lambda path: np.save(path, MANY),
    "numpy, all but the end": lambda path: np.save(path, MANY[:33_000]),
    "hdf5": write_arrays,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_every_librarys_error_becomes_the_same(disk, write):
    expected = pytest.raises(CannotWrite, match=r"out\.npy: No space left on device\. Free some")
    with expected as caught, atomic_path(disk / "out.npy") as path:
        write(path)
    assert caught.value.exit_code == ExitCode.IO_ERROR
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_stage_leaves_nothing_and_is_computed_when_there_is_space(disk, write):
    stages = Stages(disk / "work")

    def compute(folder: Path) -> dict[str, np.ndarray]:
        write(folder / "other.npy")
        return {}

    with pytest.raises(CannotWrite, match="No space left on device"):
        stages.run("a", {}, compute)
    with pytest.raises(CannotWrite, match="work/a: No space left on device"):
        stages.run("a", {}, lambda _: {"large": MANY})
    assert list(stages.folder.iterdir()) == []
    assert stages.run("a", {}, lambda _: {"small": MANY[:10]})["small"].size == 10


def test_an_array_on_disk_does_not_end_the_process(disk):
    """Assigned to through a memory map, it would: by SIGBUS."""
    code = (
        "import sys, pathlib, numpy as np; from bidsapp.storage.npy import ArrayOnDisk\n"
        "made = ArrayOnDisk(pathlib.Path(sys.argv[1]), (100, 1000))\n"
        "try:\n"
        "    for start in range(0, 1000, 10): made[:, start : start + 10] = np.ones((100, 10))\n"
        "except OSError as error: sys.exit(error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(disk / "a.npy")], check=False)
    assert done.returncode == errno.ENOSPC


HDF5 = """
import os, sys, pathlib, numpy as np
from bidsapp.storage.hdf5 import write_hdf5
disk = pathlib.Path(sys.argv[1])
for left in range(4, 200, 12):
    (disk / "filler").write_bytes(bytes((256 - left) << 10))
    try:
        with write_hdf5(disk / "a.h5") as (file, check):
            for i in range(12):
                group = file.create_group(f"{i}")
                group.attrs["alpha"] = 1.0
                array = group.create_dataset("x", (3000,), "f4")
                array[100:2000] = 1
                group["y"] = np.zeros(200)
    except OSError as error:
        assert error.errno == 28, error
        print("full")
    (disk / "a.h5").unlink()
"""


def test_hdf5_does_not_end_the_process(disk):
    """Left to itself it does, when the file is closed or the process ends: by SIGSEGV."""
    done = subprocess.run(
        [sys.executable, "-c", HDF5, str(disk)], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("full") >= 10


def test_hdf5_is_what_was_written(tmp_path):
    with write_hdf5(tmp_path / "a.h5") as (file, check):
        file.create_dataset("x", (30, 40), "f4")[:, 5:9] = 2
        file.attrs["name"] = "a"
        check()
    with h5py.File(tmp_path / "a.h5", "r") as file:
        assert file["x"][:].sum() == 240
        assert file.attrs["name"] == "a"
    with pytest.raises(KeyError), write_hdf5(tmp_path / "b.h5"):
        raise KeyError


def test_a_full_log_loses_lines_and_the_run_continues(disk, capsys):
    log = logging.getLogger("bidsapp")
    with log_to_file(disk / "run.log"):
        log.error("short")
        (disk / "filler").write_bytes(MANY[:31_000].tobytes())
        log.error("long" * 4000)
    assert " ERROR short\n" in (disk / "run.log").read_text()
    assert (disk / "run.log").stat().st_size < 16_000
    assert "Traceback" not in capsys.readouterr().err


def test_a_disk_too_full_for_a_log_is_the_same_error(tmp_path):
    full = small_disk(tmp_path / "disk", "size=64k,nr_inodes=1")
    with full as disk, pytest.raises(CannotWrite, match="logs"):
        log_to_file(disk / "logs" / "run.log").__enter__()


def test_other_errors_stay_what_they_are(tmp_path):
    assert reason(OSError("3 requested and 2 written")) == errno.ENOSPC
    assert reason(RuntimeError("Can't decrement id ref count (errno = 28, error message = '...')")) == 28
    others = OSError(errno.EIO, "bad"), RuntimeError("errno = 5"), ValueError("errno = 28"), OSError("x")
    for error in others:
        assert reason(error) is None
        with pytest.raises(type(error)) as caught, writing(tmp_path):
            raise error
        assert caught.value is error
