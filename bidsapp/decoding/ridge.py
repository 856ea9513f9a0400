"""Ridge regression with one factorisation for all targets.

The targets of a reconstruction (VDVAE latents, CLIP tokens) number in the hundred thousands, the
images in the thousands. Ridge predictions are linear in the training targets,

    prediction = mean(Y) + A (Y - mean(Y)),    A = K_new (K + alpha I)^-1,

with K the Gram matrix of the centred training responses and K_new the products of the centred new and
training responses. ``A`` (new images x training images) does not depend on the targets, so it is found
once for each alpha, and predicting any number of targets is one matrix product, done in blocks of
targets. No weights (voxels x targets) are formed. Centring both sides is the same as an unpenalised
intercept.

Source of the leave-one-out form: Hastie, Tibshirani & Friedman, The Elements of Statistical Learning,
2nd ed., eq. 7.64 (linear smoothers).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from scipy import linalg

from bidsapp.decoding._products import add_products, blocks, column_means, largest_eigenvalue

Array = npt.NDArray[np.float32]
Precision = Literal["auto", "float32", "float64"]

#: With "auto", a Gram matrix of at most this many rows is made in float64 at once: it costs little.
_SMALL = 4096
#: Above this condition number float32 would not keep predictions within 1e-4 of their scale.
_MAX_CONDITION_FLOAT32 = 1e3
#: Elements of X, or of targets, worked on at once.
_BLOCK = 1 << 24


class Sliceable(Protocol):
    """What targets must offer: an array, a memory map or an HDF5 dataset of shape (n, d)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(images, targets)."""
        ...

    def __getitem__(self, key: Any, /) -> Any:
        """Give ``y[:, a:b]`` as an array."""
        ...


class RidgeDecoder:
    """The part of a ridge regression that all alphas and all targets share.

    The Gram matrix is formed in the cheaper of the two spaces: (n, n) where n <= p ("dual"), (p, p)
    otherwise ("primal"). Beside ``x_train``, which is kept by reference (a memory map may be given),
    memory is two matrices of that size and one block of x.

    Parameters
    ----------
    x_train : array-like of float32, (n, p)
        Training responses (images x voxels). They need not be centred.
    precision : {"auto", "float32", "float64"}
        Of the Gram matrix and its factor. "auto" takes float64 where the Gram matrix is small (at
        most 4096 rows) or, for the alpha asked, too badly conditioned for float32 (condition number
        above 1e3), else float32. Either way predictions agree with float64 within 1e-4 of their scale.

    Raises
    ------
    ValueError
        For fewer than two rows, or values that are not finite.
    """

    def __init__(self, x_train: npt.ArrayLike, *, precision: Precision = "auto") -> None:
        x = x_train if isinstance(x_train, np.ndarray) else np.asarray(x_train)
        if x.ndim != 2 or x.shape[0] < 2 or x.shape[1] < 1:
            raise ValueError(f"x of shape {x.shape} given, (n >= 2, p >= 1) needed")
        if precision not in ("auto", "float32", "float64"):
            raise ValueError(f"precision {precision!r} is not one of auto, float32, float64")
        self._x = x
        self._mean = column_means(x, _BLOCK)
        if not np.isfinite(self._mean).all():
            raise ValueError("x holds NaN or infinite values")
        self._precision: Precision = precision
        small = min(x.shape) <= _SMALL
        self._dtype = np.dtype("f8" if precision == "float64" or (small and precision == "auto") else "f4")
        self._gram: npt.NDArray[Any] | None = None
        self._factor: tuple[float, npt.NDArray[Any]] | None = None

    @property
    def n_samples(self) -> int:
        """Number of training rows, n."""
        return int(self._x.shape[0])

    @property
    def n_features(self) -> int:
        """Number of voxels, p."""
        return int(self._x.shape[1])

    @property
    def is_dual(self) -> bool:
        """Whether the Gram matrix is (n, n) rather than (p, p)."""
        return self.n_samples <= self.n_features

    @property
    def x_mean(self) -> npt.NDArray[np.float64]:
        """Mean of every voxel over the training rows, (p,)."""
        return self._mean

    def operator(self, x_new: npt.ArrayLike, alpha: float) -> Array:
        """Give the matrix that turns training targets into predictions.

        Parameters
        ----------
        x_new : array-like, (m, p)
            New responses, in the units of ``x_train``.
        alpha : float
            Penalty on the squared weights, > 0 (scikit-learn's ``Ridge(alpha)``).

        Returns
        -------
        ndarray of float32, (m, n)
            ``A``, for :meth:`predict_blocks`.
        """
        return self._operator(x_new, alpha).astype(np.float32)

    def loo_operator(self, alpha: float, rows: npt.ArrayLike | None = None) -> Array:
        """Give the matrix of exact leave-one-out predictions of training rows.

        Row i predicts training row i from a ridge with intercept fitted to all the others, at the
        cost of a solve instead of n refits: with H the matrix that maps targets to fitted values,
        ``(H - diag H) / (1 - diag H)``. (What was done to x before, such as z-scoring with all rows,
        is not redone.)

        Parameters
        ----------
        alpha : float
            As in :meth:`operator`.
        rows : array-like of int, (k,), optional
            Training rows to predict; all by default, which needs an (n, n) result.

        Returns
        -------
        ndarray of float32, (k, n)
            For :meth:`predict_blocks`; entries at the row itself are 0.
        """
        n = self.n_samples
        index = np.arange(n) if rows is None else np.arange(n)[np.asarray(rows)]
        place = np.arange(index.size)
        if self.is_dual:
            # Of centred fits, H = I - alpha (K + alpha I)^-1, which spares the products with K.
            units = np.zeros((n, index.size), dtype=self._factor_for(alpha).dtype, order="F")
            units[index, place] = 1
            hat = -alpha * self._solve(units, alpha).T
            rest = -hat[place, index].astype(np.float64)
        else:
            hat = self._operator(self._x[index], alpha)
            rest = 1 - hat[place, index].astype(np.float64)
        rest -= 1 / n  # the intercept's share
        if not (rest > 1e-9).all():
            raise ValueError(f"alpha {alpha:g} is too small: the fit passes through the training targets")
        hat += 1 / n
        hat[place, index] = 0
        hat /= rest[:, None].astype(hat.dtype)
        return hat.astype(np.float32)

    def weights(self, y: npt.ArrayLike, alpha: float) -> npt.NDArray[Any]:
        """Give the weights (not needed to predict), (p, d), in the precision of the factor.

        Parameters
        ----------
        y : array-like, (n, d)
        alpha : float
        """
        y = np.asarray(y)
        if y.ndim != 2 or y.shape[0] != self.n_samples:
            raise ValueError(f"targets of shape {y.shape} given for {self.n_samples} training rows")
        dtype = self._factor_for(alpha).dtype
        centred = (y - y.mean(axis=0, dtype=np.float64)).astype(dtype)
        if self.is_dual:
            return self._project(self._solve(centred, alpha))
        return self._solve(self._project(centred), alpha)

    def coefficients(self, y: npt.ArrayLike, alpha: float) -> npt.NDArray[Any]:
        """Give the smaller form of a fit: dual coefficients (n, d), or weights (p, d) where not ``is_dual``.

        Predictions from the dual are ``mean(y) + (x_new - x_mean) @ (x_train - x_mean).T @ dual``.

        Parameters
        ----------
        y : array-like, (n, d)
        alpha : float
        """
        if not self.is_dual:
            return self.weights(y, alpha)
        targets = np.asarray(y)
        if targets.ndim != 2 or targets.shape[0] != self.n_samples:
            raise ValueError(f"targets of shape {targets.shape} given for {self.n_samples} training rows")
        dtype = self._factor_for(alpha).dtype
        return self._solve((targets - targets.mean(axis=0, dtype=np.float64)).astype(dtype), alpha)

    @staticmethod
    def predict_blocks(
        operator: npt.NDArray[np.float32],
        y: Sliceable,
        *,
        block: int | None = None,
        out: Any | None = None,
    ) -> Array:
        """Predict all targets, a block of targets at a time.

        Parameters
        ----------
        operator : ndarray of float32, (m, n)
            From :meth:`operator` or :meth:`loo_operator`.
        y : array-like or HDF5 dataset, (n, d)
            Training targets, any float type; ``y[:, a:b]`` is read in turn.
        block : int, optional
            Targets at once; by default about 64 MiB of them.
        out : ndarray or HDF5 dataset of float32, (m, d), optional
            Where to write.

        Returns
        -------
        ndarray of float32, (m, d)
            ``mean(y) + operator @ (y - mean(y))``; it is ``out`` where that was given.
        """
        m, n = operator.shape
        if len(y.shape) != 2 or y.shape[0] != n:
            raise ValueError(f"targets of shape {tuple(y.shape)} given for an operator of shape {(m, n)}")
        d = int(y.shape[1])
        step = block if block is not None else max(1, _BLOCK // n)
        if step < 1:
            raise ValueError("block must be at least 1")
        result: Any = np.empty((m, d), dtype=np.float32) if out is None else out
        if tuple(result.shape) != (m, d):
            raise ValueError(f"out has shape {tuple(result.shape)}, {(m, d)} needed")
        for start in range(0, d, step):
            columns = slice(start, min(start + step, d))
            targets = np.asarray(y[:, columns])
            mean = targets.mean(axis=0, dtype=np.float64)
            centred = np.empty(targets.shape, dtype=np.float32)
            np.subtract(targets, mean, out=centred, casting="same_kind")
            product = operator @ centred
            product += mean.astype(np.float32)
            result[:, columns] = product
        return result  # type: ignore[no-any-return]

    def _operator(self, x_new: npt.ArrayLike, alpha: float) -> npt.NDArray[Any]:
        x_new = np.asarray(x_new)
        if x_new.ndim != 2 or x_new.shape[1] != self.n_features:
            raise ValueError(f"new x of shape {x_new.shape} given, (m, {self.n_features}) needed")
        dtype = self._factor_for(alpha).dtype
        if not self.is_dual:
            solved = self._solve((x_new - self._mean).astype(dtype).T, alpha)
            fitted: npt.NDArray[Any] = self._project_back(solved).T
            return fitted
        products = np.zeros((x_new.shape[0], self.n_samples), dtype=dtype)
        for columns in self._column_blocks():
            products += (x_new[:, columns] - self._mean[columns]).astype(dtype) @ self._centred_columns(
                columns, dtype
            ).T
        smoothed: npt.NDArray[Any] = self._solve(products.T, alpha).T
        return smoothed

    def _solve(self, right: npt.NDArray[Any], alpha: float) -> npt.NDArray[Any]:
        """Solve (Gram + alpha I) z = right, column-wise."""
        factor = self._factor_for(alpha)
        solved: npt.NDArray[Any] = linalg.cho_solve(
            (factor, True), right, overwrite_b=False, check_finite=False
        )
        return solved

    def _factor_for(self, alpha: float) -> npt.NDArray[Any]:
        """Cholesky factor of (Gram + alpha I), of the last alpha kept."""
        alpha = float(alpha)
        if not (np.isfinite(alpha) and alpha > 0):
            raise ValueError(f"alpha must be a positive number, {alpha} given")
        if self._factor is not None and self._factor[0] == alpha:
            return self._factor[1]
        self._factor = None  # before the next is made, so that two never lie in memory
        gram = self._gram_matrix(alpha)
        shifted = gram.copy(order="F")
        shifted[np.diag_indices_from(shifted)] += alpha
        lower: npt.NDArray[Any]
        lower, _ = linalg.cho_factor(shifted, lower=True, overwrite_a=True, check_finite=False)
        self._factor = (alpha, lower)
        return lower

    def _gram_matrix(self, alpha: float) -> npt.NDArray[Any]:
        if self._gram is None:
            self._gram = self._make_gram()
        # Only rounding of the shared part matters, so the largest eigenvalue over alpha is the condition.
        if self._precision == "auto" and self._dtype == np.float32:
            largest = largest_eigenvalue(self._gram)
            if largest / alpha > _MAX_CONDITION_FLOAT32:
                self._dtype = np.dtype("f8")
                self._gram = None
                self._gram = self._make_gram()
        return self._gram

    def _make_gram(self) -> npt.NDArray[Any]:
        """Gram matrix of the centred x in column-major order; only its lower triangle is filled."""
        size = min(self.n_samples, self.n_features)
        gram = np.zeros((size, size), dtype=self._dtype, order="F")
        if self.is_dual:
            for columns in self._column_blocks():
                gram = add_products(gram, self._centred_columns(columns, self._dtype), of_rows=True)
        else:
            for rows in self._row_blocks():
                gram = add_products(gram, self._centred_rows(rows, self._dtype), of_rows=False)
        return gram

    def _project(self, duals: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Give the transposed x times duals, (p, d)."""
        out = np.empty((self.n_features, duals.shape[1]), dtype=duals.dtype)
        for columns in self._column_blocks():
            out[columns] = self._centred_columns(columns, duals.dtype).T @ duals
        return out

    def _project_back(self, weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Give x times weights, (n, d)."""
        out = np.empty((self.n_samples, weights.shape[1]), dtype=weights.dtype)
        for rows in self._row_blocks():
            out[rows] = self._centred_rows(rows, weights.dtype) @ weights
        return out

    def _centred_columns(self, columns: slice, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        return np.ascontiguousarray(self._x[:, columns] - self._mean[columns], dtype=dtype)

    def _centred_rows(self, rows: slice, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        return np.ascontiguousarray(self._x[rows] - self._mean, dtype=dtype)

    def _column_blocks(self) -> Iterator[slice]:
        return blocks(self.n_features, self.n_samples, _BLOCK)

    def _row_blocks(self) -> Iterator[slice]:
        return blocks(self.n_samples, self.n_features, _BLOCK)


class Ridge:
    """Ridge regression of many targets, called as in scikit-learn.

    Parameters
    ----------
    alpha : float
        Penalty, > 0; one for all targets. The intercept is not penalised.
    precision : {"auto", "float32", "float64"}
        See :class:`RidgeDecoder`.

    Attributes
    ----------
    decoder_ : RidgeDecoder

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x, w = rng.normal(size=(50, 8)), rng.normal(size=(8, 3))
    >>> model = Ridge(alpha=1e-3).fit(x, x @ w)
    >>> bool(np.allclose(model.predict(x), x @ w, atol=1e-3))
    True
    """

    def __init__(self, alpha: float = 1.0, *, precision: Precision = "auto") -> None:
        self.alpha = alpha
        self.precision: Precision = precision

    def fit(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Ridge:
        """Fit to responses ``x`` (n, p) and targets ``y`` (n, d) or (n,); both are kept by reference."""
        targets = y if hasattr(y, "shape") else np.asarray(y)
        self.decoder_ = RidgeDecoder(x, precision=self.precision)
        if len(targets.shape) not in (1, 2) or targets.shape[0] != self.decoder_.n_samples:
            raise ValueError(
                f"targets of shape {targets.shape} given for {self.decoder_.n_samples} rows of x"
            )
        self._single = len(targets.shape) == 1
        self._y: Any = np.asarray(targets)[:, None] if self._single else targets
        return self

    def predict(self, x: npt.ArrayLike) -> Array:
        """Predict the targets of new responses ``x`` (m, p): float32 (m, d), or (m,) as ``y`` was."""
        operator = self.decoder_.operator(x, self.alpha)
        predicted = self.decoder_.predict_blocks(operator, self._y)
        return predicted[:, 0] if self._single else predicted

    @property
    def coef_(self) -> npt.NDArray[Any]:
        """Weights, (d, p) or (p,); made when asked for."""
        coef = self.decoder_.weights(self._y, self.alpha).T
        return coef[0] if self._single else coef

    @property
    def intercept_(self) -> Any:
        """Intercepts, (d,) or a scalar; made when asked for."""
        coef = self.decoder_.weights(self._y, self.alpha)
        intercept = np.asarray(self._y).mean(axis=0, dtype=np.float64) - self.decoder_.x_mean @ coef
        return intercept[0] if self._single else intercept
