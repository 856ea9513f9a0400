"""The small frozen records that pass between the rooms. No heavy imports, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

#: How reports and sentences name the targets that responses are regressed on.
TARGET_TITLES = {
    "vdvae": "VDVAE latents",
    "clip_vision": "CLIP image tokens",
    "clip_text": "CLIP text tokens",
    "clip_image": "CLIP image embedding",
}


@dataclass(frozen=True)
class Session:
    """One session of single-trial betas: a 4-D file, a volume a trial.

    Attributes
    ----------
    label : str
        BIDS session label without ``ses-`` ("" where the file has none).
    betas : Path
        4-D ``*_statmap.nii.gz`` (or ``.nii``), or ``*_statmap.hdf5`` (or ``.h5``) with the array
        ``betas``, (trials, z, y, x).
    trials : Path
        ``*_trials.tsv`` with one row a volume.
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
    """Everything the participant level needs of one subject.

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


@dataclass(frozen=True)
class Split:
    """The stimuli of the training and test set, as ids without ``stim-``, each sorted.

    Attributes
    ----------
    name : str
    train, test : tuple of str
        Stimuli that the subject saw.
    file : Path or None
        Where the split was read from, and ``sha256`` of its bytes, hexadecimal.
    variant, n_variants : str and int
        Which of the file's ``n_variants``; "" where it has none.
    unknown : tuple of str
        Ids of the file that the dataset's stimuli do not have, sorted.
    unseen : int
        How many stimuli of the file the dataset has but the subject did not see.
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
