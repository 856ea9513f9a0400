"""What regions contribute: as a fitted ridge's weights and masked responses have it."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from bidsapp.decoding.decoder import RidgeDecoder
from bidsapp.decoding.regions import part_similarity, similarity_weights, synthetic_targets, with_ties
from bidsapp.metrics.identification import two_way

ALPHA = 30.0


def data(n: int = 40, p: int = 60, d: int = 25, m: int = 12):
    rng = np.random.default_rng(5)
    x, x_new = rng.standard_normal((n, p)), rng.standard_normal((m, p))
    x -= x.mean(0)
    w = rng.standard_normal((p, d))
    y = (x @ w + rng.standard_normal((n, d)) + 3).astype(np.float32)
    return x, y, x_new, (x_new @ w + 3).astype(np.float32)


@pytest.mark.parametrize("n", [40, 90], ids=["dual", "primal"])
def test_similarity_is_that_of_masked_responses(n):
    x, y, x_new, true = data(n)
    inside = np.arange(60) % 4 == 0
    weights = similarity_weights(RidgeDecoder(x), y, true, ALPHA)
    ridge = Ridge(ALPHA).fit(x, y)
    whole = part_similarity(x_new, weights, np.ones(60, bool))
    part = part_similarity(x_new, weights, inside)
    for found, used in ((part, inside), (whole - part, ~inside), (whole, inside | True)):
        predicted = ridge.predict(np.where(used, x_new, 0)) - y.mean(0)
        r = np.corrcoef(true - y.mean(0), predicted)[:12, 12:]
        # Up to a positive factor of each prediction.
        np.testing.assert_allclose(
            found / np.linalg.norm(found, axis=0), r / np.linalg.norm(r, axis=0), atol=1e-5
        )
        np.testing.assert_array_equal(two_way(found).per_image, two_way(r).per_image)


def test_a_target_without_spread_is_similar_to_nothing():
    x, y, _, true = data()
    true[3] = y.mean(0, dtype=np.float64)
    true[4] = y.mean(0, dtype=np.float64) + 2
    weights = similarity_weights(RidgeDecoder(x), y, true, ALPHA)
    assert np.abs(weights[:, 3]).max() <= 1e-3 * np.abs(weights[:, 0]).max()
    assert np.isfinite(weights).all()


def operator_and_weights(patterns):
    x, y, *_ = data()
    decoder = RidgeDecoder(x)
    return decoder.operator(decoder.x_mean + patterns, ALPHA), y, Ridge(ALPHA).fit(x, y)


def patterns() -> np.ndarray:
    return np.array([np.arange(60) % 5 == k for k in range(3)], dtype=float)


def test_synthetic_targets_are_scaled_weights_and_intercept():
    operator, y, ridge = operator_and_weights(patterns())
    found = synthetic_targets(operator, y, norm=9.0)
    away = patterns() @ ridge.coef_.T
    expected = away / np.linalg.norm(away, axis=1, keepdims=True) * 9 + ridge.intercept_
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_norm_zero_is_as_far_as_training_targets_are():
    operator, y, _ = operator_and_weights(patterns())
    found = synthetic_targets(operator, y, norm=0.0)
    length = np.sqrt(((y - y.mean(0)) ** 2).sum(1).mean())
    np.testing.assert_allclose(np.linalg.norm(found - y.mean(0), axis=1), length, rtol=1e-4)


def test_calibration_compares_regions():
    operator, y, _ = operator_and_weights(patterns())
    plain = synthetic_targets(operator, y, norm=50.0)
    found = synthetic_targets(operator, y, norm=50.0, calibrated_norm=80.0)
    expected = (plain - plain.mean(0)) / plain.std(0) * y.std(0) + y.mean(0)
    expected *= 80 / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    one = synthetic_targets(operator[:1], y, norm=50.0, calibrated_norm=80.0)
    np.testing.assert_allclose(one, plain[:1], rtol=1e-4, atol=1e-4)


def test_equal_targets_tie():
    x, y, x_new, true = data()
    true[5] = true[2]
    whole = part_similarity(x_new, similarity_weights(RidgeDecoder(x), y, true, ALPHA), np.ones(60, bool))
    whole[5] *= 1 + 1e-7  # as another order of sums would
    found = with_ties(whole)
    np.testing.assert_array_equal(found[5], found[2])
    np.testing.assert_allclose(found * np.abs(whole).max(0), whole, atol=1e-5 * np.abs(whole).max())
