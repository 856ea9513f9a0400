"""Torch (on the CPU, which takes a GPU's code) against numpy; the choice between them."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.decoding import backends, gram
from bidsapp.decoding.backends import DEVICE_WORTH, NUMPY, TorchBackend, choose_backend
from bidsapp.decoding.compact import CompactForm
from bidsapp.decoding.crossvalidation import AlphaSearch
from bidsapp.decoding.decoder import RidgeDecoder
from bidsapp.decoding.streaming import TargetBlocks, predict_blocks

SHAPES = [(40, 70), (70, 40)]


class ProductsOnly(TorchBackend):
    """A device as Apple's MPS: no float64, no factorisation."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.factorises = False

    def put(self, a):
        assert a.dtype == np.float32
        return super().put(a)

    def cholesky(self, gram, alpha):
        raise AssertionError("numpy should do this")

    add_products = cholesky


def data(n: int, p: int, d: int = 6):
    rng = np.random.default_rng(0)
    x, y, x_new = rng.normal(size=(n, p)) + 2, rng.normal(size=(n, d)) + 5, rng.normal(size=(9, p))
    return tuple(a.astype(np.float32) for a in (x, y, x_new))


@pytest.mark.parametrize("small", [0, 4096], ids=["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_torch_equals_numpy(shape, small, monkeypatch):
    monkeypatch.setattr(gram, "SMALL", small)
    monkeypatch.setattr(gram, "BLOCK", 500)  # several blocks of x
    x, y, x_new = data(*shape)
    here, there = RidgeDecoder(x), RidgeDecoder(x, backend=TorchBackend("cpu"))
    for alpha in (3000.0, 50.0):
        for a, b in (
            (here.operator(x_new, alpha), there.operator(x_new, alpha)),
            (here.loo_operator(alpha, [3, 5]), there.loo_operator(alpha, [3, 5])),
            (here.weights(y, alpha), there.weights(y, alpha)),
        ):
            assert isinstance(b, np.ndarray)
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max())
    assert there.gram.dtype == here.gram.dtype == (np.float32 if small == 0 else np.float64)
    np.testing.assert_allclose(there.gram.condition(1.0), here.gram.condition(1.0), rtol=1e-4)


@pytest.mark.parametrize("operator_type", [np.float32, np.float64])
def test_products_with_targets_equal_numpys(operator_type):
    x, y, x_new = data(40, 70)
    operator = RidgeDecoder(x).operator(x_new, 50.0).astype(operator_type)
    expected = predict_blocks(operator, y)
    for block in (None, 4):
        got = predict_blocks(operator, y, block=block, backend=TorchBackend("cpu"))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("n_folds", [None, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_penalties_are_searched_alike(shape, n_folds):
    x, y, _ = data(*shape)
    alphas = (1.0, 100.0, 1e4)
    here, there = (
        AlphaSearch(RidgeDecoder(x, backend=b), alphas, n_folds).search(y)
        for b in (NUMPY, TorchBackend("cpu"))
    )
    np.testing.assert_allclose(here.errors, there.errors, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_device_that_only_multiplies(shape):
    x, y, x_new = data(*shape)
    backend = ProductsOnly()
    decoder = RidgeDecoder(x, backend=backend)
    operator = decoder.operator(x_new, 50.0)
    np.testing.assert_array_equal(operator, RidgeDecoder(x).operator(x_new, 50.0))
    np.testing.assert_allclose(
        predict_blocks(operator, y, backend=backend), predict_blocks(operator, y), rtol=1e-5
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("small", [0, 4096], ids=["float32", "float64"])
def test_the_model_files_factors_are_alike(shape, small, monkeypatch):
    monkeypatch.setattr(gram, "SMALL", small)
    x, y, _ = data(*shape)
    (block,) = TargetBlocks(y)
    here, there = (CompactForm(RidgeDecoder(x, backend=b), 50.0) for b in (NUMPY, TorchBackend("cpu")))
    np.testing.assert_allclose(there.coefficients(block), here.coefficients(block), rtol=1e-3, atol=1e-5)
    for (rows, a), (others, b) in zip(here.projection(), there.projection(), strict=True):
        assert rows == others
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_a_matrix_without_a_factor_is_refused():
    gram = np.asfortranarray(-np.eye(3))
    for backend in (NUMPY, TorchBackend("cpu")):
        with pytest.raises(ValueError, match="too small"):
            backend.cholesky(backend.put(gram), 0.5)


def test_the_cpu_is_numpys_and_a_device_is_taken_for_large_work(monkeypatch):
    assert choose_backend("cpu", 1e20) is NUMPY
    assert choose_backend("mps", DEVICE_WORTH / 2) is NUMPY
    monkeypatch.setattr(backends, "DEVICE_WORTH", 10.0)
    chosen = choose_backend("mps", 100.0)
    assert isinstance(chosen, TorchBackend)
    assert not chosen.factorises
    assert chosen.name == "torch on mps"
