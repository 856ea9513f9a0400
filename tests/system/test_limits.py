"""Limits of the system and removed folders: one message with the fix, no traceback."""

from __future__ import annotations

import errno
import logging
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bidsapp.config import RunConfig, load_recipe
from bidsapp.errors import AppError, ExitCode, InputProblems, Problem
from bidsapp.participant.outcomes import Outcomes
from bidsapp.system.limits import limit_reached


@pytest.fixture
def config(tmp_path) -> RunConfig:
    (tmp_path / "work" / "sub-01").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    recipe = load_recipe("embedded")
    return RunConfig(
        bids_dir=tmp_path, output_dir=tmp_path / "out", work_dir=tmp_path / "work", recipe=recipe
    )


def failure(config: RunConfig, error: Exception, caplog) -> str:
    given: list[str] = []
    with caplog.at_level(logging.ERROR, "bidsapp"), Outcomes(config).of("01", given.append):
        raise error
    (record,) = caplog.records
    assert record.getMessage() == f"sub-01 failed: {given[0]}"
    caplog.clear()
    return "traceback" if record.exc_info else given[0]


def open_too_many() -> Exception:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        Path(__file__).read_text()
    except OSError as error:
        return error
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    raise AssertionError


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def test_too_many_open_files(config, caplog):
    first = open_too_many()
    for error in (first, caused(OSError("written, but cannot be read back"), first)):
        said = failure(config, error, caplog)
        assert said.startswith("Too many open files.")
        assert "ulimit -n" in said
    assert limit_reached(caused(AppError("a.nii: damaged"), first)).exit_code == ExitCode.IO_ERROR
    assert limit_reached(OSError(errno.ENFILE, "Too many open files in system"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("could not create a primitive"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory"),
        RuntimeError("can't start new thread"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
)
def test_memory_that_runs_out(config, caplog, error):
    said = failure(config, error, caplog)
    assert said.startswith("Memory ran out.")
    assert "--roi" in said
    assert "resumes" in said
    assert limit_reached(error).exit_code == ExitCode.TRY_AGAIN


def test_folders_removed_during_a_run(config, caplog):
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", str(config.work_dir / "sub-01/x"))
    assert failure(config, missing, caplog) == "traceback"  # the folders are there
    (config.work_dir / "sub-01").rmdir()
    said = failure(config, caused(OSError("cannot be read back"), missing), caplog)
    assert said.startswith(f"{config.work_dir / 'sub-01'}: this folder was removed during the run.")
    config.work_dir.rmdir()
    assert failure(config, missing, caplog).startswith(f"{config.work_dir}: this folder was removed")
    assert failure(replace(config, work_dir=config.bids_dir), ValueError("other"), caplog) == "traceback"


def test_errors_that_explain_themselves_are_kept():
    assert limit_reached(caused(AppError("too little memory of the GPU"), MemoryError())) is None
    assert limit_reached(InputProblems([Problem("a", "wrong")])) is None
    assert limit_reached(ValueError("out of memory lane")) is None


@pytest.mark.parametrize(
    ("code", "expected", "said"),
    [
        ("raise MemoryError", 75, "Error: Memory ran out."),
        ("raise OSError(24, 'Too many open files', 'x')", 74, "Error: Too many open files."),
    ],
)
def test_the_command_states_it(code, expected, said):
    whole = (
        "import sys; from bidsapp import cli; from bidsapp.cli import bids_app\n"
        f"def make_config(_):\n    {code}\n"
        "bids_app.make_config = make_config\nsys.exit(cli.main(['bids', 'out', 'participant']))\n"
    )
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=False)
    assert done.returncode == expected
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == 1
