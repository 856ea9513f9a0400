"""What the simulated dataset says of itself: descriptions, sidecars, README."""

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
#: How the names of all maps begin.
MAP = f"task-{TASK}_space-{SPACE}"
#: Stored betas divided by this are percent signal change, as in NSD.
SCALE_FACTOR = 300

#: Names that BIDS does not know yet.
BIDSIGNORE = ("*_statmap.*", "*_trials.*")


def dataset_description(settings: str) -> dict[str, Any]:
    """Describe the dataset; ``settings`` is one line with all that it was made from."""
    return {
        "Name": "Simulated responses to drawn scenes",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "License": "CC0",
        "Authors": ["The bidsapp-recon contributors", "No person was scanned: the data are simulated"],
        "GeneratedBy": [
            {
                "Name": GENERATOR,
                "Version": __version__,
                "Description": settings,
            }
        ],
    }


def betas(subject: str, n_trials: int) -> dict[str, Any]:
    """Sidecar of a session's single-trial betas."""
    return {
        "Description": (
            "Simulated single-trial response amplitudes, a volume a trial in the order of trials.tsv. "
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
            "explains, from the known signal and noise of the simulation. Drift between sessions is "
            "not counted as noise. Zero where a voxel has no signal."
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
        "Description": "The simulated visual cortex: the early and the higher ROI together.",
        "Type": "ROI",
        "SpatialReference": reference(subject),
        "Sources": [f"bids::{func(subject, f'{MAP}_seg-visualrois_dseg.nii.gz')}"],
    }


def segmentation(subject: str) -> dict[str, Any]:
    """Sidecar of the segmentation into ROIs."""
    return {
        "Description": "The two simulated visual ROIs; the table beside it names the labels.",
        "Manual": False,
        "SpatialReference": reference(subject),
    }


def anatomy(subject: str) -> dict[str, Any]:
    """Sidecar of the anatomical image, whose grid defines the space."""
    return {
        "Description": f"Simulated anatomy, grey matter around white; its grid defines space-{SPACE}.",
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
    "stimulus_id": {"Description": "Identifies the stimulus."},
    "file": {"Description": "Image file in this folder."},
    "type": {"Description": "Kind of stimulus."},
    "present": {"Description": "Whether the file is part of this dataset."},
    "split": {
        "Description": "The set that the stimulus belongs to.",
        "Levels": {"train": "Shown to one subject.", "test": "Shown to all subjects, never trained on."},
    },
    "shown_to": {"Description": "Subject that sees it, or all."},
    "scene_family": {"Description": "Seed of the family of scenes that it is drawn from."},
    "scene_index": {"Description": "Index of the scene in its family."},
}

CAPTIONS_COLUMNS: dict[str, Any] = {
    "stimulus_id": {"Description": "The stimulus, as in stimuli.tsv; several rows each."},
    "caption": {"Description": "What the image shows, in one sentence."},
}

PARTICIPANTS_COLUMNS: dict[str, Any] = {
    "participant_id": {"Description": "Subject; simulated, not a person."},
    "n_sessions": {"Description": "Number of simulated sessions."},
    "n_trials": {"Description": "Number of trials over all sessions."},
}


def readme(settings: str) -> str:
    """README of the dataset; the same settings give the same text."""
    early, higher = (f"{UNEXPLAINED[roi]:.0%}" for roi in ("early", "higher"))
    local, everywhere, alike = (f"{s:.0%}" for s in (LOCAL_SHARE, GLOBAL_SHARE, SIGNAL_LIKE_SHARE))
    return f"""# Simulated responses to drawn scenes

No person was scanned for this dataset: `bidsapp-recon demo` drew the images and simulated the
responses, so that the app can be tried, taught and tested without any download.

Made with {GENERATOR} {__version__}: {settings}.

- **Stimuli**: captioned scenes drawn by code (`stimuli/`). The scenes of the split `test` are shown to
  all subjects, the others to one subject each.
- **Design**: as in the Natural Scenes Dataset (Allen et al. 2022, doi:10.1038/s41593-021-00962-x).
  A scene is shown up to three times (or as often as the settings above say), its repeats are spread over
  the sessions; a few training trials are lost.
- **Early ROI**: contrast-normalised oriented energy, luminance and opponent colour within population
  receptive fields that grow with eccentricity.
- **Higher ROI**: sparse tuning to the setting, the kinds of object, their colours and coarse places.
- **Unknown features**: of the signal's variance, {early} in the early and {higher} in the higher ROI
  repeats with the scene but follows nothing that it shows.
- **Noise**: set to noise ceilings like those of that dataset; about a third of single-trial variance
  is explainable in good voxels. Of the noise variance in the ROIs {local} is shared with neighbouring
  voxels, {everywhere} over the whole brain, {alike} has the covariance of the signal. Every session
  has a drift of its own. Voxels outside the two ROIs hold noise alone.
- **Betas**: percent signal change times {SCALE_FACTOR}, as int16, a volume a trial.

The files named in `.bidsignore` (`statmap`, `trials`) have no place in BIDS yet.
"""


def func(subject: str, suffix: str, session: str | None = None) -> str:
    """Path, from the dataset's root, of a functional file of a subject (and session)."""
    if session is None:
        return f"sub-{subject}/func/sub-{subject}_{suffix}"
    return f"sub-{subject}/ses-{session}/func/sub-{subject}_ses-{session}_{suffix}"


def reference(subject: str) -> str:
    """BIDS URI of the image that defines the subject's space."""
    return f"bids::sub-{subject}/anat/sub-{subject}_space-{SPACE}_T1w.nii.gz"
