"""Records that pass between the steps of a subject's reconstruction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.data.targets import StoredTargets
from bidsapp.decoding.crossvalidation import Selection
from bidsapp.evidence import Evidence
from bidsapp.metrics.scoring import Scores
from bidsapp.records import Mask, Split, SubjectInputs
from bidsapp.storage.stages import StageResult, Stages

if TYPE_CHECKING:
    from bidsapp.data.targets import StoredTargets

#: Conditions: the subject's responses, shuffled pairs of responses and images, the true targets.
BRAIN, NULL, ORACLE = "brain", "null", "oracle"
#: Images of stage 1 and of stage 2, uint8 (n, H, W, 3); None for a stage that there is not.
StageImages = tuple[np.ndarray | None, np.ndarray | None]


@dataclass(frozen=True)
class Rung:
    """Images of one rung and their scores; None for a stage that the rung does not have.

    Attributes
    ----------
    stage1, stage2 : ndarray of uint8, shape (n, H, W, 3)
    """

    stage1: np.ndarray | None
    stage2: np.ndarray | None
    scores1: Scores | None
    scores2: Scores | None


@dataclass(frozen=True)
class Condition:
    """Latents that images are made from.

    Attributes
    ----------
    name : str
        ``brain``, another rung of the ladder, or what an option adds.
    latents : StageResult
        Predicted or true targets, an array (images, dims) for each.
    ids : tuple of str
        What each image stands for, in row order: test stimuli, or regions.
    seed : int
        Of the generative models.
    """

    name: str
    latents: StageResult
    ids: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Refinement:
    """A condition and its stage-1 images, from which stage 2 starts."""

    condition: Condition
    initial: StageResult


@dataclass(frozen=True)
class Start:
    """Stage 1 of a rung that the generative models make.

    Attributes
    ----------
    stage1 : ndarray of uint8, shape (n, H, W, 3)
    refinement : Refinement or None
        None for a rung without stage 2.
    """

    stage1: np.ndarray
    refinement: Refinement | None


@dataclass(frozen=True)
class Fit:
    """One subject's ridge and its training targets: all that predictions are made from.

    Attributes
    ----------
    penalties : mapping of str to Selection
        Of each target.
    ridge : StageResult
        Operators, see :func:`bidsapp.pipeline.decoding.fit_ridge`.
    train, test : mapping of str to StoredTargets, (images, dims)
    targets_key : str
        Identifies what the targets were computed with, for the stages that follow.
    """

    stages: Stages
    penalties: Mapping[str, Selection]
    ridge: StageResult
    train: Mapping[str, StoredTargets]
    test: Mapping[str, StoredTargets]
    targets_key: str


@dataclass(frozen=True)
class Decoded:
    """One subject's stages up to the stage-1 images, from which ladder, checks and options start.

    Attributes
    ----------
    betas, halves, responses : StageResult
        Single trials; halves of the test images' repeats; z-scored responses to images.
    latents : StageResult
        Predicted targets of the test images.
    quality : StageResult
        How well they are predicted.
    first : StageResult
        Stage-1 images.
    """

    subject: SubjectInputs
    split: Split
    betas: StageResult
    halves: StageResult
    responses: StageResult
    fit: Fit
    latents: StageResult
    quality: StageResult
    first: StageResult


@dataclass(frozen=True)
class ScoredImages:
    """Images of both stages in one condition, and their scores.

    Attributes
    ----------
    ids : tuple of str
        Test stimuli, in row order.
    stage1, stage2 : ndarray of uint8, shape (n, H, W, 3)
    """

    ids: tuple[str, ...]
    stage1: np.ndarray
    stage2: np.ndarray
    scores1: Scores
    scores2: Scores

    @classmethod
    def of_rung(cls, ids: tuple[str, ...], rung: Rung) -> ScoredImages:
        """Take the images of a rung that has both stages."""
        if rung.stage1 is None or rung.stage2 is None or rung.scores1 is None or rung.scores2 is None:
            raise ValueError("the rung does not have both stages")
        return cls(ids, rung.stage1, rung.stage2, rung.scores1, rung.scores2)


@dataclass(frozen=True)
class Reconstruction:
    """Results of the participant level for one subject."""

    subject: SubjectInputs
    mask: Mask
    split: Split
    stimuli: np.ndarray
    responses: StageResult
    zscored: StageResult
    penalties: dict[str, Selection]
    latents: StageResult
    train_targets: dict[str, StoredTargets]
    #: by condition: brain, null, oracle
    images: dict[str, ScoredImages]
    rungs: dict[str, Rung]
    ladder_ids: tuple[str, ...]
    evidence: Evidence
