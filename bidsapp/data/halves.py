"""Halves of the repeats of an image, for what its response's reliability allows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bidsapp.data.responses import average_repeats

Array = npt.NDArray[np.float32]


def split_halves(
    betas: Sequence[npt.NDArray[np.float32]],
    stimulus_ids: Sequence[Sequence[str]],
    ids: Sequence[str],
    mean: npt.NDArray[np.float64],
    std: npt.NDArray[np.float64],
    kept: npt.NDArray[np.bool_],
) -> tuple[tuple[str, ...], Array, Array]:
    """Average two halves of each image's repeats, z-scored as the responses are.

    The trials of an image (in order over sessions) are dealt to the halves in turn; an image that was
    shown once is left out. Three repeats give halves of two and one.

    Parameters
    ----------
    betas, stimulus_ids
        As in :func:`~bidsapp.data.responses.average_repeats`.
    ids : sequence of str
        Images to use.
    mean, std : ndarray of float64, (kept voxels,)
        Of the training responses.
    kept : ndarray of bool, (voxels,)

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
