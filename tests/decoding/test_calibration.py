"""Calibration against its formula, and its fall-backs."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.decoding import calibration
from bidsapp.errors import AppError, ExitCode


def _arrays(seed: int = 0):
    rng = np.random.default_rng(seed)
    targets = (rng.normal(size=(40, 6)) * np.arange(1, 7) + 5).astype(np.float32)
    loo = (0.2 * targets[:25] + rng.normal(size=(25, 6)) * 0.1).astype(np.float32)
    test = rng.normal(size=(8, 6)).astype(np.float32)
    return loo, targets, test


@pytest.mark.parametrize("block", [1, 1 << 22])
def test_train_cv_is_the_formula(monkeypatch, block):
    monkeypatch.setattr(calibration, "_BLOCK", block)
    loo, targets, test = _arrays()
    got = calibration.fit(loo, targets, 1e-3).apply(test)
    l64, t64 = loo.astype(np.float64), targets.astype(np.float64)
    expected = (test - l64.mean(0)) / l64.std(0) * t64.std(0) + t64.mean(0)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_calibrated_training_predictions_have_the_targets_moments():
    loo, targets, _ = _arrays()
    got = calibration.fit(loo, targets).apply(loo).astype(np.float64)
    np.testing.assert_allclose(got.mean(0), targets.mean(0, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(got.std(0), targets.std(0, dtype=np.float64), rtol=1e-5)


def test_train_cv_does_not_depend_on_the_other_test_images():
    loo, targets, test = _arrays()
    fitted = calibration.fit(loo, targets)
    np.testing.assert_array_equal(fitted.apply(test)[2:3], fitted.apply(test[2:3]))


def test_targets_may_lie_on_disk(tmp_path):
    h5py = pytest.importorskip("h5py")
    loo, targets, test = _arrays()
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["targets"] = targets
        got = calibration.fit(loo, file["targets"]).apply(test)
    np.testing.assert_array_equal(got, calibration.fit(loo, targets).apply(test))


def test_transductive_is_the_published_arithmetic():
    _, targets, test = _arrays()
    p64, t64 = test.astype(np.float64), targets.astype(np.float64)
    expected = (p64 - p64.mean(0)) / p64.std(0) * t64.std(0) + t64.mean(0)
    np.testing.assert_allclose(calibration.transductive(test, targets), expected, rtol=1e-5, atol=1e-6)
    # The catch of it: other test images, another result.
    assert np.abs(calibration.transductive(test[:4], targets)[0] - expected[0]).max() > 0.1


def test_dimensions_that_hardly_vary_are_moved_but_not_scaled():
    loo, targets, test = _arrays()
    loo[:, 1] = 3.0
    loo[:, 2] *= 1e-5
    targets[:, 4] = 2.5
    loo[:, 5], targets[:, 5] = 1.0, 9.0
    fitted = calibration.fit(loo, targets, 1e-3)
    np.testing.assert_array_equal(fitted.unscaled, [False, True, True, False, False, True])
    np.testing.assert_array_equal(fitted.scale[[1, 2, 5]], 1)
    got = fitted.apply(test)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[:, 1], test[:, 1] - 3 + targets[:, 1].mean(dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(got[:, 4], 2.5)  # a constant target is predicted as that constant
    np.testing.assert_allclose(got[:, 5], test[:, 5] + 8, rtol=1e-5)


def test_transductive_constant_dimension_is_finite():
    _, targets, test = _arrays()
    test[:, 3] = 0.7
    got = calibration.transductive(test, targets)
    np.testing.assert_allclose(got[:, 3], targets[:, 3].mean(dtype=np.float64), rtol=1e-5)


def test_refusals():
    loo, targets, test = _arrays()
    with pytest.raises(AppError, match="at least two") as caught:
        calibration.transductive(test[:1], targets)
    assert caught.value.exit_code == ExitCode.BAD_DATA
    bad = loo.copy()
    bad[0, 0] = np.nan
    for args in ((loo[:1], targets), (loo[:, :3], targets), (bad, targets), (loo, targets, -1.0)):
        with pytest.raises(ValueError, match=r"expected|dimensions|NaN|negative"):
            calibration.fit(*args)
    with pytest.raises(ValueError, match="expected"):
        calibration.fit(loo, targets).apply(test[:, :3])
