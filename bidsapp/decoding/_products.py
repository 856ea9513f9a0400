"""Products of large matrices with themselves, in blocks, and what is needed to judge them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import blas

from bidsapp.decoding._lapack import add_syrk


def blocks(length: int, other: int, n_elements: int) -> Iterator[slice]:
    """Cut ``range(length)`` so that a block times ``other`` has about ``n_elements`` elements."""
    step = max(1, n_elements // other)
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def column_means(x: npt.NDArray[Any], n_elements: int) -> npt.NDArray[np.float64]:
    """Means of the columns of ``x`` (n, p), summed in float64 by blocks of rows."""
    total = np.zeros(x.shape[1])
    for rows in blocks(x.shape[0], x.shape[1], n_elements):
        total += x[rows].sum(axis=0, dtype=np.float64)
    mean: npt.NDArray[np.float64] = total / x.shape[0]
    return mean


def add_products(lower: npt.NDArray[Any], block: npt.NDArray[Any], *, of_rows: bool) -> npt.NDArray[Any]:
    """Add the products of a block's rows (or columns) with each other to a lower triangle, in place.

    BLAS's syrk makes only one triangle, which is half the work of a general product.

    Parameters
    ----------
    lower : ndarray of float32 or float64, (k, k)
        Column-major; what lies above the diagonal is left alone.
    block : ndarray of the same dtype, C-contiguous
        (k, b) with ``of_rows``, (b, k) without.
    of_rows : bool
        Add ``block @ block.T`` if true, else ``block.T @ block``.
    """
    return add_syrk(lower, block, of_rows=of_rows)


def largest_eigenvalue(lower: npt.NDArray[Any], n_iterations: int = 12) -> float:
    """Estimate the largest eigenvalue of a symmetric matrix, given by its lower triangle.

    Power iteration from a fixed start; the estimate is from below, close enough to judge a condition.
    """
    symv = blas.ssymv if lower.dtype == np.float32 else blas.dsymv
    start = np.random.default_rng(0).normal(size=(lower.shape[0],))
    vector: npt.NDArray[Any] = start.astype(lower.dtype)
    value = 0.0
    for _ in range(n_iterations):
        norm = float(np.linalg.norm(vector))
        if norm == 0:
            return 0.0
        vector = symv(1.0, lower, vector / vector.dtype.type(norm), lower=1)
        value = float(np.linalg.norm(vector))
    return value


def mirror(lower: npt.NDArray[Any], step: int = 1024) -> None:
    """Copy a square matrix's lower triangle to its upper one, in place, by blocks of columns."""
    for start in range(0, lower.shape[0], step):
        here = slice(start, start + step)
        corner = lower[here, here]
        corner[...] = np.tril(corner) + np.tril(corner, -1).T
        lower[here, start + step :] = lower[start + step :, here].T
