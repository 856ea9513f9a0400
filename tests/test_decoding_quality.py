"""Quality of predicted targets, against numpy.corrcoef, scikit-learn and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import r2_score

from bidsapp.decoding import quality


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_each_dimension_as_corrcoef_and_r2_score(rng, monkeypatch):
    true = rng.standard_normal((30, 50)) * 3 + 100
    predicted = (true + rng.standard_normal((30, 50)) * 4).astype(np.float32)
    monkeypatch.setattr(quality, "_BLOCK", 30 * 7)  # several blocks, the last one short
    found = quality.dimension_scores(predicted, true)
    expected = [np.corrcoef(predicted[:, k], true[:, k])[0, 1] for k in range(50)]
    np.testing.assert_allclose(found.r, expected, rtol=1e-6)
    np.testing.assert_allclose(found.r2, r2_score(true, predicted, multioutput="raw_values"), rtol=1e-6)


def test_dimensions_that_do_not_vary_have_no_score(rng):
    true, predicted = rng.standard_normal((10, 3)), rng.standard_normal((10, 3))
    true[:, 1], predicted[:, 2] = 7.0, -1e9
    found = quality.dimension_scores(predicted, true)
    assert np.isnan(found.r).tolist() == [False, True, True]
    assert np.isnan(found.r2).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="shape"):
        quality.dimension_scores(predicted, true[:, :2])


def test_the_ceiling_is_what_a_perfect_decoder_with_noise_reaches(rng):
    signal = rng.standard_normal((20_000, 4))
    noise = np.array([0.1, 0.5, 1.0, 3.0])
    first, second = (signal + noise * rng.standard_normal(signal.shape) for _ in range(2))
    reached = quality.column_correlation((first + second) / 2, signal)
    np.testing.assert_allclose(quality.prediction_ceiling(first, second), reached, atol=0.02)
    np.testing.assert_allclose(reached, 1 / np.sqrt(1 + noise**2 / 2), atol=0.02)
    assert (quality.prediction_ceiling(first, -second) == 0).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(2, 9), st.integers(2, 40), st.floats(-1e4, 1e4), st.integers(0, 99))
def test_similarity_to_all_as_corrcoef(n, m, d, offset, seed):
    rng = np.random.default_rng(seed)
    predicted, candidates = rng.standard_normal((n, d)) + offset, rng.standard_normal((m, d)) + offset
    expected = np.corrcoef(predicted, candidates)[:n, n:]
    np.testing.assert_allclose(quality.similarity_to_all(predicted, candidates), expected, atol=1e-7)


def test_similarity_goes_through_blocks_and_constant_rows(rng, monkeypatch):
    predicted, candidates = rng.standard_normal((4, 33)), rng.standard_normal((5, 33))
    whole = quality.similarity_to_all(predicted, candidates)
    monkeypatch.setattr(quality, "_BLOCK", 9 * 4)
    np.testing.assert_allclose(quality.similarity_to_all(predicted, candidates), whole, atol=1e-12)
    candidates[2] = 3.0
    assert (quality.similarity_to_all(predicted, candidates)[:, 2] == 0).all()


def test_ranks_count_ties_against():
    others = np.array([[0.1, 0.5, 0.5], [0.9, 0.2, 0.1], [0.0, 0.0, 0.0]])
    assert quality.rank_among(np.array([0.5, 0.3, 0.1]), others).tolist() == [3, 2, 1]
