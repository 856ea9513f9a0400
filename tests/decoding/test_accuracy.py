"""Single precision where it is enough, double where it is not: hard cases against a float64 SVD."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.decoding import gram as module
from bidsapp.decoding.decoder import RidgeDecoder
from bidsapp.decoding.ridge import Ridge
from bidsapp.decoding.streaming import Predictor, TargetBlocks, predict_blocks

TOLERANCE = 1e-4


def reference(x, y, x_new, alpha):
    """Ridge by the singular values of x, which does not square its condition."""
    x, y, x_new = (np.asarray(a, np.float64) for a in (x, y, x_new))
    mean = x.mean(0)
    u, s, vt = np.linalg.svd(x - mean, full_matrices=False)
    return y.mean(0) + (x_new - mean) @ vt.T @ ((s / (s**2 + alpha))[:, None] * (u.T @ (y - y.mean(0))))


def noise(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def plain(rng):
    return noise(rng, 120, 300), noise(rng, 20, 300)


def many_voxels(rng):
    return noise(rng, 40, 20_000), noise(rng, 10, 20_000)


def near_duplicates(rng):
    x, x_new = plain(rng)
    x[60:] = x[:60] + 1e-3 * noise(rng, 60, 300)
    return x, x_new


def near_duplicate_voxels(rng):
    x, x_new = noise(rng, 300, 80), noise(rng, 20, 80)
    for a in (x, x_new):
        a[:, 40:] = a[:, :40] + 1e-3 * noise(rng, len(a), 40)
    return x, x_new


def one_strong_direction(rng):
    x, x_new = plain(rng)
    direction = 100 * noise(rng, 300)
    return x + np.outer(noise(rng, 120), direction), x_new + np.outer(noise(rng, 20), direction)


def far_from_zero(rng):
    x, x_new = plain(rng)
    return x + np.float32(500), x_new + np.float32(500)


CASES = [plain, many_voxels, near_duplicates, near_duplicate_voxels, one_strong_direction, far_from_zero]


@pytest.mark.parametrize("learnable", [True, False])
@pytest.mark.parametrize("alpha", [1e4, 100.0, 1.0, 1e-3])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("small", [0, 1024])
def test_predictions_are_within_1e_4_of_their_scale(case, alpha, learnable, small, monkeypatch):
    monkeypatch.setattr(module, "SMALL", small)  # 0: large matrices' way, float32 first
    rng = np.random.default_rng(5)
    x, x_new = case(rng)
    y = 3 * (x[:, :7] - x[:, :7].mean(0)) + 10 if learnable else noise(rng, len(x), 7) + 10
    expected = reference(x, y, x_new, alpha)
    got = Ridge(alpha).fit(x, y).predict(x_new)
    assert np.abs(got - expected).max() < TOLERANCE * expected.std()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_held_out_predictions_are_too(case, monkeypatch):
    monkeypatch.setattr(module, "SMALL", 0)
    rng = np.random.default_rng(6)
    x, _ = case(rng)
    y = 3 * (x[:, :7] - x[:, :7].mean(0)) + noise(rng, len(x), 7)
    for alpha in (100.0, 1.0):
        rows = [0, 3, len(x) - 1]
        got = predict_blocks(RidgeDecoder(x).loo_operator(alpha, rows), y)
        for row, predicted in zip(rows, got, strict=True):
            rest = np.arange(len(x)) != row
            expected = reference(x[rest], y[rest], x[row : row + 1], alpha)[0]
            assert np.abs(predicted - expected).max() < TOLERANCE * y.std()


def test_precision_follows_the_condition(monkeypatch):
    monkeypatch.setattr(module, "SMALL", 0)
    x, x_new = plain(np.random.default_rng(0))
    decoder = RidgeDecoder(x)
    largest = np.linalg.eigvalsh((x - x.mean(0)) @ (x - x.mean(0)).T)[-1]
    np.testing.assert_allclose(decoder.gram.condition(1.0), largest, rtol=0.2)
    assert decoder.operator(x_new, largest / 500).dtype == np.float32
    assert decoder.gram.dtype == np.float32
    assert decoder.operator(x_new, largest / 5000).dtype == np.float64
    assert decoder.gram.dtype == np.float64


@pytest.mark.parametrize(("precision", "share"), [("float32", 1e-4), ("float64", 1e-14), ("auto", 1e-14)])
def test_a_penalty_below_the_precision_is_refused(precision, share):
    x, x_new = plain(np.random.default_rng(0))
    decoder = RidgeDecoder(x, precision=precision)
    largest = decoder.gram.condition(1.0)
    with pytest.raises(ValueError, match=r"too small for float.*of at least"):
        decoder.operator(x_new, largest * share)
    assert np.isfinite(decoder.operator(x_new, largest * share * 1e3)).all()


def test_a_block_that_float32_fails_is_predicted_in_float64():
    """Of an operator whose terms cancel; the check finds it, and only a float64 operator can tell."""
    rng = np.random.default_rng(1)
    y = rng.standard_normal((50, 9)).astype(np.float32)
    y[25:] = y[:25] + 1e-5 * rng.standard_normal((25, 9)).astype(np.float32)
    half = 1e4 * rng.standard_normal((6, 25))
    operator = np.hstack([half, -half])
    (block,) = TargetBlocks(y)
    expected = operator @ (y - block.mean) + block.mean
    scale = expected.std()
    assert np.abs(Predictor(operator).predict(block) - expected).max() < 1e-6 * scale
    assert np.abs(Predictor(operator.astype(np.float32)).predict(block) - expected).max() > 1e-3 * scale
