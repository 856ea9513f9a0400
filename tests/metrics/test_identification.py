"""Identification against literal loops, and its properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bidsapp.metrics import identification as module
from bidsapp.metrics.identification import (
    similarity,
    top1,
    top1_table,
    two_way,
    two_way_null,
    two_way_table,
)
from bidsapp.metrics.statistics import percentile_interval

#: Square matrices of few distinct values, so that ties are common.
matrices = st.integers(2, 8).flatmap(
    lambda n: hnp.arrays(np.float64, (n, n), elements=st.integers(-2, 2).map(lambda v: v / 2))
)


def _literal(r):
    """Two-way scores, ties and top-1 by the definition, one comparison at a time."""
    n = len(r)
    scores, ties, first = np.zeros(n), 0, np.zeros(n)
    for j in range(n):
        wins = 0
        for i in range(n):
            if i != j:
                wins += (r[i, j] < r[j, j]) + (r[i, j] == r[j, j]) / 2
                ties += r[i, j] == r[j, j]
        scores[j] = wins / (n - 1)
        best = np.flatnonzero(r[:, j] == r[:, j].max())
        first[j] = (j in best) / len(best)
    return scores, ties, first


@settings(max_examples=150, deadline=None)
@given(matrices)
def test_equals_a_double_loop(r):
    scores, ties, first = _literal(r)
    result = two_way(r)
    np.testing.assert_array_equal(result.per_image, scores)
    assert result.ties == ties
    assert result.mean == pytest.approx(scores.mean())
    np.testing.assert_array_equal(top1(r), first)


@settings(max_examples=60, deadline=None)
@given(matrices)
def test_tables_are_the_scores_of_every_pairing(r):
    n = len(r)
    pairs, firsts = two_way_table(r), top1_table(r)
    for shift in range(n):
        order = np.roll(np.arange(n), shift)  # ground truth order[j] is declared reconstruction j's own
        scores, _, first = _literal(r[order])
        np.testing.assert_allclose(pairs[order, np.arange(n)], scores, rtol=1e-12)
        np.testing.assert_array_equal(firsts[order, np.arange(n)], first)


@settings(max_examples=60, deadline=None)
@given(matrices, st.randoms(use_true_random=False))
def test_order_of_images_does_not_matter(r, random):
    order = list(range(len(r)))
    random.shuffle(order)
    moved = r[np.ix_(order, order)]
    np.testing.assert_array_equal(two_way(moved).per_image, two_way(r).per_image[order])
    np.testing.assert_array_equal(top1(moved), top1(r)[order])
    assert two_way(moved).ties == two_way(r).ties


@settings(max_examples=60, deadline=None)
@given(matrices)
def test_chance_is_a_half_and_one_in_n_whatever_ties(r):
    assert two_way_table(r).mean() == pytest.approx(0.5)
    assert top1_table(r).mean() == pytest.approx(1 / len(r))


@pytest.mark.parametrize("noise", [0.0, 1e-8, 1e-7])
def test_equal_images_tie_even_if_their_features_differ_by_rounding(noise):
    rng = np.random.default_rng(0)
    r = rng.uniform(-1, 1, (8, 8))
    r[5] = r[2]
    clean = two_way(r)
    assert clean.ties == 2
    assert clean.per_image[2] * 7 % 1 == clean.per_image[5] * 7 % 1 == 0.5
    noisy = r + rng.uniform(-noise, noise, r.shape)
    np.testing.assert_array_equal(two_way(noisy).per_image, clean.per_image)
    np.testing.assert_array_equal(two_way_table(noisy), two_way_table(r))
    np.testing.assert_array_equal(top1(noisy), top1(r))


def test_similarity_is_corrcoef(monkeypatch):
    rng = np.random.default_rng(0)
    for dtype, offset in (("float32", 0), ("float64", 100), ("float16", 0)):
        a, b = ((rng.normal(size=(7, 5, 11)) + offset).astype(dtype) for _ in range(2))
        expected = np.corrcoef(a.reshape(7, -1).astype(float), b.reshape(7, -1).astype(float))[:7, 7:]
        np.testing.assert_allclose(similarity(a, b), expected, atol=1e-10)
        monkeypatch.setattr(module, "_BLOCK", 7 * 4)  # several blocks of features
        np.testing.assert_allclose(similarity(a, b), expected, atol=1e-10)
        assert similarity(a, b).dtype == np.float64


def test_similarity_of_uint8_images():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.diagonal(similarity(a, a)), 1)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6, -3.3])
def test_constant_features_tie_with_everything(constant):
    rng = np.random.default_rng(0)
    gt = rng.normal(size=(6, 50)).astype(np.float32)
    rec = np.full((6, 50), constant, np.float32)
    r = similarity(gt, rec)
    np.testing.assert_array_equal(r, 0)
    result = two_way(r)
    assert result.mean == 0.5
    assert result.ties == 30
    assert top1(r).mean() == pytest.approx(1 / 6)


def test_one_reconstruction_for_all_images_is_at_chance():
    rng = np.random.default_rng(0)
    gt = rng.normal(size=(9, 300)).astype(np.float32)
    rec = np.repeat(rng.normal(size=(1, 300)).astype(np.float32), 9, axis=0)
    result = two_way(similarity(gt, rec))
    assert result.mean == pytest.approx(0.5)
    assert result.ties == 0
    assert top1(similarity(gt, rec)).mean() == pytest.approx(1 / 9)


def test_equal_ground_truths_tie():
    rng = np.random.default_rng(0)
    gt = rng.normal(size=(6, 700))
    gt[3] = gt[1]
    result = two_way(similarity(gt, gt))
    assert result.ties == 2
    np.testing.assert_allclose(result.per_image, [1, 0.9, 1, 0.9, 1, 1])
    np.testing.assert_array_equal(top1(similarity(gt, gt)), [1, 0.5, 1, 0.5, 1, 1])


def test_null_interval_covers_chance_and_noise_but_not_signal():
    inside = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        gt = rng.normal(size=(40, 60))
        r = similarity(gt, rng.normal(size=(40, 60)))
        low, high = percentile_interval(two_way_null(r, seed, 400))
        assert low < 0.5 < high
        inside += low <= two_way(r).mean <= high
    assert inside >= 17  # of 20, at 95%
    r = similarity(gt, gt + rng.normal(size=gt.shape))
    assert two_way(r).mean > percentile_interval(two_way_null(r, 0)).high


def test_null_is_reproducible_and_wider_at_a_higher_level():
    r = similarity(*np.random.default_rng(0).normal(size=(2, 20, 30)))
    np.testing.assert_array_equal(two_way_null(r, 3, 50), two_way_null(r, 3, 50))
    assert not np.array_equal(two_way_null(r, 3, 50), two_way_null(r, 4, 50))
    wide, narrow = (percentile_interval(two_way_null(r, 0, 500), level) for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_refusals():
    good = np.zeros((3, 3))
    bad = good.copy()
    bad[0, 1] = np.nan
    for r in (good[:2], good[:1, :1], bad, good[0]):
        for function in (two_way, top1, two_way_table, top1_table):
            with pytest.raises(ValueError, match=r"square|NaN"):
                function(r)
    for a, b in ((good, good[:2]), (bad, good), (np.zeros((2, 0)), np.zeros((2, 0)))):
        with pytest.raises(ValueError, match=r"agree|NaN"):
            similarity(a, b)
