"""What a run found out about itself: the ladder, decoding quality, checks, and findings in words.

Frozen records of plain values; computed by the rooms, gathered by the participant level, shown by reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

#: Rungs of the ladder, from what could be reached to what luck reaches.
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
    """A mean with the ends of its 95 % interval (None where there is none)."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class LadderRow:
    """One metric of one rung and stage.

    Attributes
    ----------
    rung : str
        Of :data:`RUNGS`.
    stage : str
        ``stage1`` or ``stage2``; rungs that make no picture of their own (truth, retrieval) have
        ``stage2``.
    metric : str
    value : Value
        Mean over the ladder's images.
    share : Value or None
        ``(value - null) / (oracle - null)`` of the same stage and metric: 0 is luck, 1 what the models
        can reach. None where oracle and null are too close to divide by.
    n_images : int
        The same images for every rung of a ladder.
    gain : Value or None
        What the rung is above the brain, image by image, with its interval. None for a stage and metric
        that the brain does not have.
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
    """Decoding quality of a part of a target: a layer of the VDVAE, a token of CLIP.

    ``r`` spans the middle 95 % over dimensions; ``ceiling`` likewise, where repeats allow one.
    """

    name: str
    n_dims: int
    r: Value
    ceiling: Value | None = None


@dataclass(frozen=True)
class TargetQuality:
    """How well a target was predicted, before any picture was made.

    Attributes
    ----------
    target : str
    r, r2 : ndarray of float64, (dims,)
        Over test images, of each dimension that varies: Pearson correlation of prediction and truth,
        and the coefficient of determination of the ridge's prediction.
    ceiling : ndarray of float64, (dims,), or None
        The correlation that the reliability of the predictions allows; None without repeats.
    groups : tuple of GroupQuality
    two_way, top1 : Value
        Identification of the test images by their predicted target among the true ones.
    two_way_p : float
        Permutation p of ``two_way``.
    among_training : Value or None
        Share of test images whose own target is more similar to the prediction than every training
        image's is.
    median_rank : float or None
        Median over test images of the own target's place among the training images' (1 is first).
    n_dims, n_images, n_training : int
        ``n_dims`` counts all dimensions, those that do not vary too.
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
    """Whether responses to repeats of an image are alike: halves of the test images' repeats.

    ``two_way`` identifies each image's first half among the second halves; ``n_images`` have two
    repeats or more. ``p`` is the permutation test's.
    """

    two_way: Value
    p: float
    n_images: int


@dataclass(frozen=True)
class TrialOrder:
    """One session's trials against the repeats in other sessions, shifted by some trials.

    Attributes
    ----------
    session : str
        Label without ``ses-``.
    lags : tuple of int
        Shift, in trials, of the betas against the table of trials.
    correlation : ndarray of float64, (lags,)
        Mean correlation over trials with the same stimulus' responses in other sessions.
    error : ndarray of float64, (lags,)
        Standard error of ``correlation`` minus that at lag 0 (at lag 0: of the correlation itself).
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
        The features that similarity is measured in.
    nearest_train : ndarray of float64, (n,)
        Similarity of each test image to its nearest training image (cosine).
    nearest_ids : tuple of str
        Those training images.
    own : ndarray of float64, (n,)
        Similarity of each reconstruction to its own stimulus.
    closest_train : ndarray of float64, (n,)
        Similarity of each reconstruction to the training image nearest to it.
    closer_to_training : Value
        Share of reconstructions that are closer to some training image than to their own stimulus.
    within_cluster, between_cluster : Value
        Two-way identification among stimuli of the same cluster, and of other clusters.
    n_within : int
        Test images that share their cluster with another.
    n_clusters, n_wanted : int
        Clusters that there are, and that were asked for: fewer captions than that are all there can be.
    """

    space: str
    nearest_train: Vector
    nearest_ids: tuple[str, ...]
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
        Which rule spoke.
    severity : str
        ``broken`` (a stage does not do its work), ``limit`` (what holds the picture back), ``ok``, or
        ``unknown`` (could not be checked).
    stage : str
        What it speaks of, in words.
    sentence : str
    anchor : str
        Heading of docs/troubleshooting.md.
    numbers : mapping of str to float
        What the rule looked at.
    """

    code: str
    severity: str
    stage: str
    sentence: str
    anchor: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SeedSpread:
    """How far a metric of the ladder's brain images moves with the generator's seed.

    Attributes
    ----------
    stage, metric : str
    value : Value
        Mean over seeds and images; the interval is the bootstrap's, over images.
    between_seeds : float
        Standard deviation over seeds of an image's score, mean over images.
    of_mean : float
        Standard deviation over seeds of the mean over images: what a run's score moves by.
    n_seeds, n_images : int
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
    """Identification of test images by a target predicted from some of the training images.

    Attributes
    ----------
    target : str
    trained_on : str
        ``all``; ``other_clusters`` (none of the test image's own cluster); ``random_rest`` (as many left
        out, drawn at random).
    two_way, within, between : Value
        Two-way identification by the predicted target: among all test images, among those of the same
        cluster, and among those of other clusters (NaN where there are none).
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
    region : str
    n_voxels : int
        Of the decoded voxels.
    target : str
    analysis : str
        ``keep`` (all other voxels at their training mean) or ``lesion`` (the region's voxels at theirs).
    two_way : Value
    null : Value
        Random sets of as many voxels: mean, and the middle 95 %.
    p : float
        Of random sets that do as well alone (``keep``), or cost as much (``lesion``).
    whole : float
        Two-way identification from all voxels.
    n_images, n_sets : int
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
    """Scores of the brain's final pictures by one published protocol.

    Attributes
    ----------
    protocol, title : str
    values : mapping of str to Value
        Mean over all test images of each metric.
    skipped : mapping of str to str
        Metrics that were not scored, and the checkpoint that is not there.
    n_images : int
    """

    protocol: str
    title: str
    values: Mapping[str, Value]
    skipped: Mapping[str, str]
    n_images: int


@dataclass(frozen=True)
class RoiAnalysis:
    """Regions one at a time: the pictures of their synthetic activations, and what they carry.

    Attributes
    ----------
    names : tuple of str
    n_voxels : tuple of int
        Of the decoded voxels, by region.
    stage1, stage2 : ndarray of uint8, shape (regions, H, W, 3)
    scores : tuple of RegionScore
    """

    names: tuple[str, ...]
    n_voxels: tuple[int, ...]
    stage1: npt.NDArray[np.uint8]
    stage2: npt.NDArray[np.uint8]
    scores: tuple[RegionScore, ...]


@dataclass(frozen=True)
class Evidence:
    """All that one run found out about itself."""

    ladder: tuple[LadderRow, ...] = ()
    targets: tuple[TargetQuality, ...] = ()
    reliability: Reliability | None = None
    trial_order: tuple[TrialOrder, ...] = ()
    caption_match: CaptionMatch | None = None
    spuriousness: Spuriousness | None = None
    findings: tuple[Finding, ...] = ()
    #: the recipe's own protocol, then the others; empty where the recipe's is no published one
    protocols: tuple[ProtocolScores, ...] = ()
    #: what options ask for: empty without them
    generator_seeds: tuple[SeedSpread, ...] = ()
    cluster_holdout: tuple[HoldoutScores, ...] = ()
    roi_analysis: RoiAnalysis | None = None
