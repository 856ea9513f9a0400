"""Intervals and nulls: bootstrap over images, permutation of the pairing, shares of a range."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bidsapp.evidence import Value

Vector = npt.NDArray[np.float64]

#: Random numbers drawn at once.
_BLOCK = 1 << 21
_RESAMPLES = 2000


class Interval(NamedTuple):
    """An interval, ends included."""

    low: float
    high: float


def percentile_interval(values: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Central interval with the share ``level`` of the values, (n,), by linear interpolation."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, {level} given")
    tail = (1 - level) / 2
    low, high = np.quantile(_finite(values), [tail, 1 - tail])
    return Interval(float(low), float(high))


def bootstrap_interval(
    values: npt.ArrayLike, seed: int, *, n_resamples: int = _RESAMPLES, level: float = 0.95
) -> Interval:
    """Percentile bootstrap interval of a mean over images.

    Identification scores of images share their comparison images, so for them the interval is
    approximate: it describes how the mean varies with the choice of images, given the comparisons.

    Parameters
    ----------
    values : array-like of float, (n,)
        One value per image.
    level : float
        Between 0 and 1.

    Raises
    ------
    ValueError
        For no values, or values that are not finite.

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


def mean_with_interval(values: npt.ArrayLike, seed: int) -> Value:
    """Mean over images, (n,), with its bootstrap 95% interval; NaN values are left out."""
    x = np.asarray(values, dtype=np.float64)
    x = x[np.isfinite(x)]
    if not x.size:
        return Value(float("nan"))
    return Value(float(x.mean()), *bootstrap_interval(x, seed))


def share_of_range(
    values: npt.ArrayLike, null: npt.ArrayLike, oracle: npt.ArrayLike, seed: int
) -> Value | None:
    """Share of the range between null and oracle that a condition recovers.

    ``(value - null) / (oracle - null)`` of means over the same images.

    Parameters
    ----------
    values, null, oracle : array-like of float, (n,)
        One metric of the same images in three conditions.

    Returns
    -------
    Value or None
        0 is the null, 1 the oracle; it may lie outside. The interval is a percentile bootstrap that
        draws the same images for all three. None where the interval of ``oracle - null`` contains 0, or
        any of its resamples is so small that the ratio has no meaning.
    """
    v, low, high = (np.asarray(x, dtype=np.float64) for x in (values, null, oracle))
    if not v.shape == low.shape == high.shape or v.ndim != 1:
        raise ValueError(f"values of shapes {v.shape}, {low.shape} and {high.shape}; they must agree")
    rows = np.random.default_rng(seed).integers(0, v.size, (_RESAMPLES, v.size))
    reach = (high - low)[rows].mean(1)
    bounds = percentile_interval(reach)
    centre = float((high - low).mean())
    if bounds.low <= 0 <= bounds.high or np.abs(reach).min() < 0.05 * abs(centre):
        return None
    return Value(float((v - low).mean()) / centre, *percentile_interval((v - low)[rows].mean(1) / reach))


def pairing_null(scores: npt.NDArray[Any], seed: int, n_permutations: int = 1000) -> Vector:
    """Means of a score under random pairings of reconstructions and stimuli.

    Parameters
    ----------
    scores : ndarray, (n, n)
        ``scores[i, j]``: the score of reconstruction j if i were its stimulus.

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
    permutations. ValueError for a null that is empty or not finite.
    """
    draws = _finite(null)
    return float((1 + np.count_nonzero(draws >= observed)) / (1 + draws.size))


def check_square(matrix: npt.NDArray[Any]) -> int:
    """Return the side of a square matrix of at least 2 x 2 finite values; ValueError for any other."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] < 2:
        raise ValueError(f"a square matrix of at least two images is needed, shape {matrix.shape} given")
    if not np.isfinite(matrix).all():
        raise ValueError("the matrix contains NaN or infinite values")
    return int(matrix.shape[0])


def _finite(values: npt.ArrayLike) -> Vector:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size < 1 or not np.isfinite(x).all():
        raise ValueError("a non-empty vector of finite values is needed")
    return x
