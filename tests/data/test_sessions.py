"""Several sessions at once: the same bytes as one at a time, and always the same error."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp.data import sessions as module
from bidsapp.data.betas import mask_session
from bidsapp.data.sessions import mask_sessions
from bidsapp.errors import AppError
from bidsapp.records import Mask, Session

SHAPE, N_TRIALS, N_SESSIONS = (6, 5, 4), 30, 6


@pytest.fixture
def mask():
    return Mask(np.random.default_rng(1).integers(-1, 2, SHAPE) > 0, np.eye(4))


@pytest.fixture
def inputs(tmp_path) -> list[Session]:
    made = []
    for number in range(N_SESSIONS):
        rng = np.random.default_rng(number)
        path = tmp_path / f"ses-{number}_statmap.nii.gz"
        values = rng.normal(0, 500, (*SHAPE, N_TRIALS)).astype(np.int16)
        nib.save(nib.Nifti1Image(values, np.eye(4)), path)
        ids = tuple(f"s{i}" for i in range(N_TRIALS))
        made.append(Session(str(number), path, path.with_name("trials.tsv"), ids, 300.0))
    return made


def _outs(folder: Path) -> list[Path]:
    return [folder / f"{number}.npy" for number in range(N_SESSIONS)]


def _cut(session: Session, keep: float) -> None:
    whole = session.betas.read_bytes()
    session.betas.write_bytes(whole[: int(len(whole) * keep)])


@pytest.mark.parametrize("n_jobs", [1, 2, 4, 50])
def test_the_bytes_do_not_depend_on_the_number_of_threads(tmp_path, mask, inputs, n_jobs):
    alone = [mask_session(s, mask, tmp_path / "alone" / s.label) for s in inputs]
    seen = []

    def show(jobs):
        for number, job in enumerate(jobs):
            seen.append(number)
            yield job

    together = mask_sessions(inputs, mask, _outs(tmp_path / "together"), n_jobs, show)
    assert [t.tobytes() for t in together] == [a.tobytes() for a in alone]
    assert [Path(t.filename).name for t in together] == [f"{n}.npy" for n in range(N_SESSIONS)]
    assert seen == list(range(N_SESSIONS))


def test_sessions_are_masked_at_the_same_time(tmp_path, mask, inputs, monkeypatch):
    meeting = threading.Barrier(3)

    def meet(*arguments):
        meeting.wait(30)  # raises BrokenBarrierError unless three are here at once
        return mask_session(*arguments)

    monkeypatch.setattr(module, "mask_session", meet)
    assert len(mask_sessions(inputs, mask, _outs(tmp_path), 3)) == N_SESSIONS


@pytest.mark.parametrize("n_jobs", [1, 2, 6])
def test_the_error_of_the_first_bad_session_is_raised(tmp_path, mask, inputs, n_jobs):
    # The second of them is at its end sooner, as it cannot even be opened.
    _cut(inputs[1], 0.98)
    inputs[2].betas.write_bytes(b"")
    inputs[4].betas.unlink()
    for _ in range(5):
        with pytest.raises(AppError, match="truncated") as caught:
            mask_sessions(inputs, mask, _outs(tmp_path / "work"), n_jobs)
        assert str(inputs[1].betas) in str(caught.value)
        done = {p.name for p in (tmp_path / "work").iterdir()}
        assert "0.npy" in done
        assert not done & {"1.npy", "2.npy", "4.npy"}
        assert not [name for name in done if "partial" in name]


def _held_until(event: threading.Event, real: Callable, slow: str) -> Callable:
    """Mask as usual, but hold the slow session before its first row until the event has come."""

    def mask_one(session, mask, out, before_row):
        def wait_first() -> None:
            if session.label == slow:
                event.wait(30)
            before_row()

        try:
            return real(session, mask, out, wait_first)
        except AppError:
            event.set()
            raise

    return mask_one


def test_later_sessions_are_stopped_by_an_error(tmp_path, mask, inputs, monkeypatch):
    _cut(inputs[0], 0.5)
    monkeypatch.setattr(module, "mask_session", _held_until(threading.Event(), mask_session, slow="1"))
    with pytest.raises(AppError, match="truncated"):
        mask_sessions(inputs, mask, _outs(tmp_path / "work"), 2)
    assert list((tmp_path / "work").iterdir()) == []


def test_an_interrupt_stops_all_sessions_and_leaves_no_partial_files(tmp_path, mask, inputs):
    def interrupted(jobs):
        yield jobs[0]
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        mask_sessions(inputs, mask, _outs(tmp_path / "work"), 2, interrupted)
    assert threading.active_count() == before
    assert not [p for p in (tmp_path / "work").iterdir() if "partial" in p.name]
