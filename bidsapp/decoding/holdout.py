"""Predictions of new rows by ridges that leave out groups of training rows, from one factorisation.

Let ``B`` map training targets to the predictions of new rows (intercept included), ``H`` to the fitted
values of the training rows, and let S be the rows left out. The ridge fitted to the other rows equals the
ridge of all rows whose targets in S are replaced by their held-out predictions, which it fits exactly. The
errors of these are ``e_S = (I - H_SS)^-1 ((I - H) Y)_S`` (as in :mod:`bidsapp.decoding.crossvalidation`), so

    prediction without S = B Y - B_S e_S = (B - B_S (I - H_SS)^-1 (I - H)_S) Y,

where the columns of S vanish. It is exact, and costs a solve with as many right-hand sides as S has rows
instead of a new factorisation. (What was done to x before, such as z-scoring with all rows, is not redone.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bidsapp.decoding.decoder import RidgeDecoder

Matrix = npt.NDArray[np.float64]


def residual_rows(decoder: RidgeDecoder, alpha: float, rows: npt.NDArray[np.intp]) -> Matrix:
    """Compute rows of ``I - H``, which maps training targets to residuals: float64 (k, n)."""
    gram = decoder.gram
    if decoder.is_dual:
        # For centred fits I - H = alpha (K + alpha I)^-1, which avoids the products with K.
        rest = alpha * gram.inverse_rows(rows, alpha).astype(np.float64)
    else:
        rest = -decoder.operator(gram.x[rows], alpha, rounded=False).astype(np.float64)
        rest[np.arange(rows.size), rows] += 1
    rest -= 1 / decoder.n_samples  # the intercept's share
    return np.asarray(rest)


def holdout_operator(
    decoder: RidgeDecoder,
    x_new: npt.NDArray[Any],
    alpha: float,
    left_out: Sequence[npt.NDArray[np.intp]],
    group: npt.NDArray[np.int64],
) -> Matrix:
    """Compute the matrix that predicts each new row from the training rows that its group may use.

    Parameters
    ----------
    decoder : RidgeDecoder
        Of n training rows.
    x_new : ndarray of float, (m, p)
        New responses.
    alpha : float
        Penalty of all fits, whatever rows are left out.
    left_out : sequence of ndarray of int
        For each group, the training rows that are left out, if any.
    group : ndarray of int, (m,)
        Group of each new row: an index into ``left_out``.

    Returns
    -------
    ndarray of float64, (m, n)
        Rows sum to 1, as ``predict_blocks`` needs; entries of rows left out are 0.

    Raises
    ------
    ValueError
        Where fewer than two training rows remain, a group is unknown, or the fit passes through the
        training targets.
    """
    n = decoder.n_samples
    if group.shape != (len(x_new),) or not np.isin(group, np.arange(len(left_out))).all():
        raise ValueError(f"group must give each of {len(x_new)} rows one of {len(left_out)} groups")
    out: Matrix = decoder.operator(x_new, alpha, rounded=False).astype(np.float64) + 1 / n
    for number in np.unique(group):
        rows = np.asarray(left_out[number], dtype=np.intp)
        if n - rows.size < 2:
            raise ValueError(f"group {number} leaves only {n - rows.size} of {n} training rows")
        if not rows.size:
            continue
        rest = residual_rows(decoder, alpha, rows)
        own = rest[:, rows]
        if not np.linalg.eigvalsh((own + own.T) / 2)[0] > 1e-9:
            raise ValueError(f"alpha {alpha:g} is too small: the fit passes through the training targets")
        members = np.flatnonzero(group == number)
        without = out[members] - out[np.ix_(members, rows)] @ np.linalg.solve(own, rest)
        without[:, rows] = 0
        out[members] = without
    return out


def about_own_mean(operator: Matrix, left_out: Sequence[npt.NDArray[np.intp]], group: Any) -> Matrix:
    """Subtract from each row of an operator the mean of the training rows that it uses.

    Predictions are then departures from what the fit has seen on average. Otherwise a fit without a cluster
    would be penalised for an intercept that is far from that cluster.
    """
    found = operator.copy()
    n = operator.shape[1]
    for number in np.unique(group):
        share = np.full(n, 1 / (n - len(left_out[number])))
        share[left_out[number]] = 0
        found[group == number] -= share
    return found
