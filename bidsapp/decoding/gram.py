"""The Gram matrix of centred responses, which all penalties and all targets of a ridge share.

It is formed in the cheaper of the two spaces, (n, n) where n <= p ("dual"), (p, p) otherwise ("primal"), by
blocks of x, in float32 where that is accurate enough and in float64 elsewhere. Centring x (and y) is
equivalent to an unpenalised intercept.

Accuracy: rounding disturbs the Gram matrix by about ``eps * largest eigenvalue``, and solutions, relative to
``alpha``, by ``eps * condition`` with ``condition = largest eigenvalue / alpha``. So float32 (eps 6e-8) keeps
1e-4 up to a condition of 1e3, float64 (eps 1.1e-16) up to 1e12; beyond that a fit is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bidsapp.decoding.backends import NUMPY, Backend, Matrix

Precision = Literal["auto", "float32", "float64"]

#: With "auto", a Gram matrix of at most this many rows is in float64 from the start: it costs little.
SMALL = 1024
#: Largest condition for which a precision keeps predictions within 1e-4 of their scale.
MAX_CONDITION = {np.dtype("f4"): 1e3, np.dtype("f8"): 1e12}
#: Elements of X worked on at once.
BLOCK = 1 << 24


def blocks(length: int, other: int, n_elements: int) -> Iterator[slice]:
    """Cut ``range(length)`` so that a block times ``other`` has about ``n_elements`` elements."""
    step = max(1, n_elements // max(1, other))
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


class CentredGram:
    """Gram matrix of ``x`` about its mean, its last factor, and products with ``x``.

    ``x`` is kept by reference (a memory map may be given). Memory is two matrices of the Gram matrix's
    size and one block of x.

    Parameters
    ----------
    x : array-like of float, (n, p)
    precision : {"auto", "float32", "float64"}
    backend : Backend
        Where the matrices are stored.

    Raises
    ------
    ValueError
        For fewer than two rows, or values that are not finite.
    """

    def __init__(self, x: npt.ArrayLike, precision: Precision = "auto", backend: Backend = NUMPY) -> None:
        x = x if isinstance(x, np.ndarray) else np.asarray(x)
        if x.ndim != 2 or x.shape[0] < 2 or x.shape[1] < 1:
            raise ValueError(f"x has shape {x.shape}; expected (n >= 2, p >= 1)")
        if precision not in ("auto", "float32", "float64"):
            raise ValueError(f"precision {precision!r} is not one of auto, float32, float64")
        self.x = x
        total = np.zeros(x.shape[1])
        for rows in blocks(x.shape[0], x.shape[1], BLOCK):
            total += x[rows].sum(axis=0, dtype=np.float64)
        #: Mean of each column, float64 (p,).
        self.mean: npt.NDArray[np.float64] = total / x.shape[0]
        if not np.isfinite(self.mean).all():
            raise ValueError("x contains NaN or infinite values")
        self.backend = backend if backend.factorises else NUMPY
        self._precision: Precision = precision
        small = min(x.shape) <= SMALL
        self._dtype = np.dtype("f8" if precision == "float64" or (small and precision == "auto") else "f4")
        self._gram: Matrix = None
        self._largest: float | None = None
        self._factor: tuple[float, Matrix] | None = None

    @property
    def is_dual(self) -> bool:
        """Whether the Gram matrix is (n, n) rather than (p, p)."""
        return bool(self.x.shape[0] <= self.x.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Current precision of the Gram matrix; a smaller alpha may raise it."""
        return self._dtype

    def condition(self, alpha: float) -> float:
        """Largest eigenvalue over alpha, which bounds the effect of rounding."""
        if self._largest is None:
            self._largest = self.backend.largest_eigenvalue(self._matrix())
        return self._largest / alpha

    def ensure_precision(self, alpha: float) -> None:
        """Raise the precision of the Gram matrix, if needed, to one that is enough for this alpha.

        Raises
        ------
        ValueError
            For an alpha that is not a positive number, or is too small for the precision.
        """
        if not (np.isfinite(alpha) and alpha > 0):
            raise ValueError(f"alpha must be a positive number, not {alpha}")
        condition = self.condition(alpha)
        limit = MAX_CONDITION[self._dtype]
        if condition > limit and self._precision == "auto" and self._dtype == np.float32:
            self._dtype, self._gram, self._factor = np.dtype("f8"), None, None
            limit = MAX_CONDITION[self._dtype]
        if condition > limit:
            raise ValueError(
                f"alpha {alpha:g} is too small for {self._dtype}: the Gram matrix's largest eigenvalue is "
                f"{condition * alpha:.3g}, so choose an alpha of at least {condition * alpha / limit:.3g}"
            )

    def factor(self, alpha: float) -> Matrix:
        """Cholesky factor of (Gram + alpha I), lower triangular; the last alpha's is kept."""
        alpha = float(alpha)
        if self._factor is not None and self._factor[0] == alpha:
            return self._factor[1]
        self.ensure_precision(alpha)
        self._factor = None  # frees its memory before the next is made
        self._factor = (alpha, self.backend.cholesky(self._matrix(), alpha))
        return self._factor[1]

    def solve(self, right: Matrix, alpha: float) -> Matrix:
        """Solve (Gram + alpha I) z = right, column-wise."""
        return self.backend.solve(self.factor(alpha), right)

    def inverse_rows(self, rows: npt.NDArray[np.intp], alpha: float) -> npt.NDArray[Any]:
        """Rows of (K + alpha I)^-1 in dual form, (k, n), in the precision of the factor."""
        self.factor(alpha)
        units = np.zeros((self.x.shape[0], rows.size), dtype=self.dtype, order="F")
        units[rows, np.arange(rows.size)] = 1
        inverse: npt.NDArray[Any] = self.backend.take(self.solve(self.backend.put(units), alpha)).T
        return inverse

    def eigh(self, smallest_alpha: float) -> tuple[Matrix, Matrix]:
        """Eigenvalues, ascending, and eigenvectors, accurate for penalties of at least ``smallest_alpha``.

        They overwrite the Gram matrix, which is computed again if a factor is needed later.
        """
        self.ensure_precision(float(smallest_alpha))
        self._factor = None
        gram, self._gram = self._matrix(), None
        return self.backend.eigh(gram)

    def products_with(self, x_new: npt.NDArray[Any], dtype: np.dtype[Any]) -> Matrix:
        """Products of new rows (m, p) and x, both about x's mean: (m, n)."""
        products = None
        for columns in self.column_blocks():
            new = np.ascontiguousarray(x_new[:, columns] - self.mean[columns], dtype=dtype)
            product = self.backend.put(new) @ self.columns(columns, dtype).T
            products = product if products is None else products.__iadd__(product)
        return products

    def project(self, duals: Matrix, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Give the transposed x times duals (n, d): (p, d)."""
        out = np.empty((self.x.shape[1], duals.shape[1]), dtype=dtype)
        for columns in self.column_blocks():
            out[columns] = self.backend.take(self.columns(columns, dtype).T @ duals)
        return out

    def project_back(self, weights: Matrix, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Give x times weights (p, d): (n, d)."""
        out = np.empty((self.x.shape[0], weights.shape[1]), dtype=dtype)
        for rows in blocks(self.x.shape[0], self.x.shape[1], BLOCK):
            out[rows] = self.backend.take(self.rows(rows, dtype) @ weights)
        return out

    def columns(self, columns: slice, dtype: np.dtype[Any]) -> Matrix:
        """Give some columns of x about the mean, on the backend."""
        return self.backend.put(np.ascontiguousarray(self.x[:, columns] - self.mean[columns], dtype=dtype))

    def rows(self, rows: slice, dtype: np.dtype[Any]) -> Matrix:
        """Give some rows of x about the mean, on the backend."""
        return self.backend.put(np.ascontiguousarray(self.x[rows] - self.mean, dtype=dtype))

    def column_blocks(self) -> Iterator[slice]:
        """Cut the columns of x into blocks."""
        return blocks(self.x.shape[1], self.x.shape[0], BLOCK)

    def _matrix(self) -> Matrix:
        """Give the Gram matrix, computed when first needed; only its lower triangle is filled."""
        if self._gram is None:
            size = min(self.x.shape)
            gram = self.backend.zeros((size, size), self._dtype)
            if self.is_dual:
                for columns in self.column_blocks():
                    gram = self.backend.add_products(gram, self.columns(columns, self._dtype), of_rows=True)
            else:
                for rows in blocks(self.x.shape[0], self.x.shape[1], BLOCK):
                    gram = self.backend.add_products(gram, self.rows(rows, self._dtype), of_rows=False)
            self._gram = gram
        return self._gram
