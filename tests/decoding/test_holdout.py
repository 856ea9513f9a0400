"""Predictions without groups of training rows: exactly those of ridges refitted without them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from bidsapp.decoding.decoder import RidgeDecoder
from bidsapp.decoding.holdout import about_own_mean, holdout_operator, residual_rows
from bidsapp.decoding.streaming import predict_blocks


def data(n: int, p: int):
    rng = np.random.default_rng(n + p)
    x = rng.standard_normal((n, p)) + 3 * rng.standard_normal(p)
    y = x @ rng.standard_normal((p, 5)) + rng.standard_normal((n, 5)) + 10
    left_out = [np.array([0, 4, 7]), np.arange(8, 20), np.array([], dtype=int)]
    return x, y, rng.standard_normal((9, p)), left_out, np.array([2, 0, 1, 1, 0, 2, 0, 1, 1])


@pytest.mark.parametrize("shape", [(30, 50), (40, 12)], ids=["dual", "primal"])
@pytest.mark.parametrize("alpha", [0.5, 20.0, 5000.0])
def test_as_refitted_without_the_group(shape, alpha):
    x, y, x_new, left_out, group = data(*shape)
    operator = holdout_operator(RidgeDecoder(x), x_new, alpha, left_out, group)
    for i, number in enumerate(group):
        rest = np.setdiff1d(np.arange(len(x)), left_out[number])
        expected = Ridge(alpha).fit(x[rest], y[rest]).predict(x_new[i : i + 1])[0]
        np.testing.assert_allclose(operator[i] @ y, expected, rtol=1e-8)
        assert (operator[i, left_out[number]] == 0).all()
        centred = about_own_mean(operator, left_out, group)[i]
        np.testing.assert_allclose(centred @ y, expected - y[rest].mean(0), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(operator.sum(1), 1, rtol=1e-10)
    np.testing.assert_allclose(predict_blocks(operator, y), operator @ y, rtol=1e-5)


@pytest.mark.parametrize("shape", [(30, 50), (40, 12)], ids=["dual", "primal"])
def test_residuals_of_the_fit(shape):
    x, y, *_ = data(*shape)
    rows = np.array([3, 11, 5])
    fitted = Ridge(7.0).fit(x, y).predict(x[rows])
    np.testing.assert_allclose(residual_rows(RidgeDecoder(x), 7.0, rows) @ y, y[rows] - fitted, rtol=1e-7)


def test_targets_of_the_rows_left_out_do_not_matter():
    x, y, x_new, left_out, group = data(30, 50)
    operator = holdout_operator(RidgeDecoder(x), x_new, 3.0, left_out, group)
    changed = y.copy()
    changed[left_out[1]] = 1e6
    ones = group == 1
    np.testing.assert_array_equal(operator[ones] @ changed, operator[ones] @ y)
    assert not np.allclose(operator[~ones] @ changed, operator[~ones] @ y)


def test_what_can_not_be_left_out_is_refused():
    x, _, x_new, _, group = data(30, 50)
    with pytest.raises(ValueError, match="leaves only 1 of 30"):
        holdout_operator(RidgeDecoder(x), x_new, 3.0, [np.arange(29)] * 3, group)
    with pytest.raises(ValueError, match="of 2 groups"):
        holdout_operator(RidgeDecoder(x), x_new, 3.0, [np.arange(3)] * 2, group)
    with pytest.raises(ValueError, match="too small"):
        holdout_operator(RidgeDecoder(x), x_new, 1e-9, [np.arange(3)] * 3, group)
