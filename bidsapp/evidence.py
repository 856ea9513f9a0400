"""Evidence of a run about itself: the control ladder, decoding quality, checks, and findings.

Frozen records of plain values: computed by ``analyses``, gathered for one participant, shown by reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

#: Rungs of the control ladder, from the upper bound to chance.
RUNGS = (
    "truth",
    "retrieval",
    "oracle",
    "true_tokens",
    "true_stage1",
    "brain",
    "recalibrated",
    "mean",
    "null",
    "random",
)


@dataclass(frozen=True)
class Value:
    """A mean with the ends of its 95% interval (None where there is none)."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class LadderRow:
    """One metric of one rung and stage.

    Attributes
    ----------
    rung : str
        One of :data:`RUNGS`.
    stage : str
        ``stage1`` or ``stage2``; rungs without images of their own (truth, retrieval) have ``stage2``.
    value : Value
        Mean over the ladder's images.
    share : Value or None
        ``(value - null) / (oracle - null)`` of the same stage and metric: 0 is the null, 1 the oracle. None
        where these are too close to divide by.
    n_images : int
        The same images for every rung of a ladder.
    gain : Value or None
        Difference to the brain, paired by image. None for a stage and metric that the brain does not have.
    """

    rung: str
    stage: str
    metric: str
    value: Value
    share: Value | None
    n_images: int
    gain: Value | None = None


@dataclass(frozen=True)
class GroupQuality:
    """Decoding quality of a part of a target: a layer of the VDVAE, or a token of CLIP.

    ``r`` spans the middle 95% of dimensions; ``ceiling`` likewise, where repeats allow one.
    """

    name: str
    n_dims: int
    r: Value
    ceiling: Value | None = None


@dataclass(frozen=True)
class TargetQuality:
    """How well a target was predicted, before any image was made.

    Attributes
    ----------
    r, r2 : ndarray of float64, (dims,)
        Of each dimension, over test images: Pearson correlation of prediction and truth, and coefficient of
        determination of the ridge's prediction; NaN where the dimension does not vary.
    ceiling : ndarray of float64, (dims,), or None
        The highest correlation that the reliability of the predictions allows; None without repeats.
    two_way, top1 : Value
        Identification of the test images by their predicted target among the true ones.
    two_way_p : float
        Permutation p of ``two_way``.
    among_training : Value or None
        Share of test images whose own target is more similar to the prediction than that of every training
        image.
    median_rank : float or None
        Median over test images: rank of an image's own target among the training images' (1 is first).
    n_dims, n_images, n_training : int
        ``n_dims`` includes dimensions that do not vary.
    """

    target: str
    r: Vector
    r2: Vector
    ceiling: Vector | None
    groups: tuple[GroupQuality, ...]
    two_way: Value
    two_way_p: float
    top1: Value
    among_training: Value | None
    median_rank: float | None
    n_dims: int
    n_images: int
    n_training: int


@dataclass(frozen=True)
class Reliability:
    """Whether responses to repeats of an image are alike.

    ``two_way`` identifies the first half of each image's repeats among the second halves; ``p`` is from a
    permutation test; ``n_images`` were repeated.
    """

    two_way: Value
    p: float
    n_images: int


@dataclass(frozen=True)
class TrialOrder:
    """One session's trials, compared with repeats in other sessions after shifting the betas.

    Attributes
    ----------
    session : str
        Label without ``ses-``.
    lags : tuple of int
        Shift, in trials, of the betas relative to the table of trials.
    correlation : ndarray of float64, (lags,)
        Correlation with responses to the same stimulus in other sessions, mean over trials.
    error : ndarray of float64, (lags,)
        Standard error of the difference to lag 0 (at lag 0, of the correlation itself).
    n_trials : int
        Trials whose stimulus was also shown in another session.
    """

    session: str
    lags: tuple[int, ...]
    correlation: Vector
    error: Vector
    n_trials: int


@dataclass(frozen=True)
class CaptionMatch:
    """Whether CLIP finds a stimulus' own captions: two-way identification in CLIP's shared space."""

    two_way: Value
    p: float
    n_images: int


@dataclass(frozen=True)
class Spuriousness:
    """What could make reconstructions look better than they are.

    Attributes
    ----------
    space : str
        The features in which similarity (cosine) is measured.
    nearest_train : ndarray of float64, (n,)
        Similarity of each test image to the most similar training image.
    own, closest_train : ndarray of float64, (n,)
        Similarity of each reconstruction to its own stimulus, and to the most similar training image.
    closer_to_training : Value
        Share of reconstructions that are closer to some training image than to their own stimulus.
    within_cluster, between_cluster : Value
        Two-way identification among stimuli of the same cluster, and of other clusters.
    n_within : int
        Test images that share their cluster with another.
    n_clusters, n_wanted : int
        Clusters found and requested; there are at most as many as different captions.
    """

    space: str
    nearest_train: Vector
    own: Vector
    closest_train: Vector
    closer_to_training: Value
    within_cluster: Value | None
    between_cluster: Value | None
    n_within: int
    n_clusters: int
    n_wanted: int = 0


@dataclass(frozen=True)
class Finding:
    """One sentence on one stage.

    Attributes
    ----------
    code : str
        Of the rule.
    severity : str
        ``broken`` (the stage does not work), ``limit`` (it limits reconstructions), ``ok`` (sound), or
        ``unknown`` (not judged).
    """

    code: str
    severity: str
    stage: str
    sentence: str


@dataclass(frozen=True)
class SeedSpread:
    """How much a metric of the ladder's brain images varies with the seed of the generative models.

    Attributes
    ----------
    value : Value
        Mean over seeds and images, with a bootstrap interval over images.
    between_seeds : float
        Standard deviation over seeds of an image's score, mean over images.
    of_mean : float
        Standard deviation over seeds of the mean over images, the score of a run.
    """

    stage: str
    metric: str
    value: Value
    between_seeds: float
    of_mean: float
    n_seeds: int
    n_images: int


@dataclass(frozen=True)
class HoldoutScores:
    """Identification of test images by a target predicted from a part of the training images.

    Attributes
    ----------
    trained_on : str
        ``all``; ``other_clusters`` (without the test image's cluster); ``random_rest`` (without as many,
        drawn at random).
    two_way, within, between : Value
        Two-way identification among all test images, those of the same cluster, and those of other
        clusters (NaN where there are none).
    left_out : float
        Training images left out, mean over test images.
    n_clusters, n_images : int
        Clusters that hold test images; test images.
    """

    target: str
    trained_on: str
    two_way: Value
    within: Value
    between: Value
    left_out: float
    n_clusters: int
    n_images: int


@dataclass(frozen=True)
class RegionScore:
    """Identification of test images by a target predicted from a region alone, or without it.

    Attributes
    ----------
    n_voxels : int
        Of the decoded voxels.
    analysis : str
        ``keep`` (all other voxels at their training mean) or ``lesion`` (the region's voxels at theirs).
    null : Value
        Random sets of as many voxels: mean, and the middle 95%.
    p : float
        Of random sets that score as high alone (``keep``), or whose lesion lowers scores as much
        (``lesion``).
    whole : float
        Two-way identification from all voxels.
    """

    region: str
    n_voxels: int
    target: str
    analysis: str
    two_way: Value
    null: Value
    p: float
    whole: float
    n_images: int
    n_sets: int


@dataclass(frozen=True)
class ProtocolScores:
    """Scores of the brain's final reconstructions by one published protocol.

    Attributes
    ----------
    values : mapping of str to Value
        Mean over all test images of each metric.
    skipped : mapping of str to str
        Metrics that were not computed, and the checkpoint that is missing.
    """

    protocol: str
    title: str
    values: Mapping[str, Value]
    skipped: Mapping[str, str]
    n_images: int


@dataclass(frozen=True)
class RoiAnalysis:
    """Regions one at a time: images of their synthetic activations, and scores of test images.

    ``n_voxels`` counts the decoded voxels in each region; images are uint8, (regions, H, W, 3).
    """

    names: tuple[str, ...]
    n_voxels: tuple[int, ...]
    stage1: npt.NDArray[np.uint8]
    stage2: npt.NDArray[np.uint8]
    scores: tuple[RegionScore, ...]


@dataclass(frozen=True)
class Evidence:
    """All evidence of one run."""

    ladder: tuple[LadderRow, ...] = ()
    targets: tuple[TargetQuality, ...] = ()
    reliability: Reliability | None = None
    trial_order: tuple[TrialOrder, ...] = ()
    caption_match: CaptionMatch | None = None
    spuriousness: Spuriousness | None = None
    findings: tuple[Finding, ...] = ()
    #: the recipe's own protocol, then the others; empty if the recipe's is not a published one
    protocols: tuple[ProtocolScores, ...] = ()
    #: from optional analyses
    generator_seeds: tuple[SeedSpread, ...] = ()
    cluster_holdout: tuple[HoldoutScores, ...] = ()
    roi_analysis: RoiAnalysis | None = None
