"""Which voxels of a subject are decoded: the union of the ROIs, optionally above a noise ceiling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bidsapp.bids.inputs import Dataset
from bidsapp.errors import AppError, ExitCode
from bidsapp.records import Mask
from bidsapp.storage.nifti import TOLERANCE, displacement, load_volume

#: What ``Units`` of a noise ceiling may be; NSD and LAION-fMRI give percent.
_PERCENT = ("percent", "%")


def choose_voxels(dataset: Dataset, subject: str, min_noise_ceiling: float | None = None) -> Mask:
    """Find the voxels that will be decoded.

    Parameters
    ----------
    subject : str
        Label of a subject with at least one ROI.
    min_noise_ceiling : float, optional
        Percent: voxels whose noise ceiling is lower, or not finite, are left out.

    Raises
    ------
    AppError
        Exit code 65 for a damaged image, ROIs on different grids, or a noise ceiling that is not in
        percent; 66 if a noise ceiling is required and the subject has no map of it.
    """
    found: Mask | None = None
    for roi in dataset.rois[subject].values():
        volume = load_volume(roi.path)
        inside = roi.inside(volume)
        if found is None:
            found = Mask(inside, volume.affine)
        elif inside.shape != found.shape:
            raise _bad(roi.path, f"has the shape {inside.shape}, another ROI has {found.shape}")
        elif displacement(found.affine, volume.affine, inside.shape) > TOLERANCE:
            raise _bad(roi.path, "differs in its affine from another ROI, so the two are on different grids")
        else:
            found = Mask(found.inside | inside, found.affine)
    assert found is not None
    keep = found.inside
    if min_noise_ceiling is not None:
        keep = keep & (noise_ceiling(dataset, subject, keep) >= min_noise_ceiling)
    return Mask(keep, found.affine, found.n_voxels)


def noise_ceiling(dataset: Dataset, subject: str, inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Read the noise ceiling of a subject, (x, y, z) in percent; see :func:`choose_voxels` for the errors."""
    path = dataset.subject(subject).noise_ceiling
    if path is None:
        raise AppError(
            "there is no noise-ceiling map (*_desc-noiseceiling_statmap.nii.gz).",
            exit_code=ExitCode.NO_INPUT,
        )
    values = load_volume(path).data.astype(np.float32)
    if values.shape != inside.shape:
        raise _bad(path, f"has the shape {values.shape}, the ROI has {inside.shape}")
    units = dataset.units.get(str(path), "")
    if units and units.lower() not in _PERCENT:
        raise _bad(path, f"has the unit {units!r} in its sidecar; percent is needed")
    known = values[inside & np.isfinite(values)]
    if not units and known.size and 0 < known.max() <= 1:
        raise _bad(path, f"has no value above {known.max():.3g}, so it seems to hold fractions, not percent")
    return values


def _bad(path: Path, what: str) -> AppError:
    return AppError(f"{path}: {what}.", exit_code=ExitCode.BAD_DATA, path=path)
