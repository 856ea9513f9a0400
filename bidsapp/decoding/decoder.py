"""Ridge regression with one factorisation for all targets.

The targets of a reconstruction (VDVAE latents, CLIP tokens) have hundreds of thousands of dimensions; images
number in the thousands. Ridge predictions are linear in the training targets,

    prediction = mean(Y) + A (Y - mean(Y)),    A = K_new (K + alpha I)^-1,

with K the Gram matrix of the centred training responses and K_new the products of the centred new and
training responses. ``A`` (new images x training images) does not depend on the targets: it is computed once
per alpha, and any number of targets is predicted by one matrix product, in blocks
(:mod:`bidsapp.decoding.streaming`). No weights (voxels x targets) are computed.

Source of the leave-one-out form: Hastie, Tibshirani & Friedman, The Elements of Statistical Learning,
2nd ed., eq. 7.64 (linear smoothers).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bidsapp.decoding.backends import NUMPY, Backend, Matrix
from bidsapp.decoding.gram import MAX_CONDITION, CentredGram, Precision


def alpha_name(alpha: float) -> str:
    """Name a penalty in files, with all its digits, so that no two share a name."""
    return repr(float(alpha)).removesuffix(".0")


class RidgeDecoder:
    """The part of a ridge regression that all alphas and all targets share.

    See :class:`~bidsapp.decoding.gram.CentredGram` for memory, and for the errors raised.

    Parameters
    ----------
    x_train : array-like of float32, (n, p)
        Training responses (images x voxels), which need not be centred; kept by reference.
    precision : {"auto", "float32", "float64"}
        Of the Gram matrix and its factor. "auto" is float64 where the Gram matrix is small (at most 1024
        rows) or, for the given alpha, too badly conditioned for float32 (condition above 1e3); else
        float32. Predictions agree with float64 within 1e-4 of their scale; an alpha too small for that is
        refused.
    """

    def __init__(
        self, x_train: npt.ArrayLike, *, precision: Precision = "auto", backend: Backend = NUMPY
    ) -> None:
        #: The Gram matrix and its factors.
        self.gram = CentredGram(x_train, precision, backend)
        self._backend = self.gram.backend

    @property
    def n_samples(self) -> int:
        """Number of training rows, n."""
        return int(self.gram.x.shape[0])

    @property
    def n_features(self) -> int:
        """Number of voxels, p."""
        return int(self.gram.x.shape[1])

    @property
    def is_dual(self) -> bool:
        """Whether the Gram matrix is (n, n) rather than (p, p)."""
        return self.gram.is_dual

    @property
    def x_mean(self) -> npt.NDArray[np.float64]:
        """Mean of every voxel over the training rows, (p,)."""
        return self.gram.mean

    def operator(self, x_new: npt.ArrayLike, alpha: float, *, rounded: bool = True) -> npt.NDArray[Any]:
        """Compute the matrix that turns training targets into predictions.

        Parameters
        ----------
        x_new : array-like, (m, p)
            New responses, in the units of ``x_train``.
        alpha : float
            Penalty on the squared weights, > 0 (scikit-learn's ``Ridge(alpha)``).
        rounded : bool
            If false, keep the precision of the factor.

        Returns
        -------
        ndarray of float32, (m, n)
            ``A``, for ``predict_blocks``; float64 where the condition is above 1e3, so that
            ``predict_blocks`` checks its accuracy.

        Raises
        ------
        ValueError
            For another number of voxels, values that are not finite, or an alpha that is too small.
        """
        return next(iter(self.operators(x_new, [alpha], rounded=rounded)))

    def operators(
        self, x_new: npt.ArrayLike, alphas: Sequence[float], *, rounded: bool = True
    ) -> Iterator[npt.NDArray[Any]]:
        """Compute the operators of several penalties in turn, with the products of ``x_new`` made once.

        Arguments, results and errors are those of :meth:`operator`.
        """
        new = np.asarray(x_new)
        if new.ndim != 2 or new.shape[1] != self.n_features:
            raise ValueError(f"new responses have shape {new.shape}; expected (m, {self.n_features})")
        if not np.isfinite(new).all():
            raise ValueError("new responses contain NaN or infinite values")
        products, dtype = None, None
        for alpha in alphas:
            self.gram.factor(alpha)  # fixes the precision
            if self.is_dual and (products is None or dtype != self.gram.dtype):
                dtype = self.gram.dtype
                products = self.gram.products_with(new, dtype)
            operator = self._operator(new, alpha, products)
            yield self._rounded(operator, alpha) if rounded else operator

    def loo_operator(self, alpha: float, rows: npt.ArrayLike | None = None) -> npt.NDArray[Any]:
        """Compute the matrix of exact leave-one-out predictions of training rows.

        Row i predicts training row i from a ridge with intercept fitted to all the others, at the cost of a
        solve instead of n refits: with H the matrix that maps targets to fitted values, it is
        ``(H - diag H) / (1 - diag H)``. (What was done to x before, such as z-scoring with all rows, is not
        redone.)

        Parameters
        ----------
        rows : array-like of int, (k,), optional
            Training rows to predict; all by default, which gives an (n, n) result.

        Returns
        -------
        ndarray of float32 (or float64, as in :meth:`operator`), (k, n)
            For ``predict_blocks``; entries at the row itself are 0.
        """
        n = self.n_samples
        index = np.arange(n) if rows is None else np.arange(n)[np.asarray(rows)]
        place = np.arange(index.size)
        if self.is_dual:
            # For centred fits H = I - alpha (K + alpha I)^-1, which avoids the products with K.
            hat = -alpha * self.gram.inverse_rows(index, alpha)
            rest = -hat[place, index].astype(np.float64)
        else:
            hat = self._operator(self.gram.x[index], alpha)
            rest = 1 - hat[place, index].astype(np.float64)
        rest -= 1 / n  # the intercept's share
        if not (rest > 1e-9).all():
            raise ValueError(f"alpha {alpha:g} is too small: the fit passes through the training targets")
        hat += 1 / n
        hat[place, index] = 0
        hat /= rest[:, None].astype(hat.dtype)
        return self._rounded(hat, alpha)

    def weights(self, y: npt.ArrayLike, alpha: float) -> npt.NDArray[Any]:
        """Compute the weights (p, d) for targets y (n, d), in the precision of the factor.

        Predictions do not need them.
        """
        right = self._centred(y, alpha)
        dtype = self.gram.dtype
        if self.is_dual:
            return self.gram.project(self.gram.solve(right, alpha), dtype)
        projected = self._backend.put(self.gram.project(right, dtype))
        return self._backend.take(self.gram.solve(projected, alpha))

    def _centred(self, y: npt.ArrayLike, alpha: float) -> Matrix:
        """Copy targets about their mean to the backend, in the precision that alpha needs."""
        targets = np.asarray(y)
        if targets.ndim != 2 or targets.shape[0] != self.n_samples:
            raise ValueError(f"targets have shape {targets.shape}; expected ({self.n_samples}, d)")
        self.gram.factor(alpha)
        centred = targets - targets.mean(axis=0, dtype=np.float64)
        return self._backend.put(centred.astype(self.gram.dtype))

    def _operator(
        self, x_new: npt.NDArray[Any], alpha: float, products: Matrix | None = None
    ) -> npt.NDArray[Any]:
        """Compute an operator; in dual form from the products of ``x_new`` and x."""
        self.gram.factor(alpha)
        if products is not None:
            return self._backend.take(self.gram.solve(products.T, alpha)).T
        dtype = self.gram.dtype
        right = self._backend.put((x_new - self.x_mean).astype(dtype).T)
        return self.gram.project_back(self.gram.solve(right, alpha), dtype).T

    def _rounded(self, operator: npt.NDArray[Any], alpha: float) -> npt.NDArray[Any]:
        """Round to float32, unless the condition calls for more digits."""
        if self.gram.condition(alpha) > MAX_CONDITION[np.dtype("f4")]:
            return operator.astype(np.float64, copy=False)
        return operator.astype(np.float32)
