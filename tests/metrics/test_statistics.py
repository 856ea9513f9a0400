"""Bootstrap, permutation nulls and p-values: closed forms and coverage."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from bidsapp.metrics.statistics import (
    bootstrap_interval,
    mean_with_interval,
    pairing_null,
    percentile_interval,
    permutation_p,
    share_of_range,
)


def test_bootstrap_approaches_the_normal_interval():
    values = np.random.default_rng(0).normal(2, 3, 400)
    low, high = bootstrap_interval(values, 1, n_resamples=8000)
    half = 1.96 * values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)


def test_bootstrap_covers_the_mean():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        low, high = bootstrap_interval(rng.normal(1, 1, 50), seed, n_resamples=300)
        covered += low <= 1 <= high
    assert 87 <= covered <= 99


def test_bootstrap_is_reproducible_and_blocks_do_not_matter(monkeypatch):
    values = np.random.default_rng(0).normal(size=30)
    first = bootstrap_interval(values, 5)
    assert first == bootstrap_interval(values, 5) != bootstrap_interval(values, 6)
    monkeypatch.setattr("bidsapp.metrics.statistics._BLOCK", 90)
    assert bootstrap_interval(values, 5) == first
    assert bootstrap_interval([4.0], 0) == (4.0, 4.0)


def test_pairing_null_draws_from_all_pairings():
    scores = np.random.default_rng(0).normal(size=(4, 4))
    every = {round(scores[list(p), range(4)].mean(), 10) for p in permutations(range(4))}
    draws = pairing_null(scores, 0, 2000)
    assert {round(v, 10) for v in draws} == every
    assert draws.mean() == pytest.approx(scores.mean(), abs=0.03)


def test_p_value_is_uniform_under_the_null():
    from scipy.stats import kstest

    p = []
    for seed in range(200):
        scores = np.random.default_rng(seed).normal(size=(12, 12))
        p.append(permutation_p(np.diagonal(scores).mean(), pairing_null(scores, seed, 199)))
    assert kstest(p, "uniform").pvalue > 0.05


def test_p_value_counts_ties_and_is_never_zero():
    assert permutation_p(2.0, [0.0, 1.0, 2.0, 3.0]) == pytest.approx(3 / 5)
    assert permutation_p(9.0, np.zeros(99)) == pytest.approx(0.01)


def test_percentiles():
    low, high = percentile_interval(np.arange(101), 0.9)
    assert (low, high) == pytest.approx((5.0, 95.0))


def test_refusals():
    for values in ([], [1.0, np.nan], [[1.0]]):
        with pytest.raises(ValueError, match="non-empty"):
            bootstrap_interval(values, 0)
        with pytest.raises(ValueError, match="non-empty"):
            permutation_p(0.0, values)
    for level in (0, 1, 95):
        with pytest.raises(ValueError, match="level"):
            percentile_interval([1.0], level)
    with pytest.raises(ValueError, match="square"):
        pairing_null(np.zeros((2, 3)), 0)


def test_known_shares_and_their_intervals_contain_them():
    rng = np.random.default_rng(0)
    null, oracle = rng.normal(0.5, 0.1, 400), rng.normal(0.95, 0.03, 400)
    for true in (0.0, 0.4, 1.0, 1.1):
        values = 0.5 + true * 0.45 + rng.normal(0, 0.1, 400)
        found = share_of_range(values, null, oracle, seed=1)
        assert found is not None
        assert found.mean == pytest.approx(true, abs=0.05)
        assert found.low < true < found.high
        assert found.high - found.low < 0.12
        exact = (values.mean() - null.mean()) / (oracle.mean() - null.mean())
        assert found.mean == pytest.approx(exact, rel=1e-12)


def test_metrics_that_are_better_when_lower_have_the_same_shares():
    rng = np.random.default_rng(0)
    v, null, oracle = rng.normal(0.7, 0.1, 100), rng.normal(0.5, 0.1, 100), rng.normal(0.9, 0.1, 100)
    up, down = share_of_range(v, null, oracle, 1), share_of_range(1 - v, 1 - null, 1 - oracle, 1)
    assert up is not None
    assert down is not None
    np.testing.assert_allclose([up.mean, up.low, up.high], [down.mean, down.low, down.high])


def test_no_share_where_the_oracle_is_not_above_the_null():
    rng = np.random.default_rng(0)
    null = rng.normal(0.5, 0.1, 50)
    assert share_of_range(null + 0.1, null, null + rng.normal(0, 0.1, 50), 1) is None
    assert share_of_range(null, null, null, 1) is None
    with pytest.raises(ValueError, match="agree"):
        share_of_range(null, null[1:], null, 1)


def test_means_leave_out_what_is_not_defined():
    found = mean_with_interval([1.0, np.nan, 3.0], 0)
    assert found.mean == 2.0
    assert np.isnan(mean_with_interval([np.nan], 0).mean)
