"""Decoding quality before any picture: how well targets are predicted, and how well they could be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]

#: Elements of a target worked on at once, in float64.
_BLOCK = 1 << 23
#: A dimension whose spread is below this share of its size varies by rounding only.
_CONSTANT = 1e-6


class Rows(Protocol):
    """A two-dimensional array that is read when sliced: an ndarray, a memory map, or a store's rows."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Images, dimensions."""

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        """Read a block."""


@dataclass(frozen=True)
class DimensionScores:
    """Scores of every dimension of a target over test images.

    Attributes
    ----------
    r : ndarray of float64, (dims,)
        Pearson correlation of prediction and truth; NaN where either does not vary.
    r2 : ndarray of float64, (dims,)
        ``1 - sum((y - p)**2) / sum((y - mean(y))**2)``, the mean being that of the test images; NaN
        likewise.
    ceiling : ndarray of float64, (dims,), or None
        See :func:`prediction_ceiling`.
    """

    r: Vector
    r2: Vector
    ceiling: Vector | None = None


def dimension_scores(predicted: Rows, true: Rows) -> DimensionScores:
    """Score a target's predictions dimension by dimension.

    Parameters
    ----------
    predicted, true : array-like of float, (images, dims)
        The ridge's predictions, not calibrated, and the test images' targets. Read in blocks of columns.

    Raises
    ------
    ValueError
        Where shapes differ.
    """
    n, d = predicted.shape
    if tuple(true.shape) != (n, d):
        raise ValueError(f"predictions of shape {predicted.shape} for targets of shape {true.shape}")
    r, r2 = np.full(d, np.nan), np.full(d, np.nan)
    step = max(1, _BLOCK // max(1, n))
    for start in range(0, d, step):
        part = slice(start, min(start + step, d))
        p = np.asarray(predicted[:, part], dtype=np.float64)
        y = np.asarray(true[:, part], dtype=np.float64)
        r[part] = column_correlation(p, y)
        centred = y - y.mean(0)
        total = (centred**2).sum(0)
        varies = _varies(y, centred)
        r2[part][varies] = 1 - ((y - p) ** 2).sum(0)[varies] / total[varies]
    return DimensionScores(r, r2)


def column_correlation(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Vector:
    """Pearson correlation of each column of two arrays (n, d); NaN where a column does not vary."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    x, y = a - a.mean(0), b - b.mean(0)
    varies = _varies(a, x) & _varies(b, y)
    r = np.full(a.shape[1], np.nan)
    x, y = x[:, varies], y[:, varies]
    r[varies] = (x * y).sum(0) / np.sqrt((x**2).sum(0) * (y**2).sum(0))
    return np.asarray(np.clip(r, -1.0, 1.0))


def prediction_ceiling(first: Rows, second: Rows) -> Vector:
    """Give the correlation with the truth that the reliability of predictions allows.

    From predictions of the two halves of each test image's repeats: their correlation over images, r,
    is stepped up by Spearman and Brown's formula to the reliability of the prediction from all repeats,
    ``2 r / (1 + r)``; its square root bounds the correlation with any noise-free value (attenuation,
    Spearman 1904). It is a bound for this decoder on these voxels, not for any decoder.

    Parameters
    ----------
    first, second : array-like of float, (images, dims)

    Returns
    -------
    ndarray of float64, (dims,)
        Between 0 and 1; 0 where halves do not agree, NaN where a prediction does not vary.
    """
    n, d = first.shape
    ceiling = np.full(d, np.nan)
    step = max(1, _BLOCK // max(1, n))
    for start in range(0, d, step):
        part = slice(start, min(start + step, d))
        r = column_correlation(first[:, part], second[:, part])
        r = np.where(np.isnan(r), np.nan, np.clip(r, 0.0, 1.0))
        ceiling[part] = np.sqrt(2 * r / (1 + r))
    return ceiling


def similarity_to_all(predicted: Rows, candidates: Rows) -> Matrix:
    """Pearson correlation, over dimensions, of each prediction with each candidate's target.

    Parameters
    ----------
    predicted : array-like of float, (n, dims)
    candidates : array-like of float, (m, dims)
        Test images' targets, or those of the training images. Both are read in blocks of columns, in
        which sums are made, so nothing of the size (m, dims) is held.

    Returns
    -------
    ndarray of float64, (n, m)
        0 where a vector is constant.
    """
    (n, d), m = predicted.shape, candidates.shape[0]
    if candidates.shape[1] != d:
        raise ValueError(f"targets of {candidates.shape[1]} dimensions for predictions of {d}")
    dot = np.zeros((n, m))
    sums_p, sums_c, squares_p, squares_c = np.zeros(n), np.zeros(m), np.zeros(n), np.zeros(m)
    origin: Vector | None = None
    step = max(1, _BLOCK // (n + m))
    for start in range(0, d, step):
        part = slice(start, min(start + step, d))
        p = np.asarray(predicted[:, part], dtype=np.float64)
        c = np.asarray(candidates[:, part], dtype=np.float64)
        if origin is None:
            origin = np.array([c.mean()])
        p, c = p - origin, c - origin  # about a common origin: sums of squares keep their digits
        dot += p @ c.T
        for sums, squares, x in ((sums_p, squares_p, p), (sums_c, squares_c, c)):
            sums += x.sum(1)
            squares += np.einsum("ij,ij->i", x, x)
    covariance = dot - sums_p[:, None] * sums_c / d
    scale = np.sqrt(np.outer(_spread(squares_p, sums_p, d), _spread(squares_c, sums_c, d)))
    return np.divide(covariance, scale, out=np.zeros((n, m)), where=scale > 0)


def rank_among(own: Vector, others: Matrix) -> npt.NDArray[np.int64]:
    """Give the place of each prediction's own target among others (1: more similar than all).

    Parameters
    ----------
    own : ndarray of float64, (n,)
        Similarity of each prediction to its own target.
    others : ndarray of float64, (n, m)
        To the targets that it competes with. Ties count against it.
    """
    return np.asarray(1 + np.count_nonzero(others >= own[:, None], axis=1))


def _spread(squares: Vector, sums: Vector, d: int) -> Vector:
    spread = squares - sums**2 / d
    return np.where(spread <= 1e-10 * np.maximum(squares, 1e-300), 0.0, spread)


def _varies(x: Matrix, centred: Matrix) -> npt.NDArray[np.bool_]:
    size = np.abs(x).max(0)
    return np.asarray(np.abs(centred).max(0) > _CONSTANT * np.maximum(size, 1e-30))
