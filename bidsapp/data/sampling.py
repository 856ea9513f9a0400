"""A look into the betas of a session, as far as takes milliseconds: its first trials."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bidsapp.data._contents import MEND_SESSION, Contents
from bidsapp.data.betas import Mask, iterate_trials
from bidsapp.errors import AppError, Problem
from bidsapp.hdf5 import SUFFIXES as HDF5_SUFFIXES
from bidsapp.records import Session

#: Trials that are looked at. A gzip file can only be read from its beginning, so they are the first.
N_SAMPLED = 3
#: Voxels that are looked at in an HDF5 file, where each is a read of its own.
N_VOXELS = 32


def check_sample(session: Session, inside: npt.NDArray[np.bool_]) -> list[Problem]:
    """Look for NaN and for values that never change in a session's first trials.

    Whether later trials are sound is seen when they are masked
    (:func:`bidsapp.data.betas.mask_session` says it then, in the same words).

    Parameters
    ----------
    session : Session
    inside : ndarray of bool, (x, y, z)
        The voxels that will be decoded.

    Returns
    -------
    list of Problem
        One at most.
    """
    flat_index = np.flatnonzero(inside.ravel(order="F")).astype(np.int64)
    whole = flat_index.size
    if session.betas.suffix in HDF5_SUFFIXES:
        flat_index = flat_index[:: max(1, whole // N_VOXELS)]
    mask = Mask(data=inside, affine=np.eye(4), flat_index=flat_index)
    contents = Contents(session.stimulus_ids)
    try:
        for row in iterate_trials(session, mask, N_SAMPLED):
            contents.see(row)
    except AppError as error:
        return [Problem.of(error, session.betas)]
    fault = contents.fault()
    if not fault:
        return []
    voxels = "" if flat_index.size == whole else f", in {flat_index.size} of {whole} voxels"
    looked = f" The first {N_SAMPLED} of its {len(session.stimulus_ids)} trials were looked at{voxels}."
    return [Problem(str(session.betas), fault + looked, MEND_SESSION)]
