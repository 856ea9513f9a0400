"""Voxels chosen by how reliable their responses are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from bidsapp.data.betas import Mask, read_map
from bidsapp.storage.nifti import refuse


def keep_reliable(mask: Mask, noise_ceiling: Path, minimum: float) -> Mask:
    """Leave out the voxels whose noise ceiling is below a minimum, or not known.

    Parameters
    ----------
    mask : Mask
    noise_ceiling : Path
        3-D map on the mask's grid, percent; NaN where it is not known.
    minimum : float
        Percent; a voxel at the minimum stays.

    Returns
    -------
    Mask
        Of the same volume, with fewer voxels.

    Raises
    ------
    AppError
        Exit code 65 where the map has another shape, or no voxel is left.
    """
    with np.errstate(invalid="ignore"):  # NaN is not above anything
        keep = read_map(noise_ceiling, mask) >= minimum
    if not keep.any():
        refuse(
            noise_ceiling,
            f"None of the {mask.n_voxels} voxels has a noise ceiling of {minimum:g} % or more.",
            "Ask for less with --min-noise-ceiling, or choose another region of interest.",
        )
    flat_index = mask.flat_index[keep]
    flat = np.zeros(mask.data.size, dtype=np.bool_)
    flat[flat_index] = True
    return replace(mask, data=flat.reshape(mask.shape, order="F"), flat_index=flat_index)
