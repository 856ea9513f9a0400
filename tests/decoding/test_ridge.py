"""Ridge against scikit-learn, real refits, and the normal equations in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bidsapp.decoding import gram as module
from bidsapp.decoding.decoder import RidgeDecoder
from bidsapp.decoding.ridge import Ridge
from bidsapp.decoding.streaming import predict_blocks


def _data(n: int, p: int, d: int, m: int = 9, seed: int = 0, offset: float = 3.0):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(p, d)) / np.sqrt(p)
    x, x_new = (rng.normal(size=(k, p)) + offset for k in (n, m))
    y = x @ w + rng.normal(size=(n, d)) + 7
    return x.astype(np.float32), y.astype(np.float32), x_new.astype(np.float32)


def _normal_equations(x, y, x_new, alpha):
    """Closed form, float64, with explicit weights and intercept."""
    x, y, x_new = (np.asarray(a, np.float64) for a in (x, y, x_new))
    xc, yc = x - x.mean(0), y - y.mean(0)
    w = np.linalg.solve(xc.T @ xc + alpha * np.eye(x.shape[1]), xc.T @ yc)
    return (x_new - x.mean(0)) @ w + y.mean(0)


@pytest.mark.parametrize(("n", "p"), [(40, 60), (60, 40), (50, 50), (30, 1), (2, 5)])
@pytest.mark.parametrize("alpha", [0.1, 10.0, 1e4])
def test_predictions_equal_sklearn_fitted_per_target(n, p, alpha):
    from sklearn.linear_model import Ridge as Reference

    x, y, x_new = _data(n, p, 4)
    model = Ridge(alpha).fit(x, y)
    got = model.predict(x_new)
    assert got.dtype == np.float32
    assert got.shape == (9, 4)
    for target in range(4):
        reference = Reference(alpha=alpha).fit(x.astype(np.float64), y[:, target].astype(np.float64))
        expected = reference.predict(x_new.astype(np.float64))
        np.testing.assert_allclose(got[:, target], expected, rtol=2e-6, atol=1e-5)
        np.testing.assert_allclose(model.coef_[target], reference.coef_, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(model.intercept_[target], reference.intercept_, rtol=1e-6)


def test_one_target_as_a_vector():
    x, y, x_new = _data(20, 30, 1)
    model = Ridge(2.0).fit(x, y[:, 0])
    assert model.predict(x_new).shape == (9,)
    assert model.coef_.shape == (30,)
    np.testing.assert_array_equal(model.predict(x_new), Ridge(2.0).fit(x, y).predict(x_new)[:, 0])


def test_himalaya_agrees():
    himalaya = pytest.importorskip("himalaya.ridge")
    x, y, x_new = _data(40, 60, 5)
    reference = (
        himalaya.Ridge(alpha=30.0, fit_intercept=True, solver_params={"warn": False}).fit(x, y).predict(x_new)
    )
    np.testing.assert_allclose(Ridge(30.0).fit(x, y).predict(x_new), reference, rtol=1e-4)


@pytest.mark.parametrize("precision", ["float64", "auto"])
@pytest.mark.parametrize(("n", "p"), [(24, 40), (40, 24), (25, 25)])
@pytest.mark.parametrize("alpha", [0.5, 20.0, 5e3])
def test_leave_one_out_equals_refits(n, p, alpha, precision):
    from sklearn.linear_model import Ridge as Reference

    x, y, _ = _data(n, p, 3)
    decoder = RidgeDecoder(x, precision=precision)
    got = predict_blocks(decoder.loo_operator(alpha), y)
    x, y = x.astype(np.float64), y.astype(np.float64)
    for i in range(n):
        rest = np.arange(n) != i
        expected = Reference(alpha=alpha).fit(x[rest], y[rest]).predict(x[i : i + 1])[0]
        np.testing.assert_allclose(got[i], expected, rtol=1e-5)


@pytest.mark.parametrize(("n", "p"), [(24, 40), (40, 24)])
def test_leave_one_out_of_some_rows(n, p):
    x, _, _ = _data(n, p, 1)
    decoder = RidgeDecoder(x)
    whole = decoder.loo_operator(3.0)
    rows = np.array([5, 0, 11])
    some = decoder.loo_operator(3.0, rows)
    assert some.shape == (3, n)
    assert some.dtype == np.float32
    np.testing.assert_allclose(some, whole[rows], rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(some[np.arange(3), rows], 0)
    np.testing.assert_allclose(whole.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(decoder.loo_operator(3.0, rows - n), some)
    with pytest.raises(IndexError):
        decoder.loo_operator(3.0, [n])


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 14), st.integers(1, 14), st.floats(0.05, 1e5), st.floats(-50, 50), st.integers(0, 99))
def test_property_operator_and_offsets(n, p, alpha, offset, seed):
    """The closed form holds for any shape; a shift of x changes nothing, one of y shifts predictions."""
    x, y, x_new = _data(n, p, 2, m=3, seed=seed, offset=0)
    decoder = RidgeDecoder(x.astype(np.float64))
    operator = decoder.operator(x_new, alpha)
    np.testing.assert_allclose(operator.sum(axis=1), 0, atol=1e-5)
    got = predict_blocks(operator, y)
    np.testing.assert_allclose(got, _normal_equations(x, y, x_new, alpha), rtol=1e-4, atol=1e-4)
    moved = RidgeDecoder(x.astype(np.float64) + offset).operator(x_new.astype(np.float64) + offset, alpha)
    np.testing.assert_allclose(moved, operator, atol=1e-5)
    np.testing.assert_allclose(predict_blocks(operator, y + np.float32(offset)), got + offset, atol=1e-4)


def test_float32_within_its_accuracy_and_switch_to_float64(monkeypatch):
    monkeypatch.setattr(module, "SMALL", 0)
    for n, p in ((80, 200), (200, 80)):
        x, y, x_new = _data(n, p, 6)
        decoder = RidgeDecoder(x)
        for alpha, dtype in ((1e4, np.float32), (100.0, np.float32), (1e-2, np.float64)):
            expected = _normal_equations(x, y, x_new, alpha)
            got = predict_blocks(decoder.operator(x_new, alpha), y)
            assert decoder.gram.factor(alpha).dtype == dtype
            assert np.abs(got - expected).max() < 1e-4 * expected.std()
        loo = decoder.loo_operator(100.0)
        np.testing.assert_allclose(loo, RidgeDecoder(x, precision="float64").loo_operator(100.0), atol=1e-5)


@pytest.mark.parametrize("shape", [(20, 33), (33, 20)])
def test_blocks_of_x_do_not_matter(monkeypatch, shape):
    x, _, x_new = _data(*shape, 1)
    whole = RidgeDecoder(x)
    expected, loo = whole.operator(x_new, 5.0), whole.loo_operator(5.0)
    monkeypatch.setattr(module, "BLOCK", 100)
    blocked = RidgeDecoder(x)
    np.testing.assert_allclose(blocked.operator(x_new, 5.0), expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(blocked.loo_operator(5.0), loo, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_blocks_of_targets(tmp_path, dtype):
    h5py = pytest.importorskip("h5py")
    x, y, x_new = _data(20, 30, 17)
    y = (y * 1000 if dtype == "float64" else y).astype(dtype)
    operator = RidgeDecoder(x).operator(x_new, 4.0)
    expected = _normal_equations(x, y, x_new, 4.0)
    scale = expected.std()
    for block in (None, 1, 5, 17, 100):
        got = predict_blocks(operator, y, block=block)
        assert np.abs(got - expected).max() < 1e-5 * scale
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["y"] = y
        out = file.create_dataset("out", (9, 17), dtype="f4")
        assert predict_blocks(operator, file["y"], block=4, out=out) is out
        assert np.abs(out[:] - expected).max() < 1e-5 * scale


def test_one_factor_serves_alphas_in_turn():
    x, _, x_new = _data(20, 30, 2)
    decoder = RidgeDecoder(x)
    first = decoder.operator(x_new, 1.0)
    decoder.operator(x_new, 50.0)
    np.testing.assert_array_equal(decoder.operator(x_new, 1.0), first)
    np.testing.assert_array_equal(RidgeDecoder(x).operator(x_new, 1.0), first)


def test_operators_of_several_penalties_are_those_of_each(monkeypatch):
    monkeypatch.setattr(module, "SMALL", 0)
    for n, p in ((20, 30), (30, 20)):
        x, _, x_new = _data(n, p, 2)
        alphas = (1e4, 50.0, 1e-2)  # the last one needs float64
        for alpha, got in zip(alphas, RidgeDecoder(x).operators(x_new, alphas), strict=True):
            expected = RidgeDecoder(x).operator(x_new, alpha)
            assert got.dtype == expected.dtype == (np.float64 if alpha < 1 else np.float32)
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-9)


def test_x_is_not_changed_and_may_be_a_memory_map(tmp_path):
    x, _, x_new = _data(20, 30, 2)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(
        RidgeDecoder(mapped).operator(x_new, 2.0), RidgeDecoder(x).operator(x_new, 2.0)
    )
    np.testing.assert_array_equal(x, np.load(tmp_path / "x.npy"))


def test_refusals():
    x, y, x_new = _data(10, 12, 2)
    decoder = RidgeDecoder(x)
    for alpha in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match="alpha"):
            decoder.operator(x_new, alpha)
    with pytest.raises(ValueError, match="too small"):
        RidgeDecoder(x).loo_operator(1e-12)
    nan = x.copy()
    nan[3, 4] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        RidgeDecoder(nan)
    for bad in (x[:1], x[0]):
        with pytest.raises(ValueError, match="shape"):
            RidgeDecoder(bad)
    with pytest.raises(ValueError, match="shape"):
        decoder.operator(x_new[:, :5], 1.0)
    with pytest.raises(ValueError, match="shape"):
        predict_blocks(decoder.operator(x_new, 1.0), y[:5])
    with pytest.raises(ValueError, match="inconsistent numbers"):
        Ridge().fit(x, y[:5])
    with pytest.raises(ValueError, match="precision"):
        RidgeDecoder(x, precision="float16")
