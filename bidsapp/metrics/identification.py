"""Identification: whether a reconstruction is more similar to its own stimulus than to others.

``r[i, j]`` is the similarity of stimulus i and reconstruction j throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bidsapp.metrics.statistics import check_square, pairing_null

Matrix = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float64]

#: Values in a block of feature columns.
_BLOCK = 1 << 23
#: A feature vector whose spread is below this share of its size varies by rounding only.
_CONSTANT = 1e-10
#: Correlations are rounded to this many decimals.
_DECIMALS = 12
#: Similarities that differ by less are ties: features of equal images differ by float32 rounding, which
#: depends on their position in a batch.
TIE = 1e-6


@dataclass(frozen=True)
class TwoWay:
    """Result of two-way identification.

    Attributes
    ----------
    per_image : ndarray of float64, (n,)
        For each reconstruction the share of the other stimuli that are less similar to it than its
        own; a tie counts one half.
    mean : float
        Chance is 0.5.
    ties : int
        Number of the ``n * (n - 1)`` pairs of a reconstruction and another stimulus that are as similar
        as its own pair, within rounding. With many ties the score has little meaning.
    """

    per_image: Vector
    mean: float
    ties: int


def similarity(f_gt: npt.ArrayLike, f_rec: npt.ArrayLike) -> Matrix:
    """Pearson correlation of every stimulus' features with every reconstruction's.

    Parameters
    ----------
    f_gt, f_rec : array-like, (n, ...)
        Features of stimuli and reconstructions; further axes are flattened.

    Returns
    -------
    ndarray of float64, (n, n)
        Stimuli in rows: ``numpy.corrcoef(f_gt, f_rec)[:n, n:]``, rounded to 12 decimals, and 0
        where a feature vector is constant (corrcoef has NaN there).

    Raises
    ------
    ValueError
        Where shapes differ, n < 1, or values are not finite.
    """
    a, b = (np.asarray(f).reshape(np.shape(f)[0], -1) for f in (f_gt, f_rec))
    if a.shape != b.shape or a.shape[0] < 1 or a.shape[1] < 1:
        raise ValueError(f"features of shapes {np.shape(f_gt)} and {np.shape(f_rec)} given; they must agree")
    n, d = a.shape
    mean_a, mean_b = (f.mean(axis=1, dtype=np.float64)[:, None] for f in (a, b))
    if not (np.isfinite(mean_a).all() and np.isfinite(mean_b).all()):
        raise ValueError("the features contain NaN or infinite values")
    r = np.zeros((n, n))
    squares_a, squares_b = np.zeros(n), np.zeros(n)
    step = max(1, _BLOCK // n)
    for start in range(0, d, step):
        block_a = a[:, start : start + step] - mean_a
        block_b = b[:, start : start + step] - mean_b
        r += block_a @ block_b.T
        squares_a += np.einsum("ij,ij->i", block_a, block_a)
        squares_b += np.einsum("ij,ij->i", block_b, block_b)
    r *= _inverse_norm(squares_a, mean_a[:, 0], d)[:, None]
    r *= _inverse_norm(squares_b, mean_b[:, 0], d)
    return np.round(r, _DECIMALS)


def _inverse_norm(squares: Vector, mean: Vector, d: int) -> Vector:
    """1 / norm of centred features; 0 where they vary by rounding only."""
    norm = np.sqrt(squares)
    flat = norm <= _CONSTANT * np.abs(mean) * np.sqrt(d)
    return np.where(flat, 0.0, 1.0 / np.where(flat, 1.0, norm))


def comparisons(r: npt.NDArray[Any]) -> Matrix:
    """Compare each reconstruction's own stimulus with every other.

    Parameters
    ----------
    r : ndarray, (n, n)
        From :func:`similarity`; stimuli in rows.

    Returns
    -------
    ndarray of float64, (n, n)
        1 where stimulus i is less similar to reconstruction j than its own, 0 where it is more, 0.5
        where they tie, as on the diagonal.
    """
    own = np.diagonal(r)
    return np.asarray(((r < own - TIE) + 1.0 * (r <= own + TIE)) / 2)


def two_way(r: npt.NDArray[Any]) -> TwoWay:
    """Two-way identification, ``sum_i(r[i, j] < r[j, j]) / (n - 1)`` for each reconstruction j.

    As in Ozcelik & VanRullen 2023 (arXiv 2303.05334), except that a tie counts one half, so that chance is
    0.5 however many images are alike. (The published code counts it as wrong; photographs do not tie.)

    Parameters
    ----------
    r : ndarray, (n, n)
        From :func:`similarity`; stimuli in rows.

    Raises
    ------
    ValueError
        For a matrix that is not square, of one image only, or not finite.
    """
    n = check_square(r)
    won = comparisons(r)
    per_image = (won.sum(axis=0) - 0.5) / (n - 1)
    ties = int(np.count_nonzero(won == 0.5)) - n
    return TwoWay(per_image=per_image, mean=float(per_image.mean()), ties=ties)


def top1(r: npt.NDArray[Any]) -> Vector:
    """Top-1 retrieval: 1 where a reconstruction is most similar to its own stimulus, else 0.

    Where k stimuli tie for the first place, its own among them, it is 1 / k. Chance is 1 / n.

    Parameters
    ----------
    r : ndarray, (n, n)
        From :func:`similarity`; stimuli in rows.

    Returns
    -------
    ndarray of float64, (n,)

    Raises
    ------
    ValueError
        As :func:`two_way`.
    """
    check_square(r)
    won = comparisons(r)
    return np.asarray((won > 0).all(axis=0) / np.count_nonzero(won == 0.5, axis=0))


def two_way_table(r: npt.NDArray[Any]) -> Matrix:
    """Two-way score of reconstruction j if stimulus i were its own, for all i and j, (n, n).

    Its diagonal is ``two_way(r).per_image``.
    """
    below, up_to = _ranks(r)
    return np.asarray((below + (up_to - below - 1) / 2) / (len(r) - 1))


def top1_table(r: npt.NDArray[Any]) -> Matrix:
    """Top-1 score of reconstruction j if stimulus i were its own, for all i and j, (n, n)."""
    below, up_to = _ranks(r)
    return np.asarray((up_to == len(r)) / (up_to - below))


def _ranks(r: npt.NDArray[Any]) -> tuple[Matrix, Matrix]:
    """How many stimuli are less similar than each, and how many are not more similar (ties included)."""
    n = check_square(r)
    below, up_to = np.empty((n, n)), np.empty((n, n))
    for j in range(n):
        column, ascending = r[:, j], np.sort(r[:, j])
        below[:, j] = np.searchsorted(ascending, column - TIE, side="left")
        up_to[:, j] = np.searchsorted(ascending, column + TIE, side="right")
    return below, up_to


def two_way_null(r: npt.NDArray[Any], seed: int, n_permutations: int = 1000) -> Vector:
    """Mean two-way scores under random pairings of reconstructions and stimuli, (n_permutations,)."""
    return pairing_null(two_way_table(r), seed, n_permutations)
