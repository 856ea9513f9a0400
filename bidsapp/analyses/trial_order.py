"""Check that each session's betas match its table of trials.

An image evokes similar responses whenever it is shown. If a session's betas and trials are misaligned, its
responses match those to the same images in other sessions better when shifted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bidsapp.evidence import TrialOrder

#: Shifts in trials: at lag k, the betas of trial t + k are compared for the stimulus listed at trial t.
LAGS = (-3, -2, -1, 0, 1, 2, 3)
#: Largest number of trials per session and of voxels that are compared, evenly spaced: more changes little.
_MAX_TRIALS, _MAX_VOXELS = 400, 4000
#: A voxel whose spread in a session is below this share of its magnitude varies by rounding only.
_CONSTANT = 1e-6


def check_trial_order(
    betas: Sequence[npt.NDArray[np.float32]],
    stimulus_ids: Sequence[Sequence[str]],
    labels: Sequence[str],
) -> tuple[TrialOrder, ...]:
    """Correlate each session's trials with responses to the same images in the other sessions.

    ``n_trials`` is 0 and correlations are NaN for a session whose images were not shown in another.

    Parameters
    ----------
    betas : sequence of ndarray of float32, (trials of the session, voxels)
        In any units; each voxel is standardised within its session.
    stimulus_ids : sequence of sequence of str
        The stimulus of each trial of each session.
    labels : sequence of str
        Of the sessions.
    """
    voxels = _usable_voxels(betas)
    sessions = [_Session(array, voxels) for array in betas]
    shown_in: dict[str, set[int]] = {}
    for s, ids in enumerate(stimulus_ids):
        for stimulus in filter(None, ids):
            shown_in.setdefault(stimulus, set()).add(s)
    repeated = {stimulus for stimulus, where in shown_in.items() if len(where) > 1}
    chosen = [_choose([t for t, i in enumerate(ids) if i in repeated]) for ids in stimulus_ids]
    needed = {stimulus_ids[s][t] for s, trials in enumerate(chosen) for t in trials}
    everywhere = _Sums()
    own = [_Sums() for _ in sessions]
    for session, ids, mine in zip(sessions, stimulus_ids, own, strict=True):
        trials = [t for t, i in enumerate(ids) if i in needed]
        for t, row in zip(trials, session.rows(trials), strict=True):
            everywhere.add(ids[t], row)
            mine.add(ids[t], row)

    def compare(s: int) -> TrialOrder:
        # Every lag uses the same trials, so that lags can be compared pair by pair.
        ids = stimulus_ids[s]
        inside = [t for t in chosen[s] if all(0 <= t + k < len(ids) for k in LAGS)]
        if len(inside) < 2:
            nothing = np.full(len(LAGS), np.nan)
            return TrialOrder(labels[s], LAGS, nothing, nothing.copy(), 0)
        elsewhere = _unit_rows(np.array([everywhere.mean_without(own[s], ids[t]) for t in inside]))
        table = np.empty((len(LAGS), len(inside)))
        for row, lag in enumerate(LAGS):
            shifted = _unit_rows(sessions[s].rows([t + lag for t in inside]))
            table[row] = np.einsum("tv,tv->t", shifted, elsewhere)
        zero = table[LAGS.index(0)]
        against = np.where(np.array(LAGS)[:, None] == 0, table, table - zero)
        error = against.std(axis=1, ddof=1) / np.sqrt(len(inside))
        return TrialOrder(labels[s], LAGS, table.mean(axis=1), error, len(inside))

    return tuple(compare(s) for s in range(len(betas)))


class _Sums:
    """Sum and number of responses to each stimulus."""

    def __init__(self) -> None:
        self._sums: dict[str, npt.NDArray[np.float64]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, stimulus: str, response: npt.NDArray[np.float64]) -> None:
        """Add one response, (voxels,)."""
        self._sums[stimulus] = self._sums.get(stimulus, 0) + response
        self._counts[stimulus] += 1

    def mean_without(self, part: _Sums, stimulus: str) -> npt.NDArray[np.float64]:
        """Mean response to a stimulus over what ``part`` does not include."""
        n = self._counts[stimulus] - part._counts[stimulus]
        return (self._sums[stimulus] - part._sums[stimulus]) / n


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
        # Rows that are far apart show which voxels do not vary, or are missing, in a session.
        rows = array[np.unique(np.linspace(0, len(array) - 1, 20).astype(int))][:, some]
        usable &= np.isfinite(rows).all(0) & (np.ptp(rows, axis=0) > 0)
    return np.asarray(some[usable])


class _Session:
    """A session's chosen voxels, standardised over all of its trials when read."""

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
        """Read standardised responses, (trials, voxels); 0 where a voxel does not vary."""
        rows = np.asarray(self._betas[list(trials)][:, self._voxels], dtype=np.float64)
        rows = (rows - self._mean) / np.where(self._flat, 1.0, self._spread)
        rows[:, self._flat] = 0.0
        return rows


def _unit_rows(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Centre each row and scale it to length 1, so that products are Pearson correlations."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    norm = np.sqrt((centred**2).sum(axis=1, keepdims=True))
    return np.asarray(np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0))
