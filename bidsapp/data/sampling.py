"""A look into the betas of a session, as far as takes milliseconds: its first trials."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bidsapp.data._contents import MEND_SESSION, Contents
from bidsapp.data.betas import iterate_trials
from bidsapp.errors import AppError, Problem
from bidsapp.records import Mask, Session
from bidsapp.storage.hdf5 import SUFFIXES as HDF5_SUFFIXES

#: Trials that are looked at. A gzip file can only be read from its beginning, so they are the first.
N_SAMPLED = 3
#: Voxels that are looked at in an HDF5 file, where each is a read of its own.
N_VOXELS = 32


#: Typical magnitudes of a subject's sessions differ by less than this; a lost scale factor shifts by 300.
MOST_APART = 30.0


def look_into(session: Session, mask: Mask) -> tuple[list[Problem], float]:
    """Look for NaN and for values that never change in a session's first trials.

    Whether later trials are sound is seen when they are masked
    (:func:`bidsapp.data.betas.mask_session` says it then, in the same words).

    Parameters
    ----------
    session : Session
    mask : Mask
        The voxels that will be decoded.

    Returns
    -------
    problems : list of Problem
        One at most.
    magnitude : float
        Median of what differs from 0, without its sign, in percent signal change as the sidecar has it; NaN
        where the session can't tell.
    """
    whole = mask.n_voxels
    if session.betas.suffix in HDF5_SUFFIXES:
        mask = mask.subset(slice(None, None, max(1, whole // N_VOXELS)))
    contents = Contents(session.stimulus_ids)
    sizes = []
    try:
        for row in iterate_trials(session, mask, N_SAMPLED):
            contents.see(row)
            sizes.append(np.abs(row[np.isfinite(row) & (row != 0)]))
    except AppError as error:
        return [Problem.of(error, session.betas)], np.nan
    fault = contents.fault()
    if not fault:
        values = np.concatenate(sizes) if sizes else np.empty(0)
        return [], float(np.median(values)) if values.size else np.nan
    voxels = "" if mask.n_voxels == whole else f", in {mask.n_voxels} of {whole} voxels"
    looked = f" The first {N_SAMPLED} of its {len(session.stimulus_ids)} trials were looked at{voxels}."
    return [Problem(str(session.betas), fault + looked, MEND_SESSION)], np.nan


def check_magnitudes(sessions: Sequence[Session], magnitudes: Sequence[float]) -> list[Problem]:
    """Look for sessions that another scale factor than their own made, against the other sessions.

    Parameters
    ----------
    sessions : sequence of Session
        Of one subject.
    magnitudes : sequence of float
        Of each; see :func:`look_into`.

    Returns
    -------
    list of Problem
        For each session whose magnitude is more than :data:`MOST_APART` times more or less than usual.
    """
    known = [m for m in magnitudes if np.isfinite(m)]
    if not known:
        return []
    # The lower one of the two in the middle: of two sessions one is told from the other.
    usual = sorted(known)[(len(known) - 1) // 2]
    problems = []
    for session, own in zip(sessions, magnitudes, strict=True):
        if np.isfinite(own) and not 1 / MOST_APART < own / usual < MOST_APART:
            what = (
                f"Its values are about {own:.3g} percent signal change with scale factor {session.scale:g}, "
                f"those of the subject's other sessions about {usual:.3g}."
            )
            mend = (
                "Check ScaleFactor in its sidecar (1 where there is none), and whether the file was rescaled."
            )
            problems.append(Problem(str(session.betas), what, mend))
    return problems
