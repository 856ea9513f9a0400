"""Ridge regression of many targets, as estimators in the style of scikit-learn for arrays in memory.

The pipeline does not import scikit-learn; it uses :class:`~bidsapp.decoding.decoder.RidgeDecoder`,
:class:`~bidsapp.decoding.crossvalidation.AlphaSearch` and :mod:`bidsapp.decoding.streaming`, on which these
estimators are built, and which read and write targets in blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from bidsapp.decoding.crossvalidation import AlphaSearch
from bidsapp.decoding.decoder import RidgeDecoder
from bidsapp.decoding.gram import Precision
from bidsapp.decoding.streaming import predict_blocks

__all__ = ["Ridge", "RidgeCV"]

_DTYPES = (np.float64, np.float32)


class _RidgeEstimator(MultiOutputMixin, RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """What both estimators share."""

    precision: Precision
    alpha_: float

    def _take(self, X: npt.ArrayLike, y: npt.ArrayLike) -> None:
        """Check the training data and make the decoder."""
        checked: tuple[Any, Any] = validate_data(
            self, X, y, dtype=_DTYPES, ensure_min_samples=2, multi_output=True, y_numeric=True
        )
        responses, targets = checked
        self._single = targets.ndim == 1
        self._y = targets[:, None] if self._single else targets
        self._double = targets.dtype not in (np.float16, np.float32)
        # Double precision in, double precision out; large data are expected to be float32.
        whole = self._double and self.precision == "auto"
        self.decoder_ = RidgeDecoder(responses, precision="float64" if whole else self.precision)

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        """Predict the targets of new responses (m, p): (m, d), or (m,) if ``y`` had one axis.

        They are float32 where ``y`` is float32 or float16, else float64. ValueError for another number of
        voxels or values that are not finite.
        """
        check_is_fitted(self)
        new: Any = validate_data(self, X, dtype=_DTYPES, reset=False)
        operator = self.decoder_.operator(new, self.alpha_, rounded=not self._double)
        if self._double:
            mean = self._y.mean(axis=0)
            predicted: npt.NDArray[Any] = operator @ (self._y - mean) + mean
        else:
            predicted = predict_blocks(operator, self._y)
        return predicted[:, 0] if self._single else predicted

    @property
    def coef_(self) -> npt.NDArray[Any]:
        """Weights, (d, p) or (p,); computed when asked for."""
        check_is_fitted(self)
        coef = self.decoder_.weights(self._y, self.alpha_).T
        return coef[0] if self._single else coef

    @property
    def intercept_(self) -> Any:
        """Intercepts, (d,) or a scalar; computed when asked for."""
        check_is_fitted(self)
        coef = self.decoder_.weights(self._y, self.alpha_)
        intercept = self._y.mean(axis=0, dtype=np.float64) - self.decoder_.x_mean @ coef
        return intercept[0] if self._single else intercept


class Ridge(_RidgeEstimator):
    """Ridge regression of many targets by one factorisation.

    Parameters
    ----------
    alpha : float
        Penalty, > 0; one for all targets. The intercept is not penalised.
    precision : {"auto", "float32", "float64"}
        See :class:`RidgeDecoder`; "auto" is float64 for float64 or integer targets.

    Attributes
    ----------
    decoder_ : RidgeDecoder
    n_features_in_ : int
    coef_, intercept_ : ndarray
        Computed when asked for; predictions do not need them.

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
        self.precision = precision

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Fit to responses and targets, which are kept (by reference where they are float arrays).

        Parameters
        ----------
        X : array-like, (n, p)
        y : array-like, (n, d) or (n,)

        Raises
        ------
        ValueError
            For shapes that do not match, values that are not finite, or an alpha that is too small.
        """
        self._take(X, y)
        self.alpha_ = float(self.alpha)
        self.decoder_.gram.factor(self.alpha_)
        return self


class RidgeCV(_RidgeEstimator):
    """Ridge regression whose penalty, one for all targets, is chosen by held-out predictions.

    Parameters
    ----------
    alphas : sequence of float
        Penalties to try, each > 0.
    cv : int or None
        Folds of consecutive rows; None for leave-one-out. Both are exact, and nothing is refitted.
    precision : {"auto", "float32", "float64"}
        As of :class:`Ridge`.

    Attributes
    ----------
    alpha_ : float
    selection_ : Selection
        Mean squared error of each penalty.
    best_score_ : float
        The chosen penalty's mean squared error, negative as in scikit-learn.
    decoder_, n_features_in_, coef_, intercept_
        As of :class:`Ridge`.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x, w = rng.normal(size=(50, 8)), rng.normal(size=(8, 3))
    >>> RidgeCV(alphas=(0.01, 1.0, 1e4)).fit(x, x @ w + rng.normal(size=(50, 3))).alpha_
    1.0
    """

    def __init__(
        self,
        alphas: Sequence[float] = (0.1, 1.0, 10.0),
        *,
        cv: int | None = None,
        precision: Precision = "auto",
    ) -> None:
        self.alphas = alphas
        self.cv = cv
        self.precision = precision

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Choose the penalty and fit; as :meth:`Ridge.fit`."""
        self._take(X, y)
        self.selection_ = AlphaSearch(self.decoder_, self.alphas, self.cv).search(self._y)
        self.alpha_ = self.selection_.alpha
        self.best_score_ = -min(self.selection_.errors)
        self.decoder_.gram.factor(self.alpha_)
        return self
