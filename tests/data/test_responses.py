"""Averages and halves of repeats, z-scores and dropped voxels, against literal recomputation in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bidsapp.data.responses import average_repeats, count_dropped, split_halves, zscore
from bidsapp.errors import AppError, ExitCode


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=8), min_size=1, max_size=3), st.integers(0, 99)
)
def test_average_equals_literal_mean(design, seed):
    rng = np.random.default_rng(seed)
    betas = [rng.normal(1e4, 1, (len(s), 3)).astype(np.float32) for s in design]
    ids = [[f"s{i}" for i in session] for session in design]
    shown = sorted({i for session in ids for i in session})
    wanted = list(rng.permutation(shown))
    got, repeats = average_repeats(betas, ids, wanted)
    assert got.dtype == np.float32
    assert got.shape == (len(wanted), 3)
    for row, stimulus in enumerate(wanted):
        rows = [b[t] for b, s in zip(betas, ids, strict=True) for t, i in enumerate(s) if i == stimulus]
        assert repeats[row] == len(rows)
        np.testing.assert_array_equal(
            got[row], np.mean(np.array(rows, np.float64), axis=0).astype(np.float32)
        )


def test_average_propagates_nan_only_where_it_is():
    a = np.ones((2, 3), np.float32)
    a[1, 2] = np.nan
    got, _ = average_repeats([a, a[:1]], [["x", "y"], ["y"]], ["y", "x"])
    np.testing.assert_array_equal(np.isnan(got), [[False, False, True], [False, False, False]])


def test_average_of_a_stimulus_never_shown():
    with pytest.raises(AppError, match=r"2 stimuli .* never shown.*: p, q") as caught:
        average_repeats([np.ones((1, 2), np.float32)], [["x"]], ["x", "p", "q"])
    assert caught.value.exit_code == ExitCode.BAD_DATA


def test_average_refuses_inconsistent_arguments():
    one = np.ones((1, 2), np.float32)
    for betas, ids, wanted in (
        ([one], [["x", "y"]], ["x"]),
        ([one, one], [["x"]], ["x"]),
        ([one], [["x"]], ["x", "x"]),
        ([one, one[:, :1]], [["x"], ["x"]], ["x"]),
    ):
        with pytest.raises(ValueError, match=r"betas|distinct|shape"):
            average_repeats(betas, ids, wanted)


@pytest.mark.parametrize("block", [1, 50, 1 << 22])
def test_zscore_is_the_definition(monkeypatch, block):
    monkeypatch.setattr("bidsapp.data.responses._BLOCK", block)
    rng = np.random.default_rng(0)
    train = (rng.normal(size=(30, 7)) * 3 + 100).astype(np.float32)
    test = rng.normal(size=(4, 7)).astype(np.float32)
    z = zscore(train, test)
    mean, std = train.astype(np.float64).mean(0), train.astype(np.float64).std(0, ddof=1)
    np.testing.assert_allclose(z.train, (train - mean) / std, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(z.test, (test - mean) / std, rtol=1e-6)
    np.testing.assert_allclose(z.train.astype(np.float64).std(0, ddof=1), 1, rtol=1e-6)
    np.testing.assert_allclose(z.mean, mean, rtol=1e-14)
    np.testing.assert_allclose(z.std, std, rtol=1e-12)
    assert count_dropped(z.kept, z.finite) == (0, 0)
    assert z.train.dtype == z.test.dtype == np.float32


def test_zscore_drops_constant_and_nan_voxels_and_counts_them():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(20, 6)).astype(np.float32), rng.normal(size=(3, 6)).astype(np.float32)
    train[:, 0] = 0.1
    train[4, 2] = np.nan
    test[1, 3] = np.inf
    z = zscore(train, test)
    np.testing.assert_array_equal(z.kept, [False, True, False, False, True, True])
    assert count_dropped(z.kept, z.finite) == (2, 1)
    assert z.train.shape == (20, 3)
    assert z.test.shape == (3, 3)
    whole = zscore(train[:, [1, 4, 5]], test[:, [1, 4, 5]])
    np.testing.assert_array_equal(z.train, whole.train)
    np.testing.assert_array_equal(z.test, whole.test)


def test_zscore_without_any_usable_voxel():
    with pytest.raises(AppError, match="None of the 2 voxels") as caught:
        zscore(np.ones((5, 2), np.float32), np.ones((2, 2), np.float32))
    assert caught.value.exit_code == ExitCode.BAD_DATA
    with pytest.raises(AppError, match="too few"):
        zscore(np.ones((1, 2), np.float32), np.ones((2, 2), np.float32))


def test_repeats_are_assigned_in_turn_and_standardised():
    rng = np.random.default_rng(0)
    shown = [["a", "b", "a", "c"], ["b", "a", "d", "d"]]
    betas = [rng.standard_normal((4, 6)).astype(np.float32) for _ in shown]
    kept = np.array([1, 1, 0, 1, 1, 1], dtype=bool)
    mean, std = rng.standard_normal(5), rng.uniform(1, 2, 5)
    repeated, first, second = split_halves(betas, shown, ("d", "c", "a", "b"), mean, std, kept)
    assert repeated == ("d", "a", "b")  # c was shown once

    def z(rows):
        return (np.mean(rows, axis=0)[kept] - mean) / std

    expected_first = [z([betas[1][2]]), z([betas[0][0], betas[1][1]]), z([betas[0][1]])]
    expected_second = [z([betas[1][3]]), z([betas[0][2]]), z([betas[1][0]])]
    np.testing.assert_allclose(first, expected_first, rtol=1e-5)
    np.testing.assert_allclose(second, expected_second, rtol=1e-5)


def test_nothing_repeated_gives_nothing():
    betas = [np.ones((2, 3), np.float32)]
    repeated, first, second = split_halves(
        betas, [["a", "b"]], ("a", "b"), np.zeros(3), np.ones(3), np.ones(3, bool)
    )
    assert repeated == ()
    assert first.shape == second.shape == (0, 3)
