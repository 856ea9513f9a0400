"""Two jobs of one subject: the second is told who is at it; a killed one holds nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bidsapp.errors import ExitCode
from bidsapp.processes import here
from bidsapp.subject_lock import Busy, clear_leftovers, subject_lock

HOLD = (
    "import pathlib, sys; from bidsapp.subject_lock import subject_lock\n"
    "with subject_lock('01', pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])):\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)


def hold(out: Path, work: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", HOLD, str(out), str(work)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_job_says_who_is_at_it_and_a_killed_one_holds_nothing(tmp_path):
    out, work, other = tmp_path / "out", tmp_path / "work", tmp_path / "other"
    with hold(out, work) as process:
        for places, kind in (((out, work), "output"), ((out, other), "output"), ((other, work), "work")):
            with pytest.raises(Busy, match=f"same {kind} folder .*process {process.pid}, since 2") as caught:
                subject_lock("01", *places).__enter__()
            assert caught.value.exit_code == ExitCode.TRY_AGAIN
        with subject_lock("02", out, work), subject_lock("01", other, other):
            pass
        process.kill()
        process.wait()
        with subject_lock("01", out, work):
            pass
    assert not list(tmp_path.rglob("*.owner"))


def test_the_lock_is_released_on_an_error(tmp_path):
    with pytest.raises(KeyError), subject_lock("01", tmp_path, tmp_path):
        raise KeyError
    with subject_lock("01", tmp_path, tmp_path):
        pass


def test_leftovers_of_killed_jobs_are_removed_where_subjects_share_and_in_their_own(tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    places = [out, out / "logs", out / "sub-01" / "func", work / "targets-1a", work / "sub-01" / "masks"]
    others = [out / "sub-02" / "func", work / "sub-02"]
    for folder in (*places, *others):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f".a.partial-{here()}-4194999-abc123.txt").write_text("")  # above the largest Linux pid
        (folder / f".b.partial-{here()}-{os.getpid()}-abc123.txt").write_text("")
    removed = clear_leftovers("01", out, work)
    assert sorted(path.parent for path in removed) == sorted(places)
    assert all(path.name.startswith(".a") for path in removed)
