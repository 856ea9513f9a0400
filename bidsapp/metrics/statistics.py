"""Intervals and nulls: bootstrap over images, permutation of the pairing."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

#: Random numbers drawn at once.
_BLOCK = 1 << 21


class Interval(NamedTuple):
    """An interval, ends included."""

    low: float
    high: float


def percentile_interval(values: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Give the central interval that holds ``level`` of the values (linear interpolation).

    Parameters
    ----------
    values : array-like of float, (n,)
    level : float
        Between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, {level} given")
    tail = (1 - level) / 2
    low, high = np.quantile(_finite(values), [tail, 1 - tail])
    return Interval(float(low), float(high))


def bootstrap_interval(
    values: npt.ArrayLike, seed: int, *, n_resamples: int = 2000, level: float = 0.95
) -> Interval:
    """Percentile bootstrap interval of a mean, images being the unit drawn.

    Identification scores of images share their comparison images, so for them the interval is
    approximate: it tells how the mean varies with the choice of images, the comparisons held.

    Parameters
    ----------
    values : array-like of float, (n,)
        One value an image.
    seed : int
    n_resamples : int
    level : float

    Returns
    -------
    Interval

    Notes
    -----
    Efron & Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    x = _finite(values)
    rng = np.random.default_rng(seed)
    means = np.empty(n_resamples)
    step = max(1, _BLOCK // x.size)
    for start in range(0, n_resamples, step):
        k = min(step, n_resamples - start)
        means[start : start + k] = x[rng.integers(0, x.size, (k, x.size))].mean(axis=1)
    return percentile_interval(means, level)


def pairing_null(scores: npt.NDArray[Any], seed: int, n_permutations: int = 1000) -> Vector:
    """Means of a score under random pairings of reconstructions and ground truths.

    Parameters
    ----------
    scores : ndarray, (n, n)
        ``scores[i, j]``: what reconstruction j would score were i its ground truth.
    seed : int
    n_permutations : int

    Returns
    -------
    ndarray of float64, (n_permutations,)
        Each the mean of ``scores[pi(j), j]`` over j, for a random permutation pi. Their expectation
        is the mean of ``scores``.
    """
    n = check_square(scores)
    rng = np.random.default_rng(seed)
    columns = np.arange(n)
    return np.array([scores[rng.permutation(n), columns].mean() for _ in range(n_permutations)])


def permutation_p(observed: float, null: npt.ArrayLike) -> float:
    """One-sided p-value, ``(1 + #{null >= observed}) / (1 + len(null))``.

    Phipson & Smyth (2010), Stat. Appl. Genet. Mol. Biol. 9:39: never zero, and valid at any number of
    permutations.
    """
    draws = _finite(null)
    return float((1 + np.count_nonzero(draws >= observed)) / (1 + draws.size))


def check_square(matrix: npt.NDArray[Any]) -> int:
    """Give the side of a square matrix of at least 2 x 2 finite values; ValueError for any other."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] < 2:
        raise ValueError(f"a square matrix of at least two images is needed, shape {matrix.shape} given")
    if not np.isfinite(matrix).all():
        raise ValueError("the matrix holds NaN or infinite values")
    return int(matrix.shape[0])


def _finite(values: npt.ArrayLike) -> Vector:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size < 1 or not np.isfinite(x).all():
        raise ValueError("a non-empty vector of finite values is needed")
    return x
