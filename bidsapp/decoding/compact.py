"""A fitted ridge as two factors, which are small and tolerate rounding.

With ``Gram + alpha I = L L^T`` (n x n where images are fewer than voxels: "dual"; else p x p), predictions
are

    prediction = mean(Y) + (x - mean(x)) P C

    dual      P = X^T L^-T   (p, n)      C = L^-1 Y        (n, d)
    primal    P = L^-T       (p, p)      C = L^-1 X^T Y    (p, d)

with X and Y about their means. ``C`` is as large as the dual coefficients ``(K + alpha I)^-1 Y`` or the
weights, but costs half the work (one triangular solve instead of two) and may be rounded: rounding C by a
share e of a column's size changes predictions by about the same share, whatever the condition of the Gram
matrix, since the length of ``(x - mean(x)) P`` is bounded by the penalty. The same rounding of the dual
coefficients would be amplified by the condition.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bidsapp.decoding.decoder import RidgeDecoder
from bidsapp.decoding.gram import blocks
from bidsapp.decoding.streaming import TargetBlock

Array = npt.NDArray[np.float32]

#: Up to this condition the factor is used in float32: its own condition is the square root, so the error of
#: C relative to its size stays below 1e-4.
_MAX_CONDITION = 1e5
#: C is stored as integers up to this, times one factor per column.
LEVELS = 32767


class CompactForm:
    """The factors of a fit with one penalty, made block by block."""

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
        """Give P by blocks of voxels: the voxels, and their rows of P, float32 (b, rank)."""
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
        """Give C of some targets, transposed: float32 (b, rank), one row per target."""
        right = self._backend.put(block.centred.astype(self._dtype, copy=False))
        if not self._gram.is_dual:
            right = self._backend.put(self._gram.project(right, self._dtype))
        solved = self._backend.take(self._backend.solve_lower(self._factor, right))
        return np.ascontiguousarray(solved.T, dtype=np.float32)


def quantise(coefficients: Array) -> tuple[npt.NDArray[np.int16], Array]:
    """Round each row of ``coefficients`` (b, rank) to 16-bit integers times a factor of its own.

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


def row_blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Cut the rows of a float32 matrix into blocks of about 128 MiB."""
    return blocks(n_rows, n_columns, 1 << 25)


def features(x: npt.NDArray[Any], mean: npt.NDArray[np.float64], projection: Any) -> Array:
    """Multiply responses about their training mean by P: float32 (m, rank).

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
    for voxels in row_blocks(n_voxels, rank):
        centred = (x[:, voxels] - mean[voxels]).astype(np.float32)
        out += centred @ np.asarray(projection[voxels])
    return out
