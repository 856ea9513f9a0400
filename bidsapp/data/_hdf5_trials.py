"""Trials of an HDF5 session file, reading only what the mask needs.

NSD's files hold ``betas``, axes (trials, z, y, x) as Python counts them (x, y, z, trials in MATLAB),
int16, in chunks of one voxel over all trials (NSD data manual, "Functional data (NSD)"). So a voxel is
one short read, and a mask of 15,724 voxels needs a fiftieth of the file. Files with other chunks are read
chunk by chunk; for an array without chunks, the box around the mask is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bidsapp.storage.hdf5 import BETAS, DAMAGED, REVERSED_AXES, REVERSED_AXES_FIX, is_complete, open_array
from bidsapp.storage.nifti import refuse

#: Values of one read, or of one block of trials, held in memory.
_BLOCK = 1 << 24


@dataclass(frozen=True)
class _Cell:
    """Voxels of the mask that are read at once: a box, and their positions in it and in a row."""

    box: tuple[slice, slice, slice]
    inside: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]

    @property
    def size(self) -> int:
        """Voxels of the box."""
        return math.prod(s.stop - s.start for s in self.box)


def iterate_hdf5(
    path: Path,
    shape: tuple[int, int, int],
    flat_index: npt.NDArray[np.int64],
    n_trials: int,
    trials: Path,
    *,
    first: int | None = None,
) -> Iterator[npt.NDArray[Any]]:
    """Yield the mask's voxels of each trial, (voxels,), as stored.

    Memory is a block of trials of the mask's voxels, and one read, each of 16 million values at most.

    Parameters
    ----------
    shape : tuple of int
        (x, y, z) of the mask.
    flat_index : ndarray of int64, (voxels,)
        Positions in a volume flattened in Fortran order.
    n_trials : int
        Number of trials that the file must have.
    trials : Path
        The file that lists the trials, for messages.
    first : int, optional
        Yield only this many trials. The file is then not checked for completeness, which would require
        reading its whole index.

    Raises
    ------
    AppError
        Exit code 65 for another shape or number of trials, or for a file that is incomplete or cannot be
        read; see also :func:`bidsapp.storage.hdf5.open_array`.
    """
    with open_array(path, BETAS, 4) as array:
        _check_shape(path, array.shape, shape, n_trials, trials)
        try:
            complete = first is not None or is_complete(array)
        except DAMAGED as error:
            refuse(path, f"The file is damaged ({error}).")
        if not complete:
            refuse(path, "The file is incomplete: parts of its betas were never written.")
        cells = _cells(shape, flat_index, array.chunks)
        step = max(1, _BLOCK // max(flat_index.size, *(cell.size for cell in cells)))
        if array.chunks and step > array.chunks[0]:
            step -= step % array.chunks[0]
        end = n_trials if first is None else min(first, n_trials)
        for start in range(0, end, step):
            rows = slice(start, min(start + step, end))
            block = np.empty((rows.stop - rows.start, flat_index.size), dtype=array.dtype)
            for cell in cells:
                try:
                    values = array[(rows, *cell.box)]
                except DAMAGED as error:
                    refuse(path, f"Trials {rows.start + 1} to {rows.stop} cannot be read ({error}).")
                block[:, cell.columns] = values.reshape(len(values), -1)[:, cell.inside]
            yield from block


def _check_shape(
    path: Path, found: tuple[int, ...], shape: tuple[int, int, int], n_trials: int, trials: Path
) -> None:
    if found[1:] != shape[::-1]:
        if found[:3] == shape:
            refuse(path, REVERSED_AXES, REVERSED_AXES_FIX)
        refuse(
            path,
            f"Its volumes have the shape {found[:0:-1]}, the mask has {shape}.",
            "Choose a mask of the same space (--space, --roi).",
        )
    if found[0] != n_trials:
        refuse(
            path,
            f"It has {found[0]} volumes, but {trials} lists {n_trials} trials.",
            "Both must have one entry per trial, in the same order.",
        )


def _cells(
    shape: tuple[int, int, int], flat_index: npt.NDArray[np.int64], chunks: tuple[int, ...] | None
) -> list[_Cell]:
    """Group the voxels by the chunks that contain them, in the file's order."""
    places = np.stack(np.unravel_index(flat_index, shape, order="F")[::-1])  # z, y, x
    size = np.array(chunks[1:] if chunks else shape[::-1])[:, None]
    grid = tuple(int(n) for n in -(-np.array(shape[::-1]) // size[:, 0]))
    keys = np.ravel_multi_index(tuple(places // size), grid)
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
    low = np.minimum.reduceat(places[:, order], starts, axis=1)
    width = np.maximum.reduceat(places[:, order], starts, axis=1) + 1 - low
    cell_of = np.repeat(np.arange(starts.size), np.diff(starts, append=order.size))
    z, y, x = places[:, order] - low[:, cell_of]
    inside = (z * width[1, cell_of] + y) * width[2, cell_of] + x
    cells = []
    for (a, b, c), (i, j, k), own, columns in zip(
        low.T.tolist(),
        (low + width).T.tolist(),
        np.split(inside, starts[1:]),
        np.split(order, starts[1:]),
        strict=True,
    ):
        cells.append(_Cell((slice(a, i), slice(b, j), slice(c, k)), own, columns))
    return cells
