"""A picture of the whole volume, to show voxels on: the size of the first responses."""

from __future__ import annotations

from itertools import islice

import numpy as np
import numpy.typing as npt

from bidsapp.records import Session
from bidsapp.storage.hdf5 import SUFFIXES as HDF5_SUFFIXES
from bidsapp.storage.nifti import open_volumes, refuse

#: Trials that are averaged. A gzip file can only be read from its beginning, so they are the first.
N_TRIALS = 20


def background_of(session: Session, shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """Average the absolute values of a session's first trials, in every voxel of the volume.

    Voxels outside the brain are 0 in the betas of most pipelines, so that its outline shows.

    Parameters
    ----------
    session : Session
    shape : tuple of int
        Of the volume, (x, y, z).

    Returns
    -------
    ndarray of float32, (x, y, z)
        Percent signal change, 0 where it is not finite. All 0 for HDF5 betas, where to read whole volumes
        is to read the file.

    Raises
    ------
    AppError
        As :func:`bidsapp.data.betas.iterate_trials`.
    """
    total = np.zeros(int(np.prod(shape)), dtype=np.float64)
    if session.betas.suffix in HDF5_SUFFIXES:
        return total.astype(np.float32).reshape(shape, order="F")
    with open_volumes(session.betas) as (header, volumes):
        if header.shape != shape:
            refuse(session.betas, f"Its volumes have the shape {header.shape}, {shape} was expected.")
        read = 0
        for volume in islice(volumes, N_TRIALS):
            values = np.abs(volume.astype(np.float64) * header.slope + header.intercept)
            total += np.where(np.isfinite(values), values, 0.0)
            read += 1
    mean = total / (max(read, 1) * session.scale)
    return mean.astype(np.float32).reshape(shape, order="F")
