"""The participant level: from single-trial betas to reconstructed images and their scores.

:func:`reconstruct` reads as the methods section of Brain-Diffuser (Ozcelik & VanRullen 2023,
arXiv 2303.05334). What is run once, and under which conditions again, is in :mod:`bidsapp.steps`;
what is written, in :mod:`bidsapp.derivatives`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bidsapp import steps
from bidsapp.config import RunConfig
from bidsapp.data.betas import Mask, load_mask
from bidsapp.data.selection import keep_reliable
from bidsapp.decoding.crossvalidation import Selection
from bidsapp.decoding_steps import choose_alphas, fit_ridge, predict_and_calibrate
from bidsapp.errors import AppError, ExitCode
from bidsapp.metrics.protocol import Scores, score
from bidsapp.records import Split, SubjectInputs
from bidsapp.stages import StageResult, Stages
from bidsapp.steps import BRAIN, NULL, ORACLE

if TYPE_CHECKING:
    from bidsapp.data.stimuli import StimulusSet
    from bidsapp.data.targets import TargetRows
    from bidsapp.models.suite import Models


@dataclass(frozen=True)
class Pictures:
    """What one condition led to: images of both stages and their scores.

    Attributes
    ----------
    ids : tuple of str
        Test stimuli, in row order.
    stage1, stage2 : ndarray of uint8, shape (n, H, W, 3)
    scores1, scores2 : Scores
    """

    ids: tuple[str, ...]
    stage1: np.ndarray
    stage2: np.ndarray
    scores1: Scores
    scores2: Scores


@dataclass(frozen=True)
class Reconstruction:
    """Everything the participant level found for one subject."""

    subject: SubjectInputs
    mask: Mask
    #: voxels of the ROIs' union, before the noise ceiling was asked about
    n_roi_voxels: int
    split: Split
    stimuli: np.ndarray
    responses: StageResult
    zscored: StageResult
    #: of each target: the penalty chosen, among which, and their errors
    penalties: dict[str, Selection]
    ridge: StageResult
    latents: StageResult
    train_targets: dict[str, TargetRows]
    test_targets: dict[str, TargetRows]
    pictures: dict[str, Pictures]
    seconds: dict[str, float]


def reconstruct(
    subject: SubjectInputs,
    masks: dict[str, Path],
    split: Split,
    stimuli: StimulusSet,
    models: Models,
    config: RunConfig,
) -> Reconstruction:
    """Reconstruct a subject's test images.

    Parameters
    ----------
    subject : SubjectInputs
    masks : dict of str to Path
        A 3-D mask file for each chosen ROI; their union is decoded.
    split : Split
        Training and test stimuli that the subject saw.
    stimuli : StimulusSet
    models : Models
    config : RunConfig

    Returns
    -------
    Reconstruction
    """
    stages = Stages(config.work_dir / f"sub-{subject.label}")

    # Responses: voxels of the region of interest, repeats averaged, z-scored by the training images.
    mask = load_mask(masks)
    n_roi = mask.n_voxels
    if config.min_noise_ceiling is not None:
        mask = keep_reliable(mask, noise_ceiling_of(subject), config.min_noise_ceiling)
    betas = steps.mask_betas(stages, subject, mask, config.n_cpus)
    averaged = steps.average_over_repeats(stages, betas, subject, split)
    responses = steps.zscore_by_training(stages, averaged)

    # Targets: VDVAE latents, CLIP-Vision and CLIP-Text tokens of every stimulus.
    train, test, targets_key = steps.targets_of_stimuli(config.work_dir, stimuli, models, split)

    # Decoding: ridge regression, one factorisation for all targets; predictions calibrated.
    penalties = choose_alphas(stages, responses, train, targets_key, config)
    ridge = fit_ridge(stages, responses, penalties, config)
    latents = {BRAIN: predict_and_calibrate(stages, ridge, train, targets_key, penalties, config, BRAIN)}

    # Controls: the same pipeline on shuffled pairs, and the true latents decoded.
    controls = config.recipe.controls
    n_control = min(controls.max_images, len(split.test))
    if controls.null:
        latents[NULL] = predict_and_calibrate(stages, ridge, train, targets_key, penalties, config, NULL)
    if controls.oracle:
        latents[ORACLE] = steps.true_latents(stages, test, targets_key, n_control)

    # Images: stage 1 decodes the VDVAE's latents, stage 2 refines them under the predicted tokens.
    shown = steps.shown_images(stimuli, split.test)
    pictures = {}
    for condition, predicted in latents.items():
        ids = split.test if condition == BRAIN else split.test[:n_control]
        first = steps.first_stage(stages, predicted, ids, subject.label, models, config.seed, condition)
        second = steps.second_stage(
            stages, first, predicted, ids, subject.label, models, config.seed, condition
        )
        pictures[condition] = judge(ids, first["images"], second["images"], shown[: len(ids)], models, config)

    return Reconstruction(
        subject=subject,
        mask=mask,
        n_roi_voxels=n_roi,
        split=split,
        stimuli=shown,
        responses=averaged,
        zscored=responses,
        penalties=penalties,
        ridge=ridge,
        latents=latents[BRAIN],
        train_targets=train,
        test_targets=test,
        pictures=pictures,
        seconds=dict(stages.seconds),
    )


def noise_ceiling_of(subject: SubjectInputs) -> Path:
    """Give a subject's noise-ceiling map (AppError, exit code 66, where there is none)."""
    if subject.noise_ceiling is None:
        what = f"sub-{subject.label} has no noise-ceiling map. Leave out --min-noise-ceiling, or add the map."
        raise AppError(what, exit_code=ExitCode.NO_INPUT)
    return subject.noise_ceiling


def judge(
    ids: tuple[str, ...],
    stage1: np.ndarray,
    stage2: np.ndarray,
    shown: np.ndarray,
    models: Models,
    config: RunConfig,
) -> Pictures:
    """Score both stages' images against the stimuli that were shown."""
    section = config.recipe.metrics

    def scores(images: np.ndarray) -> Scores:
        return score(
            np.asarray(images), shown, models.networks, section.size, config.seed, protocol=section.protocol
        )

    return Pictures(ids, np.asarray(stage1), np.asarray(stage2), scores(stage1), scores(stage2))
