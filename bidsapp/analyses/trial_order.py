"""Whether each session's betas belong to its table of trials.

An image evokes like responses whenever it is shown. A session whose betas and trials are out of step
shows it: its responses match those of the same images in other sessions better when shifted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bidsapp.evidence import TrialOrder

#: Shifts looked at, in trials.
LAGS = (-3, -2, -1, 0, 1, 2, 3)
#: Trials of a session that are compared, at most, and voxels, evenly spaced: more changes little.
_MAX_TRIALS, _MAX_VOXELS = 400, 4000
#: A voxel whose spread in a session is below this share of its size varies by rounding only.
_CONSTANT = 1e-6


def check_trial_order(
    betas: Sequence[npt.NDArray[np.float32]],
    stimulus_ids: Sequence[Sequence[str]],
    labels: Sequence[str],
    lags: Sequence[int] = LAGS,
) -> tuple[TrialOrder, ...]:
    """Correlate each session's trials with the same images' responses in the other sessions.

    Parameters
    ----------
    betas : sequence of ndarray of float32, (trials of the session, voxels)
        Any units; each voxel is standardised within its session.
    stimulus_ids : sequence of sequence of str
        The stimulus of each trial of each session.
    labels : sequence of str
        Of the sessions.
    lags : sequence of int
        At lag k, the betas of trial t + k are taken for the stimulus listed at trial t. Must hold 0.

    Returns
    -------
    tuple of TrialOrder
        One a session; ``n_trials`` is 0, and correlations NaN, where no image was shown in another.
    """
    voxels = _usable_voxels(betas)
    sessions = [_Session(array, voxels) for array in betas]
    sums: dict[str, tuple[npt.NDArray[np.float64], int]] = {}
    where = _trials_of(stimulus_ids)
    shared = {i for i, places in where.items() if len({s for s, _ in places}) > 1}
    chosen = [_choose([t for t, i in enumerate(ids) if i in shared]) for ids in stimulus_ids]
    needed = {stimulus_ids[s][t] for s, trials in enumerate(chosen) for t in trials}
    own: list[dict[str, tuple[npt.NDArray[np.float64], int]]] = []
    for s, ids in enumerate(stimulus_ids):
        trials = [t for t, i in enumerate(ids) if i in needed]
        rows = sessions[s].rows(trials)
        mine: dict[str, tuple[npt.NDArray[np.float64], int]] = {}
        for t, row in zip(trials, rows, strict=True):
            for total in (sums, mine):
                sum_, count = total.get(ids[t], (np.zeros(len(voxels)), 0))
                total[ids[t]] = (sum_ + row, count + 1)
        own.append(mine)
    return tuple(
        _compare(labels[s], sessions[s], stimulus_ids[s], chosen[s], sums, own[s], lags)
        for s in range(len(betas))
    )


def _compare(
    label: str,
    session: _Session,
    ids: Sequence[str],
    trials: Sequence[int],
    sums: dict[str, tuple[npt.NDArray[np.float64], int]],
    own: dict[str, tuple[npt.NDArray[np.float64], int]],
    lags: Sequence[int],
) -> TrialOrder:
    # Every lag sees the same trials, so that lags can be compared pair by pair.
    inside = [t for t in trials if all(0 <= t + k < len(ids) for k in lags)]
    if len(inside) < 2:
        nothing = np.full(len(lags), np.nan)
        return TrialOrder(label, tuple(lags), nothing, nothing.copy(), 0)
    elsewhere = np.empty((len(inside), len(sums[ids[inside[0]]][0])))
    for row, t in enumerate(inside):
        (total, n), (mine, m) = sums[ids[t]], own[ids[t]]
        elsewhere[row] = (total - mine) / (n - m)
    elsewhere = _unit_rows(elsewhere)
    table = np.empty((len(lags), len(inside)))
    for place, lag in enumerate(lags):
        shifted = _unit_rows(session.rows([t + lag for t in inside]))
        table[place] = np.einsum("tv,tv->t", shifted, elsewhere)
    zero = table[tuple(lags).index(0)]
    against = np.where(np.array(lags)[:, None] == 0, table, table - zero)
    error = against.std(axis=1, ddof=1) / np.sqrt(len(inside))
    return TrialOrder(label, tuple(lags), table.mean(axis=1), error, len(inside))


def _trials_of(stimulus_ids: Sequence[Sequence[str]]) -> dict[str, list[tuple[int, int]]]:
    where: dict[str, list[tuple[int, int]]] = {}
    for session, ids in enumerate(stimulus_ids):
        for trial, stimulus in enumerate(ids):
            if stimulus:
                where.setdefault(stimulus, []).append((session, trial))
    return where


def _choose(trials: list[int]) -> list[int]:
    """At most ``_MAX_TRIALS`` of them, evenly spaced."""
    if len(trials) <= _MAX_TRIALS:
        return trials
    return [trials[i] for i in np.linspace(0, len(trials) - 1, _MAX_TRIALS).astype(int)]


def _usable_voxels(betas: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.intp]:
    n = betas[0].shape[1]
    some = np.unique(np.linspace(0, n - 1, min(n, _MAX_VOXELS)).astype(np.intp))
    usable = np.ones(some.size, dtype=bool)
    for array in betas:
        # Rows far apart tell what does not vary, or is not there, in a session.
        rows = array[np.unique(np.linspace(0, len(array) - 1, 20).astype(int))][:, some]
        usable &= np.isfinite(rows).all(0) & (np.ptp(rows, axis=0) > 0)
    return np.asarray(some[usable])


class _Session:
    """A session's chosen voxels, each standardised over all of the session's trials when read."""

    def __init__(self, betas: npt.NDArray[np.float32], voxels: npt.NDArray[np.intp]) -> None:
        self._betas, self._voxels = betas, voxels
        total, squares = np.zeros(len(voxels)), np.zeros(len(voxels))
        step = max(1, (1 << 22) // max(1, betas.shape[1]))
        for start in range(0, len(betas), step):
            block = np.asarray(betas[start : start + step][:, voxels], dtype=np.float64)
            total += block.sum(0)
            squares += (block**2).sum(0)
        self._mean = total / len(betas)
        self._spread = np.sqrt(np.maximum(squares / len(betas) - self._mean**2, 0.0))
        self._flat = ~(self._spread > _CONSTANT * np.abs(self._mean))  # NaN is flat too

    def rows(self, trials: Sequence[int]) -> npt.NDArray[np.float64]:
        """Give the trials' standardised responses, (trials, voxels); 0 where a voxel does not vary."""
        rows = np.asarray(self._betas[list(trials)][:, self._voxels], dtype=np.float64)
        rows = (rows - self._mean) / np.where(self._flat, 1.0, self._spread)
        rows[:, self._flat] = 0.0
        return rows


def _unit_rows(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Centre each row and bring it to length 1, so that products are Pearson correlations."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    norm = np.sqrt((centred**2).sum(axis=1, keepdims=True))
    return np.asarray(np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0))
