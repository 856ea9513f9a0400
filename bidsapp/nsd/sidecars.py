"""Metadata of the converted dataset: its description, sidecars and README."""

from __future__ import annotations

from typing import Any

from bidsapp import __version__
from bidsapp.nsd import layout
from bidsapp.nsd.design import Repeats
from bidsapp.nsd.layout import Nsd

#: ``GeneratedBy`` name of a converted dataset.
GENERATOR = "bidsapp-recon nsd2bids"
BIDS_VERSION = "1.11.1"
#: Names that BIDS does not know yet.
BIDSIGNORE = ("*_statmap.*", "*_trials.*")


def settings(nsd: Nsd, stimuli: str) -> str:
    """One line with the settings that must be the same in all runs into one dataset."""
    return f"betas_{nsd.betas}, space {nsd.space}, stimuli as {stimuli}"


#: Of Allen et al. 2022.
AUTHORS = (
    "Emily J. Allen, Ghislain St-Yves, Yihan Wu, Jesse L. Breedlove, Jacob S. Prince, Logan T. Dowdle, "
    "Matthias Nau, Brad Caron, Franco Pestilli, Ian Charest, J. Benjamin Hutchinson, Thomas Naselaris, "
    "Kendrick Kay"
)


def dataset_description(made_with: str) -> dict[str, Any]:
    """``dataset_description.json``; ``made_with`` comes from :func:`settings`."""
    return {
        "Name": "Natural Scenes Dataset: single-trial betas",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "License": "NSD Data Access Agreement and Terms and Conditions (https://naturalscenesdataset.org)",
        "Authors": AUTHORS.split(", "),
        "HowToAcknowledge": "Cite Allen et al. 2022, Nature Neuroscience, doi:10.1038/s41593-021-00962-x",
        "ReferencesAndLinks": [
            "https://doi.org/10.1038/s41593-021-00962-x",
            "https://naturalscenesdataset.org",
        ],
        "GeneratedBy": [{"Name": GENERATOR, "Version": __version__, "Description": made_with}],
        "SourceDatasets": [{"URL": layout.BUCKET}],
        "DatasetLinks": {"nsd": layout.BUCKET},
    }


def func(label: str, suffix: str, session: str | None = None) -> str:
    """Path of a functional file of a subject (and session), relative to the dataset's root."""
    if session is None:
        return f"sub-{label}/func/sub-{label}_task-{layout.TASK}_{suffix}"
    return f"sub-{label}/ses-{session}/func/sub-{label}_ses-{session}_task-{layout.TASK}_{suffix}"


def reference(label: str, space: str) -> str:
    """BIDS URI of the image that represents a subject's space."""
    return f"bids::{func(label, f'space-{space}_label-{layout.MASK}_mask.nii.gz')}"


def source(relative: str) -> str:
    """BIDS URI of one of NSD's own files."""
    return f"bids:nsd:{relative}"


def betas(nsd: Nsd, label: str, relative: str, n_trials: int) -> dict[str, Any]:
    """Sidecar of a session's betas; ``relative`` is their path in NSD, with its extension."""
    reversed_axes = relative.endswith(".hdf5")
    return {
        "Description": (
            f"NSD's betas_{nsd.betas}: one volume per trial, in the order of trials.tsv. "
            "Divide the stored integers by ScaleFactor to get percent signal change."
        ),
        "SpatialReference": reference(label, nsd.space),
        "Units": "percent signal change",
        "ScaleFactor": layout.SCALE_FACTOR,
        "NumberOfVolumes": n_trials,
        "TaskName": layout.TASK,
        "Sources": [source(relative)],
        "StorageNote": "HDF5 array 'betas' with the axes (trial, z, y, x)" if reversed_axes else None,
    }


def mask(nsd: Nsd, label: str, subject: int) -> dict[str, Any]:
    """Sidecar of the mask nsdgeneral."""
    return {
        "Description": (
            "Cortex that responds in the NSD experiment: 1 where NSD's nsdgeneral is above 0 (-1 and 0 are "
            "outside)."
        ),
        "Type": "ROI",
        "SpatialReference": reference(label, nsd.space),
        "Sources": [source(nsd.roi(subject, layout.MASK))],
    }


def segmentation(nsd: Nsd, label: str, subject: int, name: str) -> dict[str, Any]:
    """Sidecar of a volume of labels."""
    return {
        "Description": f"NSD's {name}; the accompanying table names the labels. 0 is outside (NSD: -1, 0).",
        # According to NSD's manual, which describes "streams" only as an anatomical atlas.
        "Manual": True if name != "streams" else None,
        "SpatialReference": reference(label, nsd.space),
        "Sources": [source(nsd.roi(subject, name))],
    }


def noise_ceiling(nsd: Nsd, label: str, subject: int, repeats: Repeats) -> dict[str, Any]:
    """Sidecar of the noise-ceiling map."""
    effective = 1 / repeats.mean_inverse
    whole = round(effective)
    images = "shared (test) images" if repeats.of_test else "images (no shared image was shown)"
    return {
        "Description": (
            "Upper bound of the share of variance that the stimulus explains in responses averaged over an "
            f"image's repeats. Repeats are those of the {images}, in the sessions of this dataset. NaN where "
            "NSD has no ncsnr."
        ),
        "SpatialReference": reference(label, nsd.space),
        "Units": "percent",
        "Formula": "100 * ncsnr^2 / (ncsnr^2 + mean of 1 / repeats over images)",
        "NumberOfRepeats": whole if abs(effective - whole) < 1e-9 else effective,
        "ImagesByRepeats": {str(n): c for n, c in repeats.counts.items()},
        "TaskName": layout.TASK,
        "Sources": [source(nsd.ncsnr(subject))],
    }


TRIALS_COLUMNS: dict[str, Any] = {
    "session": {"Description": "Session label, without ses-."},
    "run": {"Description": "Run within the session, from 1."},
    "beta_index": {"Description": "Volume of the betas that belongs to the trial, from 0."},
    "stim_id": {
        "Description": "The image shown: its stimulus_id in stimuli/stimuli.tsv, with NSD's 1-based 73k ID."
    },
}

_STIMULI_COLUMNS: dict[str, Any] = {
    "stimulus_id": {
        "Description": "stim-nsd followed by NSD's 73k ID, counted from 1, as NSD names its shared images."
    },
    "type": {"Description": "Kind of stimulus."},
    "file": {"Description": "File in this folder that holds the pixels."},
    "row": {"Description": "Row of the file's array imgBrick, from 0: the nsdId of NSD's own table."},
    "present": {"Description": "Whether this dataset contains the pixels."},
    "split": {
        "Description": "The set that the image belongs to.",
        "Levels": {"train": "Planned for one subject.", "test": "One of the images shared by all subjects."},
    },
    "NSD_id": {"Description": "NSD's 73k ID, counted from 1."},
    "COCO_id": {"Description": "Image ID in COCO."},
    "COCO_split": {"Description": "The COCO set that the image comes from."},
    "crop_box": {
        "Description": "Part of the COCO image that was cut off to make it square: (top, bottom, left, "
        "right), as fractions of its size. Captions describe the whole image."
    },
}

CAPTIONS_COLUMNS: dict[str, Any] = {
    "stimulus_id": {"Description": "The image, as in stimuli.tsv; several rows per image."},
    "caption": {"Description": "A COCO caption of the whole, uncropped image."},
}

PARTICIPANTS_COLUMNS: dict[str, Any] = {
    "participant_id": {"Description": "NSD's subject with the same number."},
    "n_sessions": {"Description": "Number of sessions in this dataset."},
    "n_trials": {"Description": "Number of trials in these sessions."},
}


def stimuli_columns(columns: list[str]) -> dict[str, Any]:
    """Describe the columns of a stimuli table."""
    return {name: _STIMULI_COLUMNS[name] for name in columns}


def readme(made_with: str) -> str:
    """README of the dataset; the same settings give the same text."""
    return f"""# Natural Scenes Dataset: single-trial betas

NSD (Allen et al. 2022, doi:10.1038/s41593-021-00962-x) in the BIDS layout that bidsapp-recon reads. NSD's
terms also apply to this dataset: do not pass it on to anyone who has not signed its Data Access Agreement
(https://naturalscenesdataset.org).

Made with {GENERATOR} {__version__}: {made_with}.

- **Betas** (`*_desc-singletrial_statmap.*`) and the brick of stimuli are NSD's own files, linked or copied,
  never rewritten. Divide the stored integers by {layout.SCALE_FACTOR} to get percent signal change.
- **Trials**: from `nsd_expdesign.mat`; one row per volume.
- **Stimuli**: NSD's table of images. Identifiers contain NSD's 73k ID, counted from 1 (`stim-nsd02951` is row
  2950 of the brick). The images that all subjects share form the test set.
- **Captions**: COCO's, matched by COCO ID; they describe the uncropped image.
- **Regions**: `label-nsdgeneral`, and NSD's volumes of labels as `seg-*`; voxels that NSD marks -1 or 0 are
  outside.
- **Noise ceiling**: from NSD's ncsnr; the sidecar has the formula and the number of repeats.

BIDS does not define the files named in `.bidsignore` (`statmap`, `trials`) yet.
"""
