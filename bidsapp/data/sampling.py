"""Quick checks of the betas of a session, from its first trials only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bidsapp.data.betas import FIX_SESSION, SessionCheck, iterate_trials
from bidsapp.errors import AppError, Problem
from bidsapp.records import Mask, Session
from bidsapp.storage.hdf5 import SUFFIXES as HDF5_SUFFIXES

#: Trials that are checked: the first, because gzip files can only be read from the start.
N_SAMPLED = 3
#: Voxels that are checked in an HDF5 file, which needs one read per voxel.
N_VOXELS = 32
#: Typical magnitudes of a subject's sessions differ by less than this; a lost scale factor shifts by 300.
MOST_APART = 30.0


def sample_session(session: Session, mask: Mask) -> tuple[list[Problem], float]:
    """Look for NaN and for values that never change in a session's first trials, within the mask.

    Later trials are checked when they are masked (:func:`bidsapp.data.betas.mask_session`).

    Returns
    -------
    problems : list of Problem
        One at most.
    magnitude : float
        Median absolute value of what differs from 0, in percent signal change according to the sidecar; NaN
        if unknown.
    """
    whole = mask.n_voxels
    if session.betas.suffix in HDF5_SUFFIXES:
        mask = mask.subset(slice(None, None, max(1, whole // N_VOXELS)))
    check = SessionCheck(session.stimulus_ids)
    sizes = []
    try:
        for row in iterate_trials(session, mask, N_SAMPLED):
            check.add(row)
            sizes.append(np.abs(row[np.isfinite(row) & (row != 0)]))
    except AppError as error:
        return [Problem.of(error, session.betas)], np.nan
    fault = check.fault()
    if not fault:
        values = np.concatenate(sizes) if sizes else np.empty(0)
        return [], float(np.median(values)) if values.size else np.nan
    voxels = "" if mask.n_voxels == whole else f", in {mask.n_voxels} of {whole} voxels"
    checked = f" The first {N_SAMPLED} of its {len(session.stimulus_ids)} trials were checked{voxels}."
    return [Problem(str(session.betas), fault + checked, FIX_SESSION)], np.nan


def check_magnitudes(sessions: Sequence[Session], magnitudes: Sequence[float]) -> list[Problem]:
    """Look for sessions with a wrong scale factor, by comparison with the subject's other sessions.

    ``magnitudes`` are those of :func:`sample_session`. Reports each session that is more than
    :data:`MOST_APART` times larger or smaller than usual.
    """
    known = [m for m in magnitudes if np.isfinite(m)]
    if not known:
        return []
    # The lower median: of two sessions, only one is reported.
    usual = sorted(known)[(len(known) - 1) // 2]
    problems = []
    for session, own in zip(sessions, magnitudes, strict=True):
        if np.isfinite(own) and not 1 / MOST_APART < own / usual < MOST_APART:
            what = (
                f"Its values are about {own:.3g} percent signal change with scale factor {session.scale:g}, "
                f"those of the subject's other sessions about {usual:.3g}."
            )
            fix = "Check ScaleFactor in its sidecar (1 if it is missing), and whether the file was rescaled."
            problems.append(Problem(str(session.betas), what, fix))
    return problems
