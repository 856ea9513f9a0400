"""Canaries: answers that are not finite, of another shape or not the recorded ones stop a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bidsapp.errors import AppError, ExitCode
from bidsapp.models import canaries
from bidsapp.models.weights.lock import LOCK, Lock

ANSWER = np.random.default_rng(0).normal(size=(1, 5, 7))
WHERE = Path("models/some.pth")


def canary(shape: tuple[int, ...] = (1, 5, 7), name: str = "folder#network") -> canaries.Canary:
    return canaries.Canary(name, WHERE, shape)


def check(
    answer: np.ndarray, lock: Lock | None, device: str = "cpu", shape: tuple[int, ...] = (1, 5, 7)
) -> None:
    canaries.check(canary(shape), lambda: answer, device, "auto", lock)


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
    with pytest.raises(AppError, match=r"network answers differently.*relative difference 0\.\d+") as caught:
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


def test_an_answer_of_one_value_is_refused(tmp_path):
    """A dead network, a black picture: finite, of the right shape, the same in every run."""
    for value in (0.0, -3.5):
        with pytest.raises(AppError, match="network answers with one constant value on cpu"):
            check(np.full((1, 5, 7), value), Lock.read(tmp_path))
    for picture in (np.zeros((1, 5, 7), np.uint8), np.full((1, 5, 7), 128, np.uint8)):
        with pytest.raises(AppError, match="network answers with an image of one colour on cpu"):
            check(picture, None)
    picture[0, 0, 0] += 3  # of 35 grey levels one differs, by rounding or little more
    with pytest.raises(AppError, match="one colour"):
        check(picture, None)
    assert Lock.read(tmp_path).canaries == {}


def test_what_the_model_says_itself_names_the_weights(tmp_path):
    def answer() -> np.ndarray:
        raise AppError("latents that are not finite in float16", exit_code=ExitCode.TRY_AGAIN)

    with pytest.raises(AppError, match=r"models/some\.pth: network: latents that are not finite") as caught:
        canaries.check(canary(), answer, "cpu", "auto", None)
    assert caught.value.exit_code == ExitCode.TRY_AGAIN


def test_advice_names_the_format_to_try():
    for dtype, other in (("float16", "--dtype bfloat16"), ("bfloat16", "--dtype float32")):
        with pytest.raises(AppError, match=f"not finite on cpu.*{other}"):
            canaries.check(canary(), lambda: ANSWER * np.nan, "cpu", dtype, None)


def test_any_length_will_do_where_it_is_not_known():
    assert canaries.check(canary((1, -1, 7)), lambda: ANSWER, "cpu", "auto", None).shape == (1, 5, 7)
    with pytest.raises(AppError, match=r"shape \(1, 5, 7\), not \(1, -1\)"):
        canaries.check(canary((1, -1)), lambda: ANSWER, "cpu", "auto", None)


# ------------------------------------------------- what a model is given

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def normalised(scale: float = 1.0, side: int = 224) -> torch.Tensor:
    x = torch.from_numpy(canaries.image(side)).permute(0, 3, 1, 2) / 255 * scale
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.mark.parametrize("side", [16, 64, 224])
def test_a_picture_as_it_should_be(side):
    canaries.check_input("a network", WHERE, [normalised(side=side)], STD)


@pytest.mark.parametrize("scale", [1 / 255, 255.0, 0.5])
def test_a_picture_rescaled_on_the_way(scale):
    with pytest.raises(AppError, match=r"the image given to a network spans .* of the range") as caught:
        canaries.check_input("a network", WHERE, [normalised(scale)], STD)
    assert caught.value.exit_code == ExitCode.INTERNAL
    assert str(WHERE) in str(caught.value)


def test_one_channel_is_enough_and_so_is_nothing():
    x = normalised()
    x[:, 1] = 0
    for tensors in ([x], []):
        with pytest.raises(AppError, match=r"spans (0|nothing) .*from black to white"):
            canaries.check_input("a network", WHERE, tensors, STD)


def test_what_a_module_is_given_is_kept():
    layer = torch.nn.Linear(3, 3)
    x = torch.ones(2, 3)
    with canaries.given_to(layer) as seen:
        layer(x)
    layer(x * 2)
    assert len(seen) == 1
    assert torch.equal(seen[0], x)


def test_answers_of_other_weights_do_not_count(tmp_path):
    for weights, answer in (("one", ANSWER), ("another", -ANSWER), ("another", -ANSWER)):
        asked = canaries.Canary("folder#network", WHERE, (1, 5, 7), weights)
        canaries.check(asked, lambda answer=answer: answer, "cpu", "auto", Lock.read(tmp_path))
    with pytest.raises(AppError, match="answers differently"):
        canaries.check(asked, lambda: ANSWER, "cpu", "auto", Lock.read(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        *('{"files": [1]}', '{"files": {"a": 1}}', "[]", "{", "null"),
        *('{"files": null}', '{"canaries": null}', '{"files": {"vdvae/a": null}}'),
        *('{"files": {"vdvae/a": {"sha256": null}}}', '{"files": {"vdvae/a": {"sha256": "ab"}}}'),
        *(
            '{"canaries": {"a#b": null}}',
            '{"canaries": {"a#b": {"device": null, "shape": [], "values": []}}}',
        ),
        '{"canaries": {"a#b": {"device": "cpu", "shape": null, "values": []}}}',
        '{"canaries": {"a#b": {"device": "cpu", "shape": [1], "values": [null]}}}',
    ],
)
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


def test_rounding_of_pixels_is_no_drift_and_another_picture_is(tmp_path):
    picture = np.random.default_rng(1).integers(40, 90, (1, 5, 7), dtype=np.uint8)
    check(picture, Lock.read(tmp_path))
    check(picture + np.uint8(1), Lock.read(tmp_path))
    with pytest.raises(AppError, match="answers differently"):
        check(picture[:, ::-1].copy() + np.uint8(60), Lock.read(tmp_path))
