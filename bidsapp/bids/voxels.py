"""Which voxels of a subject are decoded: the union of the ROIs, above a noise ceiling where one is asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bidsapp.bids import _rois
from bidsapp.bids.inputs import Dataset
from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.nifti import load_volume

#: What ``Units`` of a noise ceiling may be; NSD and LAION-fMRI give percent.
_PERCENT = ("percent", "%")


@dataclass(frozen=True)
class Voxels:
    """The voxels chosen of one subject.

    Attributes
    ----------
    inside : ndarray of bool, (x, y, z)
    n_roi : int
        Voxels in the union of the ROIs, before the noise ceiling was asked about.
    """

    inside: NDArray[np.bool_]
    n_roi: int

    @property
    def n(self) -> int:
        """Number of voxels chosen."""
        return int(np.count_nonzero(self.inside))


def chosen_voxels(dataset: Dataset, subject: str, min_noise_ceiling: float | None = None) -> Voxels:
    """Find the voxels that will be decoded.

    Parameters
    ----------
    dataset : Dataset
    subject : str
        Label of a subject with at least one ROI; all of them must have one shape.
    min_noise_ceiling : float, optional
        Percent: voxels whose noise ceiling is lower, or not finite, are left out.

    Raises
    ------
    AppError
        Exit code 65 for a damaged image, images of different shapes, or a noise ceiling that is not in
        percent; 66 where a noise ceiling is asked for and the subject has no map of it.
    """
    union: NDArray[np.bool_] | None = None
    for roi in dataset.rois[subject].values():
        inside = _rois.inside_roi(roi)
        if union is not None and union.shape != inside.shape:
            raise _bad(roi.path, f"has the shape {inside.shape}, another ROI has {union.shape}")
        union = inside if union is None else union | inside
    assert union is not None
    n_roi = int(np.count_nonzero(union))
    if min_noise_ceiling is not None:
        union = union & (noise_ceiling(dataset, subject, union) >= min_noise_ceiling)
    return Voxels(union, n_roi)


def noise_ceiling(dataset: Dataset, subject: str, inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Read a subject's noise ceiling, (x, y, z) in percent; see :func:`chosen_voxels` for the errors."""
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
        raise _bad(path, f"is in the unit {units!r} by its sidecar; percent is needed")
    known = values[inside & np.isfinite(values)]
    if not units and known.size and 0 < known.max() <= 1:
        raise _bad(path, f"has no value above {known.max():.3g}, so it seems to hold shares, not percent")
    return values


def _bad(path: Path, what: str) -> AppError:
    return AppError(f"{path}: {what}.", exit_code=ExitCode.BAD_DATA, path=path)
