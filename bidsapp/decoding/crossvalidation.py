"""The penalty of a group of targets, by exact leave-one-out or k-fold errors from one eigendecomposition.

All dimensions of one target share one penalty: the one with the smallest mean squared error of held-out
predictions, over images and dimensions, as scikit-learn's ``RidgeCV`` chooses it for many targets. No model
is refitted. With H the matrix that maps targets to fitted values (intercept included), the errors of the
images F of a fold, had they been left out, are

    e_F = (I - H_FF)^-1 (Y - H Y)_F,

and only the sum of their squares is needed. With U and S the eigenvectors and eigenvalues of the Gram
matrix of x, and R = I - U diag(S / (S + alpha)) U^T, it is

    trace of (I - H_FF)^-1 [R G R]_FF (I - H_FF)^-1,    G = Y Y^T (targets about their means).

G is summed once, over blocks of targets, and is (n, n) however many targets there are. So after the
eigendecomposition each penalty costs one product of (n, n) matrices, and the folds' small solves.
In leave-one-out, each fold is one row.

Source of the k-fold form: the block version of Hastie, Tibshirani & Friedman, The Elements of Statistical
Learning, 2nd ed., eq. 7.64 (by the Woodbury identity; exact for a ridge with intercept).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bidsapp.decoding.backends import Matrix
from bidsapp.decoding.decoder import RidgeDecoder
from bidsapp.decoding.streaming import Sliceable, TargetBlocks


@dataclass(frozen=True)
class Selection:
    """The penalties tried for a target, and the one chosen.

    Attributes
    ----------
    errors : tuple of float
        Mean squared error of held-out predictions for each, over images and dimensions; empty where only
        one penalty was given.
    """

    alphas: tuple[float, ...]
    errors: tuple[float, ...] = ()

    @property
    def alpha(self) -> float:
        """The penalty with the smallest error; the largest one among ties."""
        if not self.errors:
            return self.alphas[0]
        best = min(self.errors)
        return max(a for a, e in zip(self.alphas, self.errors, strict=True) if e == best)


@dataclass(frozen=True)
class _Rotated:
    """Products of the targets, G, as the formulas need them.

    ``inner`` is U^T G U. Where U does not span all images (the primal form), the rest of the targets counts
    too: ``outer`` is G U, and ``products`` is G.
    """

    inner: Matrix
    outer: Matrix | None = None
    products: npt.NDArray[Any] | None = None


class AlphaSearch:
    """Held-out errors of penalties, for any number of targets.

    Memory is four (n, n) matrices in the precision that the smallest penalty needs.

    Parameters
    ----------
    decoder : RidgeDecoder
        Of the training responses.
    alphas : sequence of float
        Penalties to try, > 0.
    n_folds : int or None
        Folds of consecutive rows, as equal in size as possible; None for leave-one-out.

    Raises
    ------
    ValueError
        For no penalty, one that is not positive or too small, or an impossible number of folds.
    """

    def __init__(self, decoder: RidgeDecoder, alphas: Sequence[float], n_folds: int | None = None) -> None:
        self.alphas = tuple(float(a) for a in alphas)
        n = decoder.n_samples
        if not self.alphas:
            raise ValueError("give at least one alpha")
        if n_folds is not None and not 2 <= n_folds <= n:
            raise ValueError(f"{n_folds} folds cannot be made from {n} rows; choose between 2 and {n}")
        parts = np.array_split(np.arange(n), n_folds or n)
        self._folds = [slice(int(part[0]), int(part[-1]) + 1) for part in parts]
        self._is_dual = decoder.is_dual
        gram = decoder.gram
        smallest = min(self.alphas)
        if not np.isfinite(self.alphas).all():
            raise ValueError("alphas must be finite numbers")
        values, vectors = gram.eigh(smallest)
        self._backend, self._dtype = gram.backend, gram.dtype
        eigenvalues = np.maximum(self._backend.take(values).astype(np.float64), 0)
        if not self._is_dual:
            # From eigenvectors over voxels to those over images; directions without variance drop out.
            kept = eigenvalues > eigenvalues[-1] * np.finfo(self._dtype).eps
            eigenvalues = eigenvalues[kept]
            scaled = self._backend.take(vectors)[:, kept] / np.sqrt(eigenvalues)
            scaled = self._backend.put(scaled.astype(self._dtype))
            vectors = self._backend.put(gram.project_back(scaled, self._dtype))
        self._eigenvalues, self._vectors = eigenvalues, vectors

    def search(
        self,
        y: Sliceable,
        alphas: Sequence[float] | None = None,
        *,
        block: int | None = None,
        what: str = "",
    ) -> Selection:
        """Compute the errors of penalties for one target.

        Parameters
        ----------
        y : array-like or HDF5 dataset of float, (n, d)
            Read in blocks of dimensions.
        alphas : sequence of float, optional
            A subset of the penalties given before; all by default.
        block : int, optional
            Dimensions at once.
        what : str, optional
            Title of the progress bar.

        Raises
        ------
        ValueError
            For targets with another number of rows or values that are not finite, or a penalty so small
            that the fit passes through the training targets.
        """
        n, d = y.shape
        if n != self._vectors.shape[0]:
            raise ValueError(f"targets have shape {(n, d)}; expected {self._vectors.shape[0]} training rows")
        chosen = self.alphas if alphas is None else tuple(float(a) for a in alphas)
        if not set(chosen) <= set(self.alphas):
            raise ValueError(f"alphas {chosen} are not among {self.alphas}")
        targets = self._rotate(TargetBlocks(y, block, what), n)
        return Selection(chosen, tuple(self._squares(a, targets) / (n * d) for a in chosen))

    def _rotate(self, blocks: TargetBlocks, n: int) -> _Rotated:
        gram = self._backend.zeros((n, n), self._dtype)
        for part in blocks:
            centred = (part.values - part.mean).astype(self._dtype)
            gram = self._backend.add_products(gram, self._backend.put(centred), of_rows=True)
        products = self._backend.take(gram)
        _fill_upper(products)
        outer = self._backend.put(products) @ self._vectors
        inner = self._vectors.T @ outer
        return _Rotated(inner) if self._is_dual else _Rotated(inner, outer, products)

    def _squares(self, alpha: float, targets: _Rotated) -> float:
        """Sum over images and dimensions of the squared held-out errors."""
        take = self._backend.take
        # In dual form U is square: R = U diag(alpha / (S + alpha)) U^T, without the cancellation of I - ...
        shares = (alpha if self._is_dual else self._eigenvalues) / (self._eigenvalues + alpha)
        left = self._vectors * self._backend.put(shares.astype(self._dtype))
        middle = take(left @ targets.inner)
        left, vectors = take(left), take(self._vectors)
        outer = None if targets.outer is None else take(targets.outer)
        total = 0.0
        for rows in self._folds:
            rest = left[rows] @ vectors[rows].T
            squares = middle[rows] @ left[rows].T
            if outer is not None and targets.products is not None:
                crossed = outer[rows] @ left[rows].T
                rest = np.eye(len(rest)) - rest
                squares = squares - crossed - crossed.T + targets.products[rows, rows]
            rest = rest.astype(np.float64) - 1 / len(vectors)  # the intercept's share
            if not np.linalg.eigvalsh(rest)[0] > 1e-9:
                raise ValueError(f"alpha {alpha:g} is too small: the fit passes through the training targets")
            # trace of rest^-1 squares rest^-1
            solved = np.linalg.solve(rest, np.linalg.solve(rest, squares.astype(np.float64)).T)
            total += float(np.trace(solved))
        return total


def _fill_upper(lower: npt.NDArray[Any], step: int = 1024) -> None:
    """Copy a square matrix's lower triangle to its upper one, in place, by blocks of columns."""
    for start in range(0, lower.shape[0], step):
        here = slice(start, start + step)
        corner = lower[here, here]
        corner[...] = np.tril(corner) + np.tril(corner, -1).T
        lower[here, start + step :] = lower[start + step :, here].T
