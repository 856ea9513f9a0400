"""Two jobs of one subject: the second learns which job is first; a killed job holds no lock."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bidsapp.errors import ExitCode
from bidsapp.participant.lock import Busy, alone_after_shards, clear_leftovers, subject_lock, turn
from bidsapp.system.processes import here

HOLD = (
    "import pathlib, sys; from bidsapp.participant.lock import subject_lock\n"
    "with subject_lock('01', pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])):\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)


def hold(out: Path, work: Path, code: str = HOLD) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", code, str(out), str(work)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_job_names_the_first_and_a_killed_job_holds_no_lock(tmp_path):
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


TOGETHER = HOLD.replace("sys.argv[2])", "sys.argv[2]), together=True")


def test_shards_share_the_lock_and_other_jobs_do_not(tmp_path, caplog):
    caplog.set_level("INFO", "bidsapp")
    places = ("01", tmp_path / "out", tmp_path / "work")
    with hold(*places[1:], TOGETHER) as shard:
        with pytest.raises(Busy, match=f"process {shard.pid}, since 2"):
            subject_lock(*places).__enter__()
        with subject_lock(*places, together=True), pytest.raises(Busy):
            subject_lock(*places).__enter__()
        threading.Timer(0.3, shard.kill).start()
        with alone_after_shards(*places, every_s=0.02):
            assert shard.wait() != 0
            with pytest.raises(Busy):
                subject_lock(*places, together=True).__enter__()
    assert caplog.text.count("waiting for the shards") == 1
    with hold(*places[1:]) as other:
        with pytest.raises(Busy, match=f"process {other.pid}"):
            alone_after_shards(*places).__enter__()
        other.kill()


TURN = (
    "import pathlib, sys; from bidsapp.participant.lock import turn\n"
    "with turn('01', pathlib.Path(sys.argv[2]), 'it prepares'):\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)


def test_jobs_that_wait_for_their_turn_log_it_once(tmp_path, caplog):
    caplog.set_level("INFO", "bidsapp")
    with hold(tmp_path, tmp_path, TURN) as first:
        threading.Timer(0.3, first.kill).start()
        with turn("01", tmp_path, "it prepares", every_s=0.02):
            assert first.wait() != 0
    assert caplog.text.count("sub-01: waiting: it prepares") == 1


def test_the_lock_is_released_on_an_error(tmp_path):
    with pytest.raises(KeyError), subject_lock("01", tmp_path, tmp_path):
        raise KeyError
    with subject_lock("01", tmp_path, tmp_path):
        pass


def test_leftovers_of_killed_jobs_are_removed_from_shared_and_own_folders(tmp_path):
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
