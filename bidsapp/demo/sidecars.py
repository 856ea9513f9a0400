"""Metadata of the simulated dataset: its description, sidecars and README."""

from __future__ import annotations

from typing import Any

from bidsapp import __version__
from bidsapp.demo.encoding import UNEXPLAINED
from bidsapp.demo.noise import GLOBAL_SHARE, LOCAL_SHARE, SIGNAL_LIKE_SHARE

#: ``GeneratedBy`` name of the simulated dataset.
GENERATOR = "bidsapp-recon demo"
BIDS_VERSION = "1.11.1"
TASK = "scenes"
SPACE = "func3mm"
#: Entities that all maps share.
MAP = f"task-{TASK}_space-{SPACE}"
#: Stored betas divided by this are percent signal change, as in NSD.
SCALE_FACTOR = 300

#: Names that BIDS does not know yet.
BIDSIGNORE = ("*_statmap.*", "*_trials.*")


def dataset_description(settings: str) -> dict[str, Any]:
    """``dataset_description.json``; ``settings`` is the design in one line."""
    return {
        "Name": "Simulated responses to drawn scenes",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "License": "CC0",
        "Authors": ["The bidsapp-recon contributors", "No person was scanned: the data are simulated"],
        "GeneratedBy": [{"Name": GENERATOR, "Version": __version__, "Description": settings}],
    }


def betas(subject: str, n_trials: int) -> dict[str, Any]:
    """Sidecar of a session's single-trial betas."""
    return {
        "Description": (
            "Simulated single-trial response amplitudes, one volume per trial, in the order of trials.tsv. "
            "Divide the stored integers by ScaleFactor to get percent signal change."
        ),
        "SpatialReference": reference(subject),
        "Units": "percent signal change",
        "ScaleFactor": SCALE_FACTOR,
        "NumberOfVolumes": n_trials,
        "TaskName": TASK,
        "SoftwareName": GENERATOR,
    }


def noise_ceiling(subject: str, repeats: int) -> dict[str, Any]:
    """Sidecar of the noise-ceiling map."""
    return {
        "Description": (
            "Share of the variance of responses, averaged over NumberOfRepeats trials, that the stimulus "
            "explains, from the known signal and noise of the simulation. Drift between sessions does "
            "not count as noise. Zero where a voxel has no signal."
        ),
        "SpatialReference": reference(subject),
        "Units": "percent",
        "NumberOfRepeats": repeats,
        "Formula": (
            "100 * ncsnr^2 / (ncsnr^2 + 1 / NumberOfRepeats), with "
            "ncsnr = signal standard deviation / single-trial noise standard deviation"
        ),
        "TaskName": TASK,
    }


def roi_mask(subject: str) -> dict[str, Any]:
    """Sidecar of the mask of all visual voxels."""
    return {
        "Description": "The simulated visual cortex: union of the early and the higher ROI.",
        "Type": "ROI",
        "SpatialReference": reference(subject),
        "Sources": [f"bids::{func(subject, f'{MAP}_seg-visualrois_dseg.nii.gz')}"],
    }


def segmentation(subject: str) -> dict[str, Any]:
    """Sidecar of the segmentation into ROIs."""
    return {
        "Description": "The two simulated visual ROIs; the accompanying table names the labels.",
        "Manual": False,
        "SpatialReference": reference(subject),
    }


def anatomy(subject: str) -> dict[str, Any]:
    """Sidecar of the anatomical image, whose grid defines the space."""
    return {
        "Description": f"Simulated anatomy, grey matter around white matter; its grid defines space-{SPACE}.",
        "SpatialReference": reference(subject),
        "SkullStripped": True,
    }


TRIALS_COLUMNS: dict[str, Any] = {
    "session": {"Description": "Session label, without ses-."},
    "run": {"Description": "Run within the session, from 1."},
    "beta_index": {"Description": "Volume of the betas that belongs to the trial, from 0."},
    "stim_id": {"Description": "The stimulus shown: its stimulus_id in stimuli/stimuli.tsv."},
}

STIMULI_COLUMNS: dict[str, Any] = {
    "stimulus_id": {"Description": "Stimulus identifier."},
    "file": {"Description": "Image file in this folder."},
    "type": {"Description": "Kind of stimulus."},
    "present": {"Description": "Whether this dataset contains the file."},
    "split": {
        "Description": "The set that the stimulus belongs to.",
        "Levels": {"train": "Shown to one subject.", "test": "Shown to all subjects, not used in training."},
    },
    "shown_to": {"Description": "The subject that sees the stimulus, or all."},
    "scene_family": {"Description": "Seed of the family of scenes that the stimulus is drawn from."},
    "scene_index": {"Description": "Index of the scene in its family."},
}

CAPTIONS_COLUMNS: dict[str, Any] = {
    "stimulus_id": {"Description": "The stimulus, as in stimuli.tsv; several rows per stimulus."},
    "caption": {"Description": "What the image shows, in one sentence."},
}

PARTICIPANTS_COLUMNS: dict[str, Any] = {
    "participant_id": {"Description": "Simulated subject, not a person."},
    "n_sessions": {"Description": "Number of simulated sessions."},
    "n_trials": {"Description": "Number of trials over all sessions."},
}


def readme(settings: str) -> str:
    """README of the dataset; the same settings give the same text."""
    early, higher = (f"{UNEXPLAINED[roi]:.0%}" for roi in ("early", "higher"))
    local, everywhere, alike = (f"{s:.0%}" for s in (LOCAL_SHARE, GLOBAL_SHARE, SIGNAL_LIKE_SHARE))
    return f"""# Simulated responses to drawn scenes

No person was scanned for this dataset: `bidsapp-recon demo` drew the images and simulated the
responses, so that the app can be tried, taught and tested without downloading anything.

Made with {GENERATOR} {__version__}: {settings}.

- **Stimuli**: captioned scenes drawn by code (`stimuli/`). Scenes of the `test` split are shown to all
  subjects, each other scene to one subject.
- **Design**: as in the Natural Scenes Dataset (Allen et al. 2022, doi:10.1038/s41593-021-00962-x).
  The number of repeats per scene is in the settings above. Repeats are spread over the sessions; a few
  training trials are lost.
- **Early ROI**: contrast-normalised oriented energy, luminance and opponent colour within population
  receptive fields that grow with eccentricity.
- **Higher ROI**: sparse tuning to the setting, the kinds of object, their colours and coarse places.
- **Unknown features**: {early} of the signal's variance in the early ROI, and {higher} in the higher ROI,
  is the same whenever a scene is shown but unrelated to its content.
- **Noise**: noise ceilings are similar to those of NSD; about a third of single-trial variance is
  explainable in good voxels. Of the noise variance in the ROIs, {local} is shared between neighbouring
  voxels, {everywhere} is shared by the whole brain, and {alike} has the covariance of the signal. Every
  session has its own drift. Voxels outside the two ROIs contain only noise.
- **Betas**: percent signal change times {SCALE_FACTOR}, as int16, one volume per trial.

BIDS does not define the files named in `.bidsignore` (`statmap`, `trials`) yet.
"""


def func(subject: str, suffix: str, session: str | None = None) -> str:
    """Path, from the dataset's root, of a functional file of a subject (and session)."""
    if session is None:
        return f"sub-{subject}/func/sub-{subject}_{suffix}"
    return f"sub-{subject}/ses-{session}/func/sub-{subject}_ses-{session}_{suffix}"


def reference(subject: str) -> str:
    """BIDS URI of the image that defines the subject's space."""
    return f"bids::sub-{subject}/anat/sub-{subject}_space-{SPACE}_T1w.nii.gz"
