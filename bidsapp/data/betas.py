"""Single-trial betas: from 4-D sessions to (trials x voxels) arrays of the masked voxels.

A NIfTI session is streamed volume by volume; only the voxels of the mask are kept. Peak memory is one
volume plus one row of voxels, whatever the number of trials. Of an HDF5 session only the mask's voxels
are read, in bounded blocks (:mod:`bidsapp.data._hdf5_trials`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bidsapp.data._contents import MEND_SESSION, Contents
from bidsapp.data._hdf5_trials import iterate_hdf5
from bidsapp.errors import AppError, ExitCode
from bidsapp.records import Mask, Session
from bidsapp.storage.hdf5 import SUFFIXES as HDF5_SUFFIXES
from bidsapp.storage.nifti import load_volume, open_volumes, refuse
from bidsapp.storage.npy import Rows, open_rows, row_writer


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
            f"{path}: of shape {values.shape}, the mask has {mask.shape}. Give a map of the betas' space.",
            exit_code=ExitCode.BAD_DATA,
        )
    return values.astype(np.float32).reshape(-1, order="F")[mask.flat_index]


def mask_session(
    session: Session, mask: Mask, out: Path, before_row: Callable[[], None] = lambda: None
) -> Rows:
    """Take the mask's voxels of every trial of a session, as percent signal change.

    Values are ``(stored * scl_slope + scl_inter) / session.scale``, computed in float64 and kept as
    float32. NaN stays NaN. Grids are compared by
    shape only: the preflight compares affines, before any computing.

    Parameters
    ----------
    session : Session
        Its ``betas`` must have one volume for each of ``stimulus_ids``.
    mask : Mask
    out : Path
        ``.npy`` file to write; it appears under this name only when complete.
    before_row : callable, optional
        Called before every row is written; what it raises ends the work.

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
    contents = Contents(session.stimulus_ids)
    with row_writer(out, (len(session.stimulus_ids), mask.n_voxels)) as write:
        for row in iterate_trials(session, mask):
            before_row()
            contents.see(row)
            write(row)
        if fault := contents.fault():
            refuse(session.betas, fault, MEND_SESSION)
    return open_rows(out)


def iterate_trials(
    session: Session, mask: Mask, first: int | None = None
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield each trial, (voxels,) float32 percent signal change, or the first; see :func:`mask_session`."""
    path = session.betas
    if not math.isfinite(session.scale) or session.scale == 0:
        refuse(path, f"The scale factor is {session.scale}.", "Mend ScaleFactor in the JSON sidecar.")
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
                "Both must have one entry a trial, in the same order.",
            )
        for volume in islice(volumes, first):
            yield _percent(volume.take(mask.flat_index), header.slope, header.intercept, session.scale)


def _percent(
    stored: npt.NDArray[Any], slope: float, intercept: float, scale: float
) -> npt.NDArray[np.float32]:
    row = stored.astype(np.float64)
    row *= slope
    row += intercept
    row /= scale
    return row.astype(np.float32)
