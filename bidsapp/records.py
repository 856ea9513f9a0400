"""Small frozen records that pass between all parts of the app."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

#: How reports and sentences name the targets that responses are regressed on.
TARGET_TITLES = {
    "vdvae": "VDVAE latents",
    "clip_vision": "CLIP image tokens",
    "clip_text": "CLIP text tokens",
    "clip_image": "CLIP image embedding",
}


@dataclass(frozen=True)
class Session:
    """One session of single-trial betas: a 4-D file with one volume per trial.

    Attributes
    ----------
    label : str
        BIDS session label without ``ses-`` ("" where the file has none).
    betas : Path
        4-D ``*_statmap.nii.gz`` (or ``.nii``), or ``*_statmap.hdf5`` (or ``.h5``) with the array
        ``betas``, (trials, z, y, x).
    trials : Path
        ``*_trials.tsv`` with one row per volume.
    stimulus_ids : tuple of str
        The stimulus of every volume, in volume order, as in ``stimuli.tsv`` without ``stim-``.
    scale : float
        Stored values divided by this are percent signal change (NSD: 300).
    """

    label: str
    betas: Path
    trials: Path
    stimulus_ids: tuple[str, ...]
    scale: float = 1.0


@dataclass(frozen=True)
class SubjectInputs:
    """The input files of one subject.

    ``masks`` maps the name of each chosen ROI to its 3-D mask file; voxels are where any is > 0.
    """

    label: str
    task: str
    space: str
    sessions: tuple[Session, ...]
    masks: dict[str, Path] = field(default_factory=dict)
    noise_ceiling: Path | None = None
    #: reference of the betas' space (an image or URI), for ``SpatialReference`` of outputs
    spatial_reference: str | None = None


@dataclass(frozen=True, eq=False)
class Mask:
    """The voxels that are decoded.

    Attributes
    ----------
    inside : ndarray of bool, (x, y, z)
    affine : ndarray of float64, (4, 4)
        Voxel indices to mm.
    n_roi : int
        Voxels in the union of the ROIs, before any was left out for its noise ceiling.
    """

    inside: npt.NDArray[np.bool_]
    affine: npt.NDArray[np.float64]
    n_roi: int = 0

    @cached_property
    def flat_index(self) -> npt.NDArray[np.int64]:
        """Positions in a volume flattened in Fortran order, (voxels,), ascending.

        They fix the order of the voxels in every array of this app.
        """
        return np.flatnonzero(self.inside.ravel(order="F")).astype(np.int64)

    @property
    def n_voxels(self) -> int:
        """Number of voxels in the mask."""
        return int(self.flat_index.size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(x, y, z)."""
        x, y, z = self.inside.shape
        return x, y, z

    def subset(self, keep: npt.NDArray[np.bool_] | slice) -> Mask:
        """Keep some of the voxels, (voxels,) or a slice of them."""
        flat = np.zeros(self.inside.size, dtype=np.bool_)
        flat[self.flat_index[keep]] = True
        return Mask(flat.reshape(self.shape, order="F"), self.affine, self.n_roi)

    def to_volume(self, values: npt.ArrayLike, fill: float = np.nan) -> npt.NDArray[np.float32]:
        """Put one value per voxel, (voxels,), into a volume, (x, y, z), that is ``fill`` elsewhere."""
        values = np.asarray(values)
        if values.shape != (self.n_voxels,):
            raise ValueError(f"values have shape {values.shape}; expected ({self.n_voxels},)")
        flat = np.full(self.inside.size, fill, dtype=np.float32)
        flat[self.flat_index] = values
        return flat.reshape(self.shape, order="F")


@dataclass(frozen=True)
class Split:
    """The stimuli of the training and test set, as ids without ``stim-``, each sorted.

    Attributes
    ----------
    train, test : tuple of str
        Stimuli that the subject saw.
    file : Path or None
        From which the split was read; ``sha256`` is that of its bytes, hexadecimal.
    variant, n_variants : str and int
        The variant used, of ``n_variants`` in the file; "" where it has none.
    unknown : tuple of str
        Ids of the file that are not stimuli of the dataset, sorted.
    unseen : int
        Number of the file's stimuli that the subject did not see.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    file: Path | None = None
    sha256: str = ""
    variant: str = ""
    n_variants: int = 0
    unknown: tuple[str, ...] = ()
    unseen: int = 0
