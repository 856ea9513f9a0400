"""The estimators keep scikit-learn's conventions; penalties are chosen as its RidgeCV chooses them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import RidgeCV as ReferenceCV
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from bidsapp.decoding import gram
from bidsapp.decoding.crossvalidation import AlphaSearch, Selection
from bidsapp.decoding.decoder import RidgeDecoder
from bidsapp.decoding.ridge import Ridge, RidgeCV

ALPHAS = (0.3, 3.0, 30.0, 300.0, 3000.0)


def data(n: int, p: int, d: int = 6, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p)) + 2
    y = 2 * x @ rng.normal(size=(p, d)) / np.sqrt(p) + rng.normal(size=(n, d)) + 5
    return x.astype(np.float32), y.astype(np.float32)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimator", [Ridge(), RidgeCV(), RidgeCV(cv=3)], ids=repr)
def test_scikit_learns_own_checks(estimator):
    results = check_estimator(estimator, on_fail=None, on_skip=None)
    failed = [f"{r['check_name']}: {r['exception']!r}" for r in results if r["status"] == "failed"]
    assert failed == []
    assert sum(r["status"] == "passed" for r in results) > 40


def test_parameters_clone_and_refuse_unknown_names():
    model = Ridge(3.0, precision="float64")
    assert clone(model).get_params() == {"alpha": 3.0, "precision": "float64"}
    assert model.set_params(alpha=7).get_params()["alpha"] == 7
    with pytest.raises(ValueError, match="alfa"):
        model.set_params(alfa=1)
    with pytest.raises(NotFittedError):
        model.predict(np.zeros((2, 3)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_precision_follows_the_targets(dtype, tolerance, monkeypatch):
    from sklearn.linear_model import Ridge as Reference

    monkeypatch.setattr(gram, "SMALL", 0)
    x, y = (a.astype(dtype) for a in data(40, 70))
    expected = Reference(alpha=30.0).fit(x.astype(np.float64), y.astype(np.float64)).predict(x)
    got = Ridge(30.0).fit(x, y).predict(x)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, expected, rtol=tolerance)


def test_it_works_inside_scikit_learn():
    x, y = data(120, 20)
    pipeline = make_pipeline(StandardScaler(), Ridge(10.0))
    scores = cross_val_score(pipeline, x, y, cv=3)
    assert (scores > 0.2).all()
    found = GridSearchCV(Ridge(), {"alpha": [1e-2, 1e6]}, cv=3).fit(x, y)
    assert found.best_params_ == {"alpha": 1e-2}
    assert pipeline.fit(x, y).score(x, y) > scores.mean()


@pytest.mark.parametrize("shape", [(40, 70), (70, 40), (50, 50), (55, 90)])
@pytest.mark.parametrize("offset", [0, 1000])
def test_leave_one_out_chooses_as_scikit_learn(shape, offset):
    x, y = data(*shape)
    x, y = x.astype(np.float64) + offset, y.astype(np.float64) + offset
    reference = ReferenceCV(ALPHAS, store_cv_results=True, scoring=None).fit(x, y)
    model = RidgeCV(ALPHAS).fit(x, y)
    expected = reference.cv_results_.mean(axis=(0, 1))
    np.testing.assert_allclose(model.selection_.errors, expected, rtol=1e-6)
    assert model.alpha_ == reference.alpha_
    np.testing.assert_allclose(model.best_score_, reference.best_score_, rtol=1e-6)
    np.testing.assert_allclose(model.predict(x[:5]), reference.predict(x[:5]), rtol=1e-4, atol=1e-4)
    assert model.selection_.alpha not in (ALPHAS[0], ALPHAS[-1])  # else any rule would pass


@pytest.mark.parametrize("n_folds", [2, 5, 7, 40])
@pytest.mark.parametrize("shape", [(40, 70), (70, 40)])
def test_k_folds_equal_refits(shape, n_folds):
    from sklearn.linear_model import Ridge as Reference
    from sklearn.model_selection import KFold, cross_val_predict

    x, y = (a.astype(np.float64) for a in data(*shape))
    found = AlphaSearch(RidgeDecoder(x), ALPHAS, n_folds).search(y)
    for alpha, error in zip(ALPHAS, found.errors, strict=True):
        predicted = cross_val_predict(Reference(alpha=alpha), x, y, cv=KFold(n_folds))
        np.testing.assert_allclose(error, np.mean((predicted - y) ** 2), rtol=1e-8)


@pytest.mark.parametrize("n_folds", [None, 4])
@pytest.mark.parametrize("shape", [(60, 110), (110, 60)])
def test_float32_and_blocks_of_targets_choose_the_same(shape, n_folds, monkeypatch):
    x, y = data(*shape)
    expected = AlphaSearch(RidgeDecoder(x), ALPHAS[2:], n_folds).search(y)
    monkeypatch.setattr(gram, "SMALL", 0)
    decoder = RidgeDecoder(x)
    search = AlphaSearch(decoder, ALPHAS[2:], n_folds)
    assert decoder.gram.dtype == np.float32
    for block in (None, 1, 4):
        found = search.search(y, block=block)
        np.testing.assert_allclose(found.errors, expected.errors, rtol=1e-4)
        assert found.alpha == expected.alpha


def test_one_search_serves_groups_of_targets():
    x, y = data(50, 80)
    search = AlphaSearch(RidgeDecoder(x), ALPHAS)
    easy, noise = search.search(y), search.search(np.random.default_rng(1).normal(size=(50, 9)))
    assert easy.alpha < noise.alpha == ALPHAS[-1]
    assert easy.errors == search.search(y).errors
    some = search.search(y, ALPHAS[3:])
    assert some.errors == easy.errors[3:]
    assert some.alphas == ALPHAS[3:]
    with pytest.raises(ValueError, match="not among"):
        search.search(y, [7.0])


def test_of_equal_errors_the_largest_penalty():
    assert Selection((1.0, 9.0, 3.0), (2.0, 2.0, 5.0)).alpha == 9.0


def test_what_cannot_be_searched_is_refused():
    x, y = data(12, 20)
    for alphas, match in (((), "at least one alpha"), ((1.0, 0.0), "alpha"), ((1.0, np.nan), "alpha")):
        with pytest.raises(ValueError, match=match):
            AlphaSearch(RidgeDecoder(x), alphas)
    for folds in (0, 1, 13):
        with pytest.raises(ValueError, match="folds"):
            AlphaSearch(RidgeDecoder(x), ALPHAS, folds)
    with pytest.raises(ValueError, match="too small"):
        AlphaSearch(RidgeDecoder(x), (1e-9,)).search(y)
    search = AlphaSearch(RidgeDecoder(x), ALPHAS)
    with pytest.raises(ValueError, match="rows"):
        search.search(y[:5])
    bad = y.copy()
    bad[3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        search.search(bad)


def test_the_pipeline_does_not_import_scikit_learn_for_its_ridge():
    code = "import sys, bidsapp.decoding.crossvalidation; assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
