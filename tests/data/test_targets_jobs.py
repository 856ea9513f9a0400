"""Several jobs fill one store of targets in parallel: nothing is computed twice or lost with a killed job."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bidsapp.data import targets as module
from bidsapp.data.targets import TargetStore
from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.claims import claim, claimed

FORK = multiprocessing.get_context("fork")
IDS = [f"digest{i}" for i in range(10)]


@pytest.fixture(autouse=True)
def _look_often(monkeypatch):
    monkeypatch.setattr(module, "_LOOK_S", 0.02)


def values_of(digests: Sequence[str]) -> np.ndarray:
    """Targets of stimuli, computed from their names only."""
    made = [np.random.default_rng(list(d.encode())).standard_normal(3) for d in digests]
    return np.stack(made).astype(np.float32)


def fill(
    folder: Path, digests: list[str], log: Path, before: Callable[[list[str]], Any] = lambda _: None
) -> None:
    """Fill the store as a job does, with a line in ``log`` for each stimulus computed."""

    def compute(rows: Sequence[int]) -> dict[str, np.ndarray]:
        wanted = [digests[r] for r in rows]
        before(wanted)
        with log.open("a") as file:
            file.write("".join(f"{d}\n" for d in wanted))
        return {"latents": values_of(wanted)}

    store = TargetStore(folder, "model")
    store.ensure(digests, compute, block=2)
    np.testing.assert_array_equal(store.rows("latents", digests)[:, :], values_of(digests))


def run(*jobs: tuple[Any, ...]) -> list[Any]:
    started = [FORK.Process(target=fill, args=arguments) for arguments in jobs]
    for job in started:
        job.start()
    return started


def finish(jobs: list[Any]) -> None:
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0] * len(jobs)


def computed(*logs: Path) -> list[str]:
    return sorted(line for log in logs if log.exists() for line in log.read_text().split())


def left_over(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if "claim" in p.name or "partial" in p.name]


@pytest.mark.parametrize("second", [IDS[3:], IDS[::-1], IDS])
def test_jobs_that_share_stimuli_compute_each_once(tmp_path, second):
    logs = [tmp_path / "one.log", tmp_path / "two.log"]
    finish(run((tmp_path / "w", IDS[:7], logs[0]), (tmp_path / "w", second, logs[1])))
    assert computed(*logs) == sorted({*IDS[:7], *second})
    assert left_over(tmp_path) == []


def test_jobs_compute_at_the_same_time(tmp_path):
    meeting = FORK.Barrier(2)
    arrived = FORK.Value("i", 0)

    def meet(_: list[str]) -> None:
        with arrived.get_lock():
            arrived.value += 1
            early = arrived.value <= 2
        if early:
            meeting.wait(30)  # broken, and an error of the job, unless both are computing at once

    logs = [tmp_path / "one.log", tmp_path / "two.log"]
    finish(run(*((tmp_path / "w", IDS, log, meet) for log in logs)))
    assert computed(*logs) == sorted(IDS)
    assert all(log.exists() for log in logs)


def test_another_job_computes_what_a_killed_job_had_claimed(tmp_path):
    working = FORK.Event()

    def hang(_: list[str]) -> None:
        working.set()
        threading.Event().wait()

    (victim,) = run((tmp_path / "w", IDS[:4], tmp_path / "one.log", hang))
    assert working.wait(30)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(30)
    fill(tmp_path / "w", IDS, tmp_path / "two.log")
    assert computed(tmp_path / "two.log") == sorted(IDS)
    assert left_over(tmp_path) == []


def test_a_job_waits_for_what_another_computes(tmp_path):
    working, go_on = FORK.Event(), FORK.Event()

    def hold(_: list[str]) -> None:
        working.set()
        assert go_on.wait(30)

    (slow,) = run((tmp_path / "w", IDS[:2], tmp_path / "one.log", hold))
    assert working.wait(30)
    (quick,) = run((tmp_path / "w", IDS, tmp_path / "two.log"))
    while len(computed(tmp_path / "two.log")) < 8:
        assert quick.is_alive()
    quick.join(0.2)
    assert quick.is_alive()
    go_on.set()
    finish([slow, quick])
    assert computed(tmp_path / "one.log") == IDS[:2]
    assert computed(tmp_path / "two.log") == IDS[2:]


def test_a_failure_releases_its_claim(tmp_path):
    store = TargetStore(tmp_path, "model")

    def fail(_: Sequence[int]) -> dict[str, np.ndarray]:
        assert claimed(store.folder) == {"digest0", "digest1"}
        raise RuntimeError("no power")

    with pytest.raises(RuntimeError, match="no power"):
        store.ensure(IDS, fail, block=2)
    assert left_over(tmp_path) == []
    assert claimed(store.folder) == set()


def test_a_job_does_not_wait_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE_S", 0.1)
    store = TargetStore(tmp_path, "model")
    with claim(store.folder, IDS[:2]):
        with pytest.raises(AppError, match="targets of 2 stimuli") as caught:
            store.ensure(IDS, lambda rows: {"latents": values_of([IDS[r] for r in rows])})
        assert caught.value.exit_code == ExitCode.TRY_AGAIN
        assert str(store.folder) in str(caught.value)
    assert store.ensure(IDS, lambda rows: {"latents": values_of([IDS[r] for r in rows])}) == 2


def test_claims_of_jobs_that_ended_are_removed(tmp_path):
    for name in ("claim-1-aa.lock", "claim-2-bb", "claim-2-bb.lock"):
        (tmp_path / name).write_text("digest1")
    with claim(tmp_path, ["digest5", "digest6"]):
        assert claimed(tmp_path) == {"digest5", "digest6"}
        assert len(list(tmp_path.iterdir())) == 2
    assert list(tmp_path.iterdir()) == []
