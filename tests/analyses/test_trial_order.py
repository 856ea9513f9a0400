"""The check of trial order: a session out of step is found, and the step is named."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.analyses.trial_order import LAGS, check_trial_order


def simulate(n_sessions=3, n_images=120, n_voxels=300, noise=3.0, seed=0):
    """Every image once a session, in an order of its own; responses with noise and slow drifts."""
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((n_images, n_voxels))
    betas, shown = [], []
    for _ in range(n_sessions):
        order = rng.permutation(n_images)
        drift = np.cumsum(rng.standard_normal((n_images, n_voxels)), axis=0) * 0.1
        rows = signal[order] + noise * rng.standard_normal((n_images, n_voxels)) + drift
        betas.append((rows * 2 + 5).astype(np.float32))
        shown.append([f"pic{i}" for i in order])
    return betas, shown


def best(found):
    return found.lags[int(np.argmax(found.correlation))]


def test_sessions_in_step_match_best_unshifted():
    betas, shown = simulate()
    for found in check_trial_order(betas, shown, ["1", "2", "3"]):
        assert best(found) == 0
        zero = found.lags.index(0)
        assert found.correlation[zero] > 5 * found.error[zero]
        assert found.n_trials == 120 - 2 * max(LAGS)


@pytest.mark.parametrize("step", [-2, -1, 1, 3])
def test_a_session_out_of_step_is_named_with_its_step(step):
    betas, shown = simulate()
    shown[1] = [*shown[1][step:], *shown[1][:step]]  # trial t now lists what trial t + step showed
    first, second, third = check_trial_order(betas, shown, ["1", "2", "3"])
    assert (best(first), best(second), best(third)) == (0, step, 0)
    place = second.lags.index(step)
    gain = second.correlation[place] - second.correlation[second.lags.index(0)]
    assert gain > 4 * second.error[place]


def test_noise_prefers_no_lag():
    rng = np.random.default_rng(1)
    _, shown = simulate()
    betas = [rng.standard_normal((120, 300)).astype(np.float32) for _ in shown]
    for found in check_trial_order(betas, shown, ["1", "2", "3"]):
        zero = found.lags.index(0)
        gains = np.delete((found.correlation - found.correlation[zero]) / found.error, zero)
        assert np.abs(gains).max() < 4
        assert abs(found.correlation[zero]) < 4 * found.error[zero]


def test_without_repeats_in_other_sessions_nothing_is_claimed():
    betas, _ = simulate(n_sessions=2)
    shown = [[f"a{i}" for i in range(120)], [f"b{i}" for i in range(120)]]
    for found in check_trial_order(betas, shown, ["1", "2"]):
        assert found.n_trials == 0
        assert np.isnan(found.correlation).all()


def test_correlations_equal_a_literal_computation_and_bad_voxels_do_not_matter():
    betas, shown = simulate(n_sessions=2, n_images=40, n_voxels=30)
    z = [(b - b.astype(float).mean(0)) / b.astype(float).std(0) for b in betas]
    other = {i: z[1][t] for t, i in enumerate(shown[1])}
    inside = range(3, 37)
    expected = [
        np.mean([np.corrcoef(z[0][t + lag], other[shown[0][t]])[0, 1] for t in inside]) for lag in LAGS
    ]
    found = check_trial_order(betas, shown, ["1", "2"])[0]
    np.testing.assert_allclose(found.correlation, expected, atol=1e-6)
    bad = [np.column_stack([b, np.full(40, np.nan, np.float32), np.zeros(40, np.float32)]) for b in betas]
    again = check_trial_order(bad, shown, ["1", "2"])[0]
    np.testing.assert_allclose(again.correlation, expected, atol=1e-6)
