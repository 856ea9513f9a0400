"""Responses to images: repeats averaged, unusable voxels dropped, z-scored by the training set.

Arrays are processed by row (image or trial) or in bounded blocks, and results can be written to files as
they are computed: memory does not grow with the number of trials or images.
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

#: A voxel with a standard deviation below this share of its mean's size varies by rounding only.
_CONSTANT = 1e-6
#: Elements processed at once, in float64: 32 MiB.
_BLOCK = 1 << 22
#: Sums of repeats held at once, in float64: 128 MiB.
_SUMS = 1 << 24


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
        False for voxels that are NaN or infinite in some row; the other dropped voxels do not vary.
    """

    train: Array
    test: Array
    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]
    kept: npt.NDArray[np.bool_]
    finite: npt.NDArray[np.bool_]


def count_dropped(kept: npt.NDArray[np.bool_], finite: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Count the voxels dropped for not being finite, and for being constant; see :class:`ZScored`."""
    return int(np.count_nonzero(~finite)), int(np.count_nonzero(finite & ~kept))


def average_repeats(
    betas: Sequence[npt.NDArray[np.float32]],
    stimulus_ids: Sequence[Sequence[str]],
    wanted: Sequence[str],
    out: Path | None = None,
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Average all trials of each stimulus, over sessions.

    Sums are float64, in the order of sessions and trials. A voxel that is NaN in any trial of a
    stimulus is NaN in its average. In addition to the result, the sums take 128 MiB at most: the stimuli are
    processed in blocks, and each block reads the sessions once, from front to back.

    Parameters
    ----------
    betas : sequence of ndarray of float32, (trials of the session, voxels)
        One array (or memory map) per session.
    stimulus_ids : sequence of sequence of str
        The stimulus of each trial of each session.
    wanted : sequence of str
        Stimuli to average, in the order of the result's rows.
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
        Exit code 65 if a stimulus was never shown.
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
            "Restrict the split to stimuli that the participant saw, or add the sessions with these stimuli.",
            exit_code=ExitCode.BAD_DATA,
        )
    return trials


def zscore(
    train: npt.NDArray[np.float32], test: npt.NDArray[np.float32], folder: Path | None = None
) -> ZScored:
    """Z-score each voxel with the training set's mean and standard deviation (``ddof=1``).

    Voxels that are constant in training (standard deviation below 1e-6 of the mean's size), or not finite
    in some row of either set, are dropped. The test rows do not influence the result in any other way. The
    images are read one by one, three times; in addition to the results, memory is a few rows.

    Parameters
    ----------
    train, test : ndarray of float32, (images, voxels)
    folder : Path, optional
        Where to write ``train.npy`` and ``test.npy``; the results are then memory maps of them.

    Raises
    ------
    AppError
        Exit code 65 if no voxel is left, or if there are fewer than two training images.
    """
    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1]:
        raise ValueError(f"shapes {train.shape} and {test.shape} are not (images, voxels) of the same voxels")
    n, n_voxels = train.shape
    if n < 2:
        raise AppError(
            f"{n} training images are too few for z-scores. Check the split.",
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
            "image, and the others do not vary. Check the betas of each session and the mask.",
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
    """Yield the rows of an array, releasing their memory along the way."""
    step = max(1, _BLOCK // max(1, x.shape[1]))
    for start in range(0, x.shape[0], step):
        yield from x[start : start + step]
        release(x)


def split_halves(
    betas: Sequence[npt.NDArray[np.float32]],
    stimulus_ids: Sequence[Sequence[str]],
    ids: Sequence[str],
    mean: npt.NDArray[np.float64],
    std: npt.NDArray[np.float64],
    kept: npt.NDArray[np.bool_],
) -> tuple[tuple[str, ...], Array, Array]:
    """Average two halves of each image's repeats, with the z-scoring of the responses.

    The trials of an image (in order over sessions) are assigned to the halves in turn; images shown once are
    left out. Three repeats give halves of two and one.

    Parameters
    ----------
    betas, stimulus_ids
        As in :func:`average_repeats`.
    ids : sequence of str
        Images to use.
    mean, std, kept
        As in :class:`ZScored`.

    Returns
    -------
    repeated : tuple of str
        The images that were shown at least twice, in the order of ``ids``.
    first, second : ndarray of float32, (len(repeated), kept voxels)
    """
    wanted, count = set(ids), dict.fromkeys(ids, 0)
    dealt: tuple[list[list[str]], list[list[str]]] = ([], [])
    for session in stimulus_ids:
        for half in dealt:
            half.append([""] * len(session))
        for trial, stimulus in enumerate(session):
            if stimulus in wanted:
                dealt[count[stimulus] % 2][-1][trial] = stimulus
                count[stimulus] += 1
    repeated = tuple(i for i in ids if count[i] > 1)
    index = np.flatnonzero(kept)
    halves = []
    for half in dealt:
        averaged, _ = average_repeats(betas, half, repeated)
        halves.append(((averaged[:, index] - mean) / std).astype(np.float32))
    return repeated, halves[0], halves[1]
