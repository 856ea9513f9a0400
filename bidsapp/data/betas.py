"""Single-trial betas: from 4-D sessions to (trials x voxels) arrays of the masked voxels.

A NIfTI session is streamed volume by volume; only the voxels of the mask are kept. Peak memory is one
volume plus one row of voxels, whatever the number of trials. From an HDF5 session, only the mask's voxels
are read, in bounded blocks (:mod:`bidsapp.data._hdf5_trials`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bidsapp.data._hdf5_trials import iterate_hdf5
from bidsapp.errors import AppError, ExitCode
from bidsapp.records import Mask, Session
from bidsapp.storage.hdf5 import SUFFIXES as HDF5_SUFFIXES
from bidsapp.storage.nifti import load_volume, open_volumes, refuse
from bidsapp.storage.npy import Rows, open_rows, row_writer

#: Trials that a message lists.
_LISTED = 5
#: Trials averaged for a background image: the first, because gzip files can only be read from the start.
N_BACKGROUND = 20
FIX_SESSION = (
    "Create the session's betas again, leave the session out (--session-label), or give such trials the "
    "stimulus n/a."
)


class SessionCheck:
    """Checks the trials of a session one by one for values that make the session useless.

    ``stimulus_ids`` holds the stimulus of every trial; trials with "" are not used, and so not checked.
    """

    def __init__(self, stimulus_ids: Sequence[str]) -> None:
        self._ids = stimulus_ids
        self._index = 0
        self._checked = 0
        self._dead: list[int] = []
        self._first: npt.NDArray[np.float32] | None = None
        self._varies = False

    def add(self, row: npt.NDArray[np.float32]) -> None:
        """Check the next trial, (voxels,)."""
        index, self._index = self._index, self._index + 1
        if not self._ids[index]:
            return
        self._checked += 1
        if not np.isfinite(row).any():
            self._dead.append(index)
        elif self._first is None:
            self._first = row.copy()
        elif not self._varies:
            # NaN differs from every value; that does not count as variation.
            self._varies = bool((np.isfinite(row) & np.isfinite(self._first) & (row != self._first)).any())

    def fault(self) -> str:
        """Return a sentence on what is wrong, "" if nothing is."""
        if self._dead and len(self._dead) == self._checked:
            return f"All {self._checked} trials are NaN or infinite in every voxel of the region of interest."
        if self._dead:
            listed = ", ".join(map(str, self._dead[:_LISTED])) + (" ..." if len(self._dead) > _LISTED else "")
            what = f"trials (counted from 0: {listed}) are" if len(self._dead) > 1 else f"trial ({listed}) is"
            return f"{len(self._dead)} {what} NaN or infinite in every voxel of the region of interest."
        if self._checked > 1 and not self._varies:
            return f"Every voxel of the region of interest has the same value in all {self._checked} trials."
        return ""


def read_map(path: Path, mask: Mask) -> npt.NDArray[np.float32]:
    """Read a 3-D map (a noise ceiling) in the mask's voxels.

    Returns
    -------
    ndarray of float32, (voxels,)

    Raises
    ------
    AppError
        Exit code 65 if the map has another shape than the mask.
    """
    values = load_volume(path).data
    if values.shape != mask.shape:
        raise AppError(
            f"{path}: Its shape is {values.shape}, the mask's {mask.shape}. Use a map in the betas' space.",
            exit_code=ExitCode.BAD_DATA,
        )
    return values.astype(np.float32).reshape(-1, order="F")[mask.flat_index]


def mask_session(
    session: Session, mask: Mask, out: Path, before_row: Callable[[], None] = lambda: None
) -> Rows:
    """Extract the mask's voxels of every trial of a session, as percent signal change.

    Values are ``(stored * scl_slope + scl_inter) / session.scale``, computed in float64 and kept as
    float32. NaN stays NaN. Grids are compared by shape only: the preflight compares affines.

    Parameters
    ----------
    session : Session
        Its ``betas`` must have one volume for each of ``stimulus_ids``.
    out : Path
        ``.npy`` file to write; it appears under this name only when complete.
    before_row : callable, optional
        Called before every row is written; an exception that it raises ends the work.

    Returns
    -------
    memmap of float32, (trials, voxels)
        Read-only. Rows in volume order, columns in the order of ``mask.flat_index``.

    Raises
    ------
    AppError
        Exit code 65 for a truncated or damaged file, a shape other than the mask's, or a number of
        volumes other than the number of trials; 66 for a missing file.
    """
    check = SessionCheck(session.stimulus_ids)
    with row_writer(out, (len(session.stimulus_ids), mask.n_voxels)) as write:
        for row in iterate_trials(session, mask):
            before_row()
            check.add(row)
            write(row)
        if fault := check.fault():
            refuse(session.betas, fault, FIX_SESSION)
    return open_rows(out)


def iterate_trials(
    session: Session, mask: Mask, first: int | None = None
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the first or all trials, (voxels,) float32 percent signal change; see :func:`mask_session`."""
    path = session.betas
    if not math.isfinite(session.scale) or session.scale == 0:
        refuse(path, f"The scale factor is {session.scale}.", "Correct ScaleFactor in the JSON sidecar.")
    n_trials = len(session.stimulus_ids)
    if path.suffix in HDF5_SUFFIXES:
        for stored in iterate_hdf5(path, mask.shape, mask.flat_index, n_trials, session.trials, first=first):
            yield _percent(stored, 1.0, 0.0, session.scale)
        return
    with open_volumes(path) as (header, volumes):
        if header.shape != mask.shape:
            refuse(
                path,
                f"Its volumes have the shape {header.shape}, the mask has {mask.shape}.",
                "Choose a mask of the same space (--space, --roi).",
            )
        if header.n_volumes != n_trials:
            refuse(
                path,
                f"It has {header.n_volumes} volumes, but {session.trials} lists {n_trials} trials.",
                "Both must have one entry per trial, in the same order.",
            )
        for volume in islice(volumes, first):
            yield _percent(volume.take(mask.flat_index), header.slope, header.intercept, session.scale)


def background_of(session: Session, shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """Average the absolute values of a session's first trials, to show a map on.

    Voxels outside the brain are 0 in the betas of most pipelines, so its outline is visible.

    Returns
    -------
    ndarray of float32, (x, y, z)
        Percent signal change, 0 where it is not finite. All 0 for HDF5 betas, where reading whole volumes
        would mean reading the whole file.

    Raises
    ------
    AppError
        As :func:`mask_session`.
    """
    total = np.zeros(int(np.prod(shape)), dtype=np.float64)
    if session.betas.suffix in HDF5_SUFFIXES:
        return total.astype(np.float32).reshape(shape, order="F")
    with open_volumes(session.betas) as (header, volumes):
        if header.shape != shape:
            refuse(session.betas, f"Its volumes have the shape {header.shape}, {shape} was expected.")
        read = 0
        for volume in islice(volumes, N_BACKGROUND):
            values = np.abs(volume.astype(np.float64) * header.slope + header.intercept)
            total += np.where(np.isfinite(values), values, 0.0)
            read += 1
    mean = total / (max(read, 1) * session.scale)
    return mean.astype(np.float32).reshape(shape, order="F")


def _percent(
    stored: npt.NDArray[Any], slope: float, intercept: float, scale: float
) -> npt.NDArray[np.float32]:
    row = stored.astype(np.float64)
    row *= slope
    row += intercept
    row /= scale
    return row.astype(np.float32)
