"""Quality of predicted targets, against numpy.corrcoef, scikit-learn and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import r2_score

from bidsapp.decoding import quality
from bidsapp.decoding.decoder import RidgeDecoder
from bidsapp.metrics.identification import two_way


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("block", [None, 1, 7])
def test_each_dimension_as_corrcoef_and_r2_score(rng, block):
    true = rng.standard_normal((30, 50)) * 3 + 100
    predicted = (true + rng.standard_normal((30, 50)) * 4).astype(np.float32)
    training = (rng.standard_normal((40, 50)) * 3 + 100).astype(np.float32)
    found = quality.score_latents(predicted, true, training, block=block)
    expected = [np.corrcoef(predicted[:, k], true[:, k])[0, 1] for k in range(50)]
    np.testing.assert_allclose(found.r, expected, rtol=1e-6)
    np.testing.assert_allclose(found.r2, r2_score(true, predicted, multioutput="raw_values"), rtol=1e-6)
    mean = training.mean(0, dtype=np.float64)
    for similarity, targets in ((found.to_test, true), (found.to_training, training)):
        whole = np.corrcoef(predicted - mean, targets - mean)[:30, 30:]
        np.testing.assert_allclose(similarity, whole, atol=1e-6)
    assert found.ceiling is None


def test_dimensions_that_do_not_vary_have_no_score(rng):
    true, predicted, training = (rng.standard_normal((10, 3)) for _ in range(3))
    true[:, 1], predicted[:, 2] = 7.0, -1e9
    found = quality.score_latents(predicted, true, training)
    assert np.isnan(found.r).tolist() == [False, True, True]
    assert np.isnan(found.r2).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="targets"):
        quality.score_latents(predicted, true[:, :2], training)


def test_the_ceiling_is_what_a_perfect_decoder_with_noise_reaches(rng):
    signal = rng.standard_normal((20_000, 4))
    noise = np.array([0.1, 0.5, 1.0, 3.0])
    first, second = (signal + noise * rng.standard_normal(signal.shape) for _ in range(2))
    reached = quality.column_correlation((first + second) / 2, signal)
    np.testing.assert_allclose(quality.noise_ceiling(first, second), reached, atol=0.02)
    np.testing.assert_allclose(reached, 1 / np.sqrt(1 + noise**2 / 2), atol=0.02)
    assert (quality.noise_ceiling(first, -second) == 0).all()


def test_the_ceiling_comes_from_the_halves_own_predictions(rng):
    x, y = rng.standard_normal((40, 15)), rng.standard_normal((40, 9)).astype(np.float32)
    halves = [rng.standard_normal((12, 15)) for _ in range(2)]
    decoder = RidgeDecoder(x.astype(np.float32))
    operators = tuple(decoder.operator(h.astype(np.float32), 5.0) for h in halves)
    predictions = [operator @ (y - y.mean(0)) for operator in operators]
    predicted, true = rng.standard_normal((12, 9)), rng.standard_normal((12, 9))
    found = quality.score_latents(predicted, true, y, operators, block=4)
    assert found.ceiling is not None
    for k in range(9):
        r = max(0.0, np.corrcoef(predictions[0][:, k], predictions[1][:, k])[0, 1])
        np.testing.assert_allclose(found.ceiling[k], np.sqrt(2 * r / (1 + r)), atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(2, 9), st.integers(2, 40), st.integers(1, 9), st.integers(0, 99))
def test_similarity_block_by_block_as_corrcoef(n, m, d, step, seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal((k, d)).astype(np.float32) for k in (n, m))
    total = quality.Similarity(n, m)
    for start in range(0, d, step):
        total.add(a[:, start : start + step], b[:, start : start + step])
    np.testing.assert_allclose(total.result(), np.corrcoef(a, b)[:n, n:], atol=1e-4)


def test_constant_rows_are_like_nothing(rng):
    a, b = rng.standard_normal((4, 33)).astype(np.float32), np.full((2, 33), 3.0, np.float32)
    total = quality.Similarity(4, 2)
    total.add(a, b)
    assert (total.result() == 0).all()


def test_ranks_count_a_tie_one_half():
    others = np.array([[0.1, 0.5, 0.5], [0.9, 0.2, 0.1], [0.0, 0.0, 0.0]])
    for noise in (0, 1e-8):  # equal targets' similarities differ by rounding
        found = quality.rank_among(np.array([0.5, 0.3, 0.1]), others - noise)
        assert found.rank.tolist() == [2, 2, 1]
        np.testing.assert_allclose(found.first, [1 / 3, 0, 1])


def test_equal_targets_tie_in_identification(rng):
    """As the text targets of images with the same caption do."""
    true, training = rng.standard_normal((9, 500)), rng.standard_normal((30, 500)).astype(np.float32)
    true[4], true[7] = true[1], true[1]
    predicted = true + rng.standard_normal(true.shape)
    found = two_way(quality.score_latents(predicted, true, training, block=64).to_test.astype(np.float32).T)
    assert found.ties == 6
    np.testing.assert_allclose(found.per_image[[1, 4, 7]], 7 / 8)
