"""The share of the way from luck to the oracle."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.metrics.shares import mean_with_interval, share_of_range


def test_known_shares_and_their_intervals_hold_them():
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


def test_no_share_where_the_oracle_is_no_better_than_luck():
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
