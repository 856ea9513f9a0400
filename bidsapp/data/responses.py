"""Responses to images: repeats averaged, unusable voxels dropped, z-scored by the training set.

Arrays are gone through a row (image or trial) or a bounded block at a time, and results can be written to
files as they are made: memory does not grow with the number of trials or images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.npy import RowResult, release

Array = npt.NDArray[np.float32]

#: A voxel whose standard deviation is below this share of its mean's size varies by rounding only.
_CONSTANT = 1e-6
#: Elements worked on at once, in float64: 32 MiB.
_BLOCK = 1 << 22
#: Sums of repeats held at once, in float64: 128 MiB.
_SUMS = 1 << 24


@dataclass(frozen=True)
class BadVoxels:
    """Voxels that can't be decoded.

    Attributes
    ----------
    not_finite : ndarray of bool, (voxels,)
        NaN or infinite in at least one row.
    constant : ndarray of bool, (voxels,)
        Finite, and of one value in all rows.
    """

    not_finite: npt.NDArray[np.bool_]
    constant: npt.NDArray[np.bool_]

    @property
    def any(self) -> npt.NDArray[np.bool_]:
        """Bad for either reason, (voxels,)."""
        return self.not_finite | self.constant


@dataclass(frozen=True)
class ZScored:
    """Training and test responses z-scored per voxel with the training set's statistics.

    Attributes
    ----------
    train, test : ndarray of float32, (images, kept voxels)
    mean, std : ndarray of float64, (kept voxels,)
        Training statistics (``ddof=1``), in the units of the betas.
    kept : ndarray of bool, (voxels,)
        False for the voxels that were dropped.
    finite : ndarray of bool, (voxels,)
        False for those that are NaN or infinite in some row; the others dropped do not vary.
    """

    train: Array
    test: Array
    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]
    kept: npt.NDArray[np.bool_]
    finite: npt.NDArray[np.bool_]

    @property
    def n_dropped(self) -> int:
        """Number of voxels dropped, being constant or not finite."""
        return sum(count_dropped(self.kept, self.finite))


def count_dropped(kept: npt.NDArray[np.bool_], finite: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Count the voxels dropped for not being finite, and for not varying; see :class:`ZScored`."""
    return int(np.count_nonzero(~finite)), int(np.count_nonzero(finite & ~kept))


def average_repeats(
    betas: Sequence[npt.NDArray[np.float32]],
    stimulus_ids: Sequence[Sequence[str]],
    wanted: Sequence[str],
    out: Path | None = None,
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Average all trials of each stimulus, over sessions.

    Sums are float64, in the order of sessions and trials. A voxel that is NaN in any trial of a
    stimulus is NaN in its average. Beside the result, memory is 128 MiB of sums at most: the stimuli are
    done in blocks, and for each block the sessions are gone through once, front to back.

    Parameters
    ----------
    betas : sequence of ndarray of float32, (trials of the session, voxels)
        One array (or memory map) a session.
    stimulus_ids : sequence of sequence of str
        The stimulus of each trial of each session.
    wanted : sequence of str
        Stimuli to average, which sets the order of the rows.
    out : Path, optional
        ``.npy`` file to write; the result is then a memory map of it.

    Returns
    -------
    responses : ndarray of float32, (len(wanted), voxels)
    repeats : ndarray of int64, (len(wanted),)
        Number of trials in each average.

    Raises
    ------
    AppError
        Exit code 65 where a wanted stimulus was never shown.
    """
    trials = _trials_by_stimulus(betas, stimulus_ids, wanted)
    repeats = np.array([len(trials[s]) for s in wanted], dtype=np.int64)
    shape = (len(wanted), betas[0].shape[1] if betas else 0)
    with RowResult(out, shape) as result:
        step = max(1, _SUMS // max(1, shape[1]))
        for start in range(0, shape[0], step):
            rows = range(start, min(start + step, shape[0]))
            sums = np.zeros((len(rows), shape[1]))
            places = sorted((*place, row - start) for row in rows for place in trials[wanted[row]])
            for (session, trial, row), following in zip(places, [*places[1:], None], strict=True):
                sums[row] += betas[session][trial]
                if following is None or following[0] != session:
                    release(betas[session])
            sums /= repeats[rows.start : rows.stop, None]
            result.write(sums)
    return result.array, repeats


def _trials_by_stimulus(
    betas: Sequence[npt.NDArray[np.float32]],
    stimulus_ids: Sequence[Sequence[str]],
    wanted: Sequence[str],
) -> dict[str, list[tuple[int, int]]]:
    if len(betas) != len(stimulus_ids):
        raise ValueError(f"{len(betas)} arrays of betas but stimuli of {len(stimulus_ids)} sessions")
    if len(set(wanted)) != len(wanted):
        raise ValueError("the wanted stimuli are not distinct")
    trials: dict[str, list[tuple[int, int]]] = {stimulus: [] for stimulus in wanted}
    for session, (array, ids) in enumerate(zip(betas, stimulus_ids, strict=True)):
        if array.ndim != 2 or array.shape[0] != len(ids) or array.shape[1] != betas[0].shape[1]:
            raise ValueError(f"session {session}: betas of shape {array.shape} for {len(ids)} trials")
        for trial, stimulus in enumerate(ids):
            if stimulus in trials:
                trials[stimulus].append((session, trial))
    never = [stimulus for stimulus, where in trials.items() if not where]
    if never:
        shown = ", ".join(never[:5]) + (", ..." if len(never) > 5 else "")
        raise AppError(
            f"{len(never)} stimuli of the split were never shown in the sessions used: {shown}. "
            "Restrict the split to stimuli that the participant saw, or add the sessions that show them.",
            exit_code=ExitCode.BAD_DATA,
        )
    return trials


def find_bad_voxels(arrays: Sequence[npt.NDArray[np.float32]]) -> BadVoxels:
    """Find the voxels that are not finite somewhere, or constant everywhere.

    Parameters
    ----------
    arrays : sequence of ndarray of float32, (rows, voxels)
        Sessions of betas, or training and test responses; taken together.

    Returns
    -------
    BadVoxels
    """
    if not arrays:
        raise ValueError("at least one array is needed")
    n_voxels = arrays[0].shape[1]
    low = np.full(n_voxels, np.inf)
    high = np.full(n_voxels, -np.inf)
    not_finite = np.zeros(n_voxels, dtype=np.bool_)
    for array in arrays:
        step = max(1, _BLOCK // max(1, n_voxels))
        for start in range(0, array.shape[0], step):
            rows = array[start : start + step]
            not_finite |= ~np.isfinite(rows).all(axis=0)
            np.minimum(low, rows.min(axis=0), out=low)
            np.maximum(high, rows.max(axis=0), out=high)
            release(array)
    return BadVoxels(not_finite=not_finite, constant=~not_finite & (low >= high))


def zscore(
    train: npt.NDArray[np.float32], test: npt.NDArray[np.float32], folder: Path | None = None
) -> ZScored:
    """Z-score each voxel with the training set's mean and standard deviation (``ddof=1``).

    Voxels that are constant in training (standard deviation below 1e-6 of the mean's size), or not
    finite in any row of either set, are dropped; ``kept`` and ``n_dropped`` of the result tell. The
    test rows' values are not used otherwise. The images are gone through one by one, three times;
    beside the results, memory is a few rows.

    Parameters
    ----------
    train : ndarray of float32, (training images, voxels)
    test : ndarray of float32, (test images, voxels)
    folder : Path, optional
        Where to write ``train.npy`` and ``test.npy``; the results are then memory maps of them.

    Returns
    -------
    ZScored

    Raises
    ------
    AppError
        Exit code 65 where no voxel is left, or fewer than two training images are given.
    """
    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1]:
        raise ValueError(f"shapes {train.shape} and {test.shape} are not (images, voxels) of the same voxels")
    n, n_voxels = train.shape
    if n < 2:
        raise AppError(
            f"{n} training images are too few to z-score. Check the split.",
            exit_code=ExitCode.BAD_DATA,
        )
    finite = np.ones(n_voxels, dtype=np.bool_)
    mean, squares, deviation = np.zeros(n_voxels), np.zeros(n_voxels), np.empty(n_voxels)
    with np.errstate(invalid="ignore", over="ignore"):
        for row in _rows(train):
            finite &= np.isfinite(row)
            mean += row
        mean /= n
        for row in _rows(train):
            np.subtract(row, mean, out=deviation)
            deviation *= deviation
            squares += deviation
        for row in _rows(test):
            finite &= np.isfinite(row)
        std = np.sqrt(squares / (n - 1))
        kept = finite & (std > _CONSTANT * np.abs(mean))
    if not kept.any():
        raise AppError(
            f"None of the {n_voxels} voxels can be used: {int((~finite).sum())} are NaN or infinite in some "
            "image, the others do not vary. Check the betas of each session and the mask.",
            exit_code=ExitCode.BAD_DATA,
        )
    mean, std = mean[kept], std[kept]
    outs = [None if folder is None else folder / f"{name}.npy" for name in ("train", "test")]
    done = [_standardise(x, kept, mean, std, out) for x, out in zip((train, test), outs, strict=True)]
    return ZScored(done[0], done[1], mean, std, kept, finite)


def _standardise(
    x: npt.NDArray[np.float32],
    kept: npt.NDArray[np.bool_],
    mean: npt.NDArray[np.float64],
    std: npt.NDArray[np.float64],
    out: Path | None,
) -> Array:
    index = np.flatnonzero(kept)
    with RowResult(out, (x.shape[0], index.size)) as result:
        for row in _rows(x):
            result.write(((row[index] - mean) / std)[None])
    return result.array


def _rows(x: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
    """Rows of an array, whose memory is given back on the way."""
    step = max(1, _BLOCK // max(1, x.shape[1]))
    for start in range(0, x.shape[0], step):
        yield from x[start : start + step]
        release(x)


def split_half_noise_ceiling(
    betas: Sequence[npt.NDArray[np.float32]],
    stimulus_ids: Sequence[Sequence[str]],
    ids: Sequence[str],
) -> Array:
    """Reliability of each voxel's response to the images, from halves of the repeats.

    The trials of each stimulus (in order over sessions) are dealt to two halves in turn and averaged
    in each; the correlation of the halves over stimuli, r, is stepped up to the reliability of the
    average of all trials by Spearman and Brown's formula, ``2 r / (1 + r)`` (0 where r is negative).

    Parameters
    ----------
    betas, stimulus_ids
        As in :func:`average_repeats`.
    ids : sequence of str
        Stimuli to use; those with a single trial are left out.

    Returns
    -------
    ndarray of float32, (voxels,)
        Between 0 and 1; NaN where a voxel is constant or not finite, or fewer than three stimuli were
        repeated. It is the largest share of variance of the averages that a model can explain.
    """
    trials = _trials_by_stimulus(betas, stimulus_ids, ids)
    repeated = [trials[stimulus] for stimulus in ids if len(trials[stimulus]) > 1]
    n_voxels = betas[0].shape[1] if betas else 0
    if len(repeated) < 3:
        return np.full(n_voxels, np.nan, dtype=np.float32)
    sums = np.zeros((5, n_voxels))  # of a, b, a*a, b*b, a*b; a and b about the first stimulus' average
    origin = np.mean([betas[s][t] for s, t in repeated[0]], axis=0, dtype=np.float64)
    for where in repeated:
        halves = (where[0::2], where[1::2])
        a, b = (np.mean([betas[s][t] for s, t in half], axis=0, dtype=np.float64) - origin for half in halves)
        sums += np.stack([a, b, a * a, b * b, a * b])
    mean_a, mean_b, aa, bb, ab = sums / len(repeated)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (ab - mean_a * mean_b) / np.sqrt((aa - mean_a**2) * (bb - mean_b**2))
        r = np.clip(r, 0.0, 1.0)  # NaN stays NaN
        ceiling: Array = (2 * r / (1 + r)).astype(np.float32)
    return ceiling
