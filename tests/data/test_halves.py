"""Halves of repeats, against a literal recomputation."""

from __future__ import annotations

import numpy as np

from bidsapp.data.halves import split_halves


def test_repeats_are_dealt_in_turn_and_standardised():
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
