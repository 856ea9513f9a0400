"""Canaries: answers that are not finite, of another shape or not the recorded ones stop a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bidsapp.config import load_recipe
from bidsapp.errors import AppError, ExitCode
from bidsapp.models import canaries
from bidsapp.models.suite import EMBEDDED, Models
from bidsapp.models.weights_lock import LOCK, Lock

ANSWER = np.random.default_rng(0).normal(size=(1, 5, 7))
WHERE = Path("models/some.pth")


def check(
    answer: np.ndarray, lock: Lock | None, device: str = "cpu", shape: tuple[int, ...] = (1, 5, 7)
) -> None:
    canaries.check("folder#network", WHERE, lambda: answer, shape, device, lock)


def test_the_first_answer_is_recorded_and_the_same_one_passes(tmp_path):
    check(ANSWER, Lock.read(tmp_path))
    recorded = Lock.read(tmp_path).canaries["folder#network"]
    assert recorded["device"] == "cpu"
    assert recorded["shape"] == [1, 5, 7]
    before = (tmp_path / LOCK).read_bytes()
    check(ANSWER * (1 + 1e-5), Lock.read(tmp_path))
    assert (tmp_path / LOCK).read_bytes() == before


@pytest.mark.parametrize(
    ("recorded_on", "device", "factor", "passes"),
    [
        ("cpu", "cpu", 1.0005, True),
        ("cpu", "cpu", 1.005, False),
        ("cpu", "mps", 1.005, True),
        ("cpu", "mps", 1.02, False),
        ("cpu", "cuda", 1.02, True),
        ("cuda", "cpu", 1.02, True),
        ("cpu", "cuda", 1.1, False),
    ],
)
def test_drift_is_judged_by_both_devices(recorded_on, device, factor, passes, tmp_path):
    check(ANSWER, Lock.read(tmp_path), recorded_on)
    if passes:
        check(ANSWER * factor, Lock.read(tmp_path), device)
        return
    with pytest.raises(AppError, match=r"network answers otherwise.*relative difference 0\.\d+") as caught:
        check(ANSWER * factor, Lock.read(tmp_path), device)
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert str(WHERE) in str(caught.value)
    assert str(tmp_path / LOCK) in str(caught.value)


@given(st.integers(0, 34), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_values_that_are_not_finite(place, value):
    broken = ANSWER.copy()
    broken.flat[place] = value
    with pytest.raises(
        AppError, match=r"models/some\.pth: network answers with values that are not finite on cpu"
    ):
        check(broken, None)


def test_other_shapes(tmp_path):
    with pytest.raises(AppError, match=r"shape \(1, 5, 7\), not \(1, 7, 5\)"):
        check(ANSWER, None, shape=(1, 7, 5))
    check(ANSWER, Lock.read(tmp_path))
    with pytest.raises(AppError, match="is not the model that"):
        check(ANSWER.reshape(1, 35), Lock.read(tmp_path), shape=(1, 35))


def test_a_constant_answer_is_compared_too(tmp_path):
    check(np.zeros((1, 5, 7)), Lock.read(tmp_path))
    check(np.zeros((1, 5, 7)), Lock.read(tmp_path))
    with pytest.raises(AppError, match="otherwise"):
        check(ANSWER, Lock.read(tmp_path))


def test_fetching_a_models_file_again_forgets_its_answers(tmp_path):
    for name in ("folder#network", "folder2#network"):
        canaries.check(name, WHERE, lambda: ANSWER, (1, 5, 7), "cpu", Lock.read(tmp_path))
    Lock.read(tmp_path).record_files({"folder/w.pth": {"sha256": "0" * 64}})
    assert set(Lock.read(tmp_path).canaries) == {"folder2#network"}


@pytest.mark.parametrize("text", ['{"files": [1]}', '{"files": {"a": 1}}', "[]", "{"])
def test_a_damaged_lock_is_named(text, tmp_path):
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(AppError, match=LOCK) as caught:
        Lock.read(tmp_path)
    assert caught.value.exit_code == ExitCode.BAD_DATA


def test_the_fixed_inputs_are_fixed():
    picture = canaries.image(16)
    assert picture.shape == (1, 16, 16, 3)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, canaries.image(16))
    assert picture[0, 0, :, 0].tolist() == [17 * i for i in range(16)]
    assert picture[0, :, 3, 1].tolist() == [17 * i for i in range(16)]
    tokens = canaries.tokens((1, 5, 7))
    assert tokens.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(tokens, axis=-1), 1, rtol=1e-6)
    assert canaries.generators()[0].initial_seed() == canaries.generators()[0].initial_seed()


@pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded weights are not there")
def test_the_embedded_models_answer_and_nothing_is_written(monkeypatch):
    asked: list[str] = []
    check_one = canaries.check

    def noting(name, where, answer, shape, device, lock, dtype):
        asked.append(name)
        assert lock is None
        check_one(name, where, answer, shape, device, lock, dtype)

    monkeypatch.setattr(canaries, "check", noting)
    before = sorted(EMBEDDED.rglob("*"))
    models = Models(load_recipe("embedded"), None, "cpu")
    _ = models.vdvae, models.diffusion
    folder = "versatile_diffusion"
    assert asked == [
        "vdvae#VDVAE",
        *(f"{folder}#{w}" for w in ("image encoder", "text encoder", "diffusion")),
    ]
    assert sorted(EMBEDDED.rglob("*")) == before


def test_rounding_of_pixels_is_no_drift_and_another_picture_is(tmp_path):
    picture = np.random.default_rng(1).integers(40, 90, (1, 5, 7), dtype=np.uint8)
    check(picture, Lock.read(tmp_path))
    check(picture + np.uint8(1), Lock.read(tmp_path))
    with pytest.raises(AppError, match="answers otherwise"):
        check(picture[:, ::-1].copy() + np.uint8(60), Lock.read(tmp_path))
