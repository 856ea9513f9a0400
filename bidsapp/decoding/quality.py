"""Decoding quality before any image is made: how well targets are predicted, and could be predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bidsapp.decoding.backends import NUMPY, Backend
from bidsapp.decoding.streaming import Predictor, Sliceable, TargetBlocks

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]

#: A dimension whose spread is below this share of its magnitude varies by rounding only.
_CONSTANT = 1e-6
#: Similarities that differ by less are ties: those of equal targets differ by float32 rounding.
_TIE = 1e-6


@dataclass(frozen=True)
class LatentScores:
    """How well a target is predicted, dimension by dimension and image by image.

    Attributes
    ----------
    r : ndarray of float64, (dims,)
        Pearson correlation of prediction and truth over test images; NaN where either does not vary.
    r2 : ndarray of float64, (dims,)
        ``1 - sum((y - p)**2) / sum((y - mean(y))**2)``, the mean being that of the test images; NaN
        where the truth does not vary.
    ceiling : ndarray of float64, (dims,), or None
        See :func:`noise_ceiling`.
    to_test, to_training : ndarray of float64, (n, n) and (n, m)
        Similarity of each prediction to the targets of test and training images: Pearson correlation
        over dimensions, each taken about its mean over the training images.
    """

    r: Vector
    r2: Vector
    ceiling: Vector | None
    to_test: Matrix
    to_training: Matrix


def score_latents(
    predicted: Sliceable,
    true: Sliceable,
    training: Sliceable,
    halves: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None,
    *,
    block: int | None = None,
    backend: Backend = NUMPY,
) -> LatentScores:
    """Score a target's predictions in one pass over the training targets.

    Parameters
    ----------
    predicted, true : array-like of float, (n, dims)
        The ridge's predictions, not calibrated, and the test images' targets; read by columns.
    training : array-like or HDF5 dataset of float, (m, dims)
        Training targets, read by columns.
    halves : pair of ndarray of float, (k, m), optional
        Operators of the halves of test images' repeats (``RidgeDecoder.operator``).
    block : int, optional
        Dimensions at once.

    Raises
    ------
    ValueError
        Where shapes do not match.
    """
    n, d = predicted.shape
    if tuple(true.shape) != (n, d) or training.shape[1] != d:
        shapes = f"predictions {(n, d)}, targets {true.shape}, training targets {training.shape}"
        raise ValueError(f"shapes do not match: {shapes}")
    r, r2 = np.full(d, np.nan), np.full(d, np.nan)
    ceiling = None if halves is None else np.full(d, np.nan)
    predictors = [] if halves is None else [Predictor(half, backend) for half in halves]
    to_test, to_training = Similarity(n, n), Similarity(n, training.shape[0])
    for part in TargetBlocks(training, block):
        columns = part.columns
        p = np.asarray(predicted[:, columns], dtype=np.float64)
        y = np.asarray(true[:, columns], dtype=np.float64)
        r[columns] = column_correlation(p, y)
        r2[columns] = _explained(p, y)
        if ceiling is not None:
            first, second = (predictor.predict(part) for predictor in predictors)
            ceiling[columns] = noise_ceiling(first, second)
        about = (p - part.mean).astype(np.float32)
        to_test.add(about, (y - part.mean).astype(np.float32))
        to_training.add(about, part.centred)
    return LatentScores(r, r2, ceiling, to_test.result(), to_training.result())


def _explained(p: Matrix, y: Matrix) -> Vector:
    centred = y - y.mean(0)
    r2 = np.full(y.shape[1], np.nan)
    varies = _varies(y, centred)
    r2[varies] = 1 - ((y - p) ** 2).sum(0)[varies] / (centred**2).sum(0)[varies]
    return r2


def column_correlation(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Vector:
    """Pearson correlation of each column of two arrays (n, d); NaN where a column does not vary."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    x, y = a - a.mean(0), b - b.mean(0)
    varies = _varies(a, x) & _varies(b, y)
    r = np.full(a.shape[1], np.nan)
    x, y = x[:, varies], y[:, varies]
    r[varies] = (x * y).sum(0) / np.sqrt((x**2).sum(0) * (y**2).sum(0))
    return np.asarray(np.clip(r, -1.0, 1.0))


def noise_ceiling(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> Vector:
    """Compute the highest correlation with the truth that the reliability of predictions allows.

    The predictions from two halves of each test image's repeats correlate over images with r. By the
    Spearman-Brown formula, the reliability of the prediction from all repeats is ``2 r / (1 + r)``; its
    square root bounds the correlation with any noise-free value (attenuation, Spearman 1904). The bound
    holds for this decoder on these voxels, not for any decoder.

    Parameters
    ----------
    first, second : ndarray of float, (images, dims)

    Returns
    -------
    ndarray of float64, (dims,)
        Between 0 and 1; 0 where the halves do not agree, NaN where a prediction does not vary.
    """
    r = column_correlation(first, second)
    r = np.where(np.isnan(r), np.nan, np.clip(r, 0.0, 1.0))
    return np.asarray(np.sqrt(2 * r / (1 + r)))


class Similarity:
    """Pearson correlation, over columns, of the n rows of one array with the m of another, block by block.

    Products are float32, their sums over blocks float64.
    """

    def __init__(self, n: int, m: int) -> None:
        self._dot = np.zeros((n, m))
        self._sums, self._squares = (np.zeros(n), np.zeros(m)), (np.zeros(n), np.zeros(m))
        self._d = 0

    def add(self, a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> None:
        """Add further columns, (n, k) and (m, k)."""
        self._dot += a @ b.T
        for sums, squares, x in zip(self._sums, self._squares, (a, b), strict=True):
            sums += x.sum(1, dtype=np.float64)
            squares += np.einsum("ij,ij->i", x, x, dtype=np.float64)
        self._d += a.shape[1]

    def result(self) -> Matrix:
        """Correlations, (n, m); 0 where a row is constant."""
        (sums_a, sums_b), d = self._sums, self._d
        covariance = self._dot - np.outer(sums_a, sums_b) / d
        spread = [_spread(q, s, d) for q, s in zip(self._squares, self._sums, strict=True)]
        scale = np.sqrt(np.outer(*spread))
        found = np.zeros_like(covariance)
        np.divide(covariance, scale, out=found, where=scale > 0)
        return np.asarray(np.clip(found, -1.0, 1.0))


class Ranks(NamedTuple):
    """Rank of each prediction's own target among others: see :func:`rank_among`."""

    rank: Vector
    first: Vector


def rank_among(own: Vector, others: Matrix) -> Ranks:
    """Rank each prediction's own target among others (1: more similar than all others).

    Parameters
    ----------
    own : ndarray of float64, (n,)
        Similarity of each prediction to its own target.
    others : ndarray of float64, (n, m)
        Similarity to the other targets.

    Returns
    -------
    Ranks
        ``rank``, (n,): a tie counts one half (stimuli with the same caption have the same text target).
        ``first``, (n,): 1 where the rank is 1, and 1 / k where k targets tie for it.
    """
    above = np.count_nonzero(others > own[:, None] + _TIE, axis=1)
    ties = np.count_nonzero(others >= own[:, None] - _TIE, axis=1) - above
    return Ranks(1 + above + ties / 2, (above == 0) / (1 + ties))


def _spread(squares: Vector, sums: Vector, d: int) -> Vector:
    spread = squares - sums**2 / d
    return np.where(spread <= 1e-10 * np.maximum(squares, 1e-300), 0.0, spread)


def _varies(x: Matrix, centred: Matrix) -> npt.NDArray[np.bool_]:
    size = np.abs(x).max(0)
    return np.asarray(np.abs(centred).max(0) > _CONSTANT * np.maximum(size, 1e-30))
