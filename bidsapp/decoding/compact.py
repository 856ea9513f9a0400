"""A fitted ridge as two factors: few numbers, which bear rounding well.

With ``Gram + alpha I = L L^T`` (n x n where images are fewer than voxels: "dual"; else p x p), predictions
are

    prediction = mean(Y) + (x - mean(x)) P C

    dual      P = X^T L^-T   (p, n)      C = L^-1 Y        (n, d)
    primal    P = L^-T       (p, p)      C = L^-1 X^T Y    (p, d)

with X and Y about their means. ``C`` is as large as the dual coefficients ``(K + alpha I)^-1 Y`` or the
weights, costs half their work (one triangle is solved instead of two), and may be rounded: a rounding of
C by a share e of a column's size changes predictions by about the same share e, whatever the Gram
matrix's condition, since the length of ``(x - mean(x)) P`` is bounded by the penalty. Of the dual
coefficients the same rounding would be magnified by the condition.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bidsapp.decoding.decoder import RidgeDecoder
from bidsapp.decoding.streaming import TargetBlock

Array = npt.NDArray[np.float32]

#: Up to this condition the factor is used in float32: its own condition is the square root, and the error
#: of C relative to its size then stays below 1e-4.
_MAX_CONDITION = 1e5
#: C is stored as integers up to this, times a factor a column.
LEVELS = 32767


class CompactForm:
    """The factors of a fit, made block by block.

    Parameters
    ----------
    decoder : RidgeDecoder
        Of the training responses.
    alpha : float
        Penalty.
    """

    def __init__(self, decoder: RidgeDecoder, alpha: float) -> None:
        self._gram = decoder.gram
        self._backend = decoder.gram.backend
        factor = self._gram.factor(alpha)
        if self._gram.condition(alpha) <= _MAX_CONDITION and self._gram.dtype != np.float32:
            factor = self._backend.put(self._backend.take(factor).astype(np.float32, order="F"))
            self._dtype = np.dtype("f4")
        else:
            self._dtype = self._gram.dtype
        self._factor = factor
        #: Number of components, the smaller of n and p.
        self.rank = int(factor.shape[0])
        #: Number of voxels.
        self.n_features = decoder.n_features

    def projection(self) -> Iterator[tuple[slice, Array]]:
        """Give P by blocks of voxels: which, and their rows of P, float32 (b, rank)."""
        for voxels in self._gram.column_blocks():
            if self._gram.is_dual:
                right = self._gram.columns(voxels, self._dtype)
            else:
                units = np.zeros((self.rank, voxels.stop - voxels.start), dtype=self._dtype, order="F")
                units[np.arange(voxels.start, voxels.stop), np.arange(units.shape[1])] = 1
                right = self._backend.put(units)
            solved = self._backend.take(self._backend.solve_lower(self._factor, right))
            yield voxels, np.ascontiguousarray(solved.T, dtype=np.float32)

    def coefficients(self, block: TargetBlock) -> Array:
        """Give C of some targets, transposed: float32 (b, rank), a row a target."""
        right = self._backend.put(block.centred.astype(self._dtype, copy=False))
        if not self._gram.is_dual:
            right = self._backend.put(self._gram.project(right, self._dtype))
        solved = self._backend.take(self._backend.solve_lower(self._factor, right))
        return np.ascontiguousarray(solved.T, dtype=np.float32)


def quantise(coefficients: Array) -> tuple[npt.NDArray[np.int16], Array]:
    """Round each row to 16-bit integers times a factor of its own.

    Parameters
    ----------
    coefficients : ndarray of float32, (b, rank)

    Returns
    -------
    levels : ndarray of int16, (b, rank)
        From -32767 to 32767.
    factors : ndarray of float32, (b,)
        ``coefficients`` is about ``factors[:, None] * levels``, within half a factor.
    """
    largest = np.maximum(coefficients.max(axis=1), -coefficients.min(axis=1))
    factors = (largest / LEVELS).astype(np.float32)
    with np.errstate(divide="ignore"):
        scale = np.where(factors > 0, np.float32(1) / factors, np.float32(0))
    scaled = coefficients * scale[:, None]
    np.rint(scaled, out=scaled)
    np.clip(scaled, -LEVELS, LEVELS, out=scaled)
    return scaled.astype(np.int16), factors


def parts_of(n_rows: int, row_bytes: int, block_bytes: int = 1 << 27) -> Iterator[slice]:
    """Cut rows into blocks of about ``block_bytes``."""
    step = max(1, block_bytes // max(1, row_bytes))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def features(x: npt.NDArray[Any], mean: npt.NDArray[np.float64], projection: Any) -> Array:
    """Give the product of responses about their training mean and P, float32 (m, rank).

    Parameters
    ----------
    x : ndarray of float, (m, p)
        Responses, z-scored.
    mean : ndarray of float64, (p,)
        Mean of the training responses.
    projection : ndarray or HDF5 dataset of float32, (p, rank)
        Read by blocks of voxels.
    """
    n_voxels, rank = projection.shape
    out = np.zeros((x.shape[0], rank), dtype=np.float32)
    for voxels in parts_of(n_voxels, 4 * rank):
        centred = (x[:, voxels] - mean[voxels]).astype(np.float32)
        out += centred @ np.asarray(projection[voxels])
    return out
