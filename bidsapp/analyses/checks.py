"""Checks of a run: decoding quality, reliability, trial order, captions, training images."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bidsapp.analyses.findings import find
from bidsapp.analyses.trial_order import check_trial_order
from bidsapp.config import RunConfig, cluster_count
from bidsapp.decoding.quality import rank_among
from bidsapp.decoding.streaming import BLOCK, TargetBlocks
from bidsapp.evidence import (
    CaptionMatch,
    Evidence,
    GroupQuality,
    LadderRow,
    Reliability,
    Spuriousness,
    TargetQuality,
    TrialOrder,
    Value,
)
from bidsapp.metrics import spuriousness
from bidsapp.metrics.identification import TIE, similarity, top1, two_way, two_way_null
from bidsapp.metrics.statistics import mean_with_interval, permutation_p
from bidsapp.pipeline.records import Decoded
from bidsapp.records import SubjectInputs
from bidsapp.seeds import seed_for
from bidsapp.storage.stages import StageResult

if TYPE_CHECKING:
    from bidsapp.data.stimuli import StimulusSet
    from bidsapp.data.targets import StoredTargets
    from bidsapp.models.suite import Models

#: Test images whose captions are checked, at most.
_CAPTIONS = 200
_PERMUTATIONS = 2000


def gather_evidence(
    done: Decoded,
    second: StageResult,
    stimuli: StimulusSet,
    models: Models,
    ladder: Sequence[LadderRow],
    config: RunConfig,
) -> Evidence:
    """Check a subject's run, and describe what is broken or limits it.

    ``second`` is the brain's stage 2.
    """
    evidence = Evidence(
        ladder=tuple(ladder),
        targets=tuple(target_quality(done, name, models, config) for name in config.recipe.target_names),
        reliability=reliability(done.halves, config.seed),
        trial_order=trial_order(done.betas, done.subject),
        caption_match=caption_match(done, stimuli, models, config.seed),
        spuriousness=training_similarity(done, second, models, config),
    )
    return replace(evidence, findings=find(evidence))


def trial_order(betas: StageResult, subject: SubjectInputs) -> tuple[TrialOrder, ...]:
    """Compare every session's trials with repeats of the same images in other sessions."""
    shown, labels = [s.stimulus_ids for s in subject.sessions], [s.label for s in subject.sessions]
    return check_trial_order([betas[name] for name in sorted(betas.arrays)], shown, labels)


def reliability(halves: StageResult, seed: int) -> Reliability | None:
    """Identify each test image's first half of repeats among the second halves; None with fewer than two."""
    first, second = halves["first"], halves["second"]
    if len(first) < 2:
        return None
    r = similarity(second, first)
    found = two_way(r)
    p = permutation_p(found.mean, two_way_null(r, seed, _PERMUTATIONS))
    return Reliability(mean_with_interval(found.per_image, seed), p, len(first))


def target_quality(done: Decoded, name: str, models: Models, config: RunConfig) -> TargetQuality:
    """Summarise how well one target is predicted, before any image is made."""
    arrays, seed = done.quality.arrays, config.seed
    r, ceiling = arrays[f"{name}_r"], arrays.get(f"{name}_ceiling")
    # True targets in rows, predictions in columns.
    to_test = np.asarray(arrays[f"{name}_to_test"], dtype=np.float64).T
    to_training = np.asarray(arrays[f"{name}_to_training"], dtype=np.float64)
    found = two_way(to_test)
    places = rank_among(np.diagonal(to_test), to_training)
    return TargetQuality(
        target=name,
        r=np.asarray(r),
        r2=np.asarray(arrays[f"{name}_r2"]),
        ceiling=None if ceiling is None else np.asarray(ceiling),
        groups=_groups(name, np.asarray(r), ceiling, models, config),
        two_way=mean_with_interval(found.per_image, seed),
        two_way_p=permutation_p(found.mean, two_way_null(to_test, seed, _PERMUTATIONS)),
        top1=mean_with_interval(top1(to_test), seed),
        among_training=mean_with_interval(places.first, seed),
        median_rank=float(np.median(places.rank)),
        n_dims=len(r),
        n_images=to_test.shape[0],
        n_training=to_training.shape[1],
    )


def _groups(
    name: str, r: np.ndarray, ceiling: np.ndarray | None, models: Models, config: RunConfig
) -> tuple[GroupQuality, ...]:
    """Layers of the VDVAE, tokens of CLIP; an embedding is one group."""
    if name == "vdvae":
        sizes = models.vdvae.layer_sizes(config.recipe.vdvae.layers)
        names = [f"layer {i + 1}" for i in range(len(sizes))]
    else:
        n_tokens, width = models.generator.shapes[name]
        sizes, names = [width] * n_tokens, [f"token {i + 1}" for i in range(n_tokens)]
        if n_tokens == 1:
            names = ["embedding"]
    ends = np.cumsum(sizes)
    parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    return tuple(
        GroupQuality(label, size, _spread(r[part]), None if ceiling is None else _spread(ceiling[part]))
        for label, size, part in zip(names, sizes, parts, strict=True)
    )


def _spread(values: np.ndarray) -> Value:
    """Mean and middle 95% over dimensions; NaN where no dimension varies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        low, high = np.nanquantile(values, [0.025, 0.975])
        return Value(float(np.nanmean(values)), float(low), float(high))


def caption_match(done: Decoded, stimuli: StimulusSet, models: Models, seed: int) -> CaptionMatch | None:
    """Identify test images by their own captions in CLIP's shared space; None without captions."""
    rng = np.random.default_rng(seed_for(seed, "captions"))
    n = len(done.split.test)
    rows = np.sort(rng.permutation(n)[:_CAPTIONS])
    if len(rows) < 2:
        return None
    generator = models.generator
    captions = generator.caption_embeddings([stimuli.captions(done.split.test[row]) for row in rows])
    if captions is None:
        return None
    target, columns = generator.embedding_target, generator.embedding_columns
    # The image embeddings are those that the regression was fitted to.
    images = np.asarray(done.fit.test[target][:, columns])[rows]
    r = spuriousness.cosine(captions, images)
    found = two_way(r)
    p = permutation_p(found.mean, two_way_null(r, seed, _PERMUTATIONS))
    return CaptionMatch(mean_with_interval(found.per_image, seed), p, len(rows))


def training_similarity(
    done: Decoded, second: StageResult, models: Models, config: RunConfig
) -> Spuriousness:
    """Compare reconstructions with training images, and with stimuli of their own cluster."""
    generator = models.generator
    target, columns = generator.embedding_target, generator.embedding_columns
    test, train = (np.asarray(rows[target][:, columns]) for rows in (done.fit.test, done.fit.train))
    made = generator.image_embeddings(np.asarray(second["images"]))
    near, near_made = spuriousness.nearest(test, train), spuriousness.nearest(made, train)
    own = spuriousness.own_similarity(made, test)
    seed, n = config.seed, len(test)
    within = between = None
    n_within = n_clusters = 0
    labels = stimulus_clusters(done, models, seed)
    if labels is not None:
        found = spuriousness.two_way_by_cluster(similarity(test, made), labels[0])
        n_clusters = len(np.unique(np.concatenate(labels)))
        n_within = int(np.isfinite(found.within).sum())
        within = mean_with_interval(found.within, seed) if n_within else None
        between = mean_with_interval(found.between, seed)
    return Spuriousness(
        space=generator.embedding_title,
        nearest_train=near.similarity,
        own=own,
        closest_train=near_made.similarity,
        closer_to_training=mean_with_interval((near_made.similarity > own + TIE).astype(float), seed),
        within_cluster=within,
        between_cluster=between,
        n_within=n_within,
        n_clusters=n_clusters,
        n_wanted=0 if labels is None else cluster_count(n),
    )


def stimulus_clusters(
    done: Decoded, models: Models, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """Cluster of each test and of each training image; None where images or captions are too few for two."""
    n = len(done.split.test)
    if (k := cluster_count(n)) < 2:
        return None
    features = np.concatenate([mean_tokens(rows, models) for rows in (done.fit.test, done.fit.train)])
    labels = spuriousness.clusters(features, k, seed_for(seed, "clusters") % 2**32)
    return None if labels.max() < 1 else (labels[:n], labels[n:])


def mean_tokens(rows: Mapping[str, StoredTargets], models: Models) -> np.ndarray:
    """Mean over tokens of each stimulus's target that clusters are found in, shape (n, dims)."""
    target = models.generator.semantic_target
    y, width = rows[target], models.generator.shapes[target][1]
    n, d = y.shape
    total = np.zeros((n, width))
    for part in TargetBlocks(y, block=width * max(1, BLOCK // (n * width))):
        total += part.values.reshape(n, -1, width).sum(axis=1)
    mean: np.ndarray = total * (width / d)
    return mean
