"""The control ladder: the pipeline with one part after another replaced by the truth, or by chance.

Every rung is scored on the same test images, so that rungs can be compared image by image:

- ``truth``: the stimuli themselves; ``retrieval``: the training image whose latents are most similar to
  the predicted ones;
- ``oracle``: true latents and tokens; ``true_tokens``: true tokens from the predicted stage 1;
  ``true_stage1``: predicted tokens from the true stage 1;
- ``brain``: everything predicted; ``recalibrated``: the same under the other calibration, stage 1 only;
- ``mean``: the training images' mean latents; ``null``: the pipeline on shuffled pairs; ``random``: responses
  drawn from a normal distribution, stage 1 only.

Stage 2 takes nearly all of a rung's time, so rungs that explain little have stage 1 only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.analyses.controls import probe_latents, recalibrated_latents
from bidsapp.analyses.findings import IDENTIFICATION
from bidsapp.config import RunConfig, ladder_size
from bidsapp.evidence import RUNGS, LadderRow
from bidsapp.metrics.scoring import Scores, score
from bidsapp.metrics.statistics import mean_with_interval, share_of_range
from bidsapp.pipeline.decoding import predict_and_calibrate
from bidsapp.pipeline.images import first_stage, shown_images, take, true_latents
from bidsapp.pipeline.records import (
    BRAIN,
    NULL,
    ORACLE,
    Condition,
    Decoded,
    Refinement,
    Rung,
    StageImages,
    Start,
)
from bidsapp.seeds import seed_for
from bidsapp.storage.stages import StageResult

if TYPE_CHECKING:
    from bidsapp.data.stimuli import StimulusSet
    from bidsapp.models.suite import Models


def choose_rows(n_test: int, config: RunConfig) -> tuple[int, ...]:
    """Draw the ladder's images from the test images, by the run's seed; rows in ascending order."""
    rng = np.random.default_rng(seed_for(config.seed, "ladder images"))
    return tuple(sorted(int(i) for i in rng.permutation(n_test)[: ladder_size(config, n_test)]))


def start_rungs(done: Decoded, rows: Sequence[int], models: Models, config: RunConfig) -> dict[str, Start]:
    """Make all that comes before stage 2 for the rungs that the generative models make.

    ``rows`` are the ladder's test images; with fewer than two there is no ladder.
    """
    if len(rows) < 2:
        return {}
    controls, fit = config.recipe.controls, done.fit
    ids = tuple(done.split.test[row] for row in rows)
    made: dict[str, Start] = {}

    def with_stage2(condition: Condition, initial: StageResult | None = None) -> None:
        initial = initial or first_stage(fit.stages, condition, done.subject.label, models)
        made[condition.name] = Start(initial["images"], Refinement(condition, initial))

    def with_stage1_only(condition: Condition) -> None:
        first = first_stage(fit.stages, condition, done.subject.label, models)
        made[condition.name] = Start(first["images"], None)

    def condition(name: str, latents: StageResult) -> Condition:
        return Condition(name, latents, ids, config.seed)

    if controls.oracle:
        true = true_latents(fit, rows)
        with_stage2(condition(ORACLE, true))
    if controls.null:
        with_stage2(condition(NULL, predict_and_calibrate(fit, config, NULL, rows)))
    if not controls.ladder:
        return made
    if controls.oracle:
        predicted = take(done.latents, rows, config.recipe.target_names)
        true_stage1 = first_stage(fit.stages, condition(ORACLE, true), done.subject.label, models)
        with_stage2(condition("true_tokens", true), take(done.first, rows, ["images"]))
        with_stage2(condition("true_stage1", predicted), true_stage1)
    with_stage1_only(condition("recalibrated", recalibrated_latents(done, config, rows)))
    with_stage1_only(condition("random", probe_latents(done, config, "random")))
    # The prediction from mean responses is the same whatever image it stands for, so one image is made.
    with_stage2(Condition("mean", probe_latents(done, config, "mean"), ids[:1], config.seed))
    return made


def rung_images(
    done: Decoded, rows: Sequence[int], starts: Mapping[str, Start], finals: Mapping[str, StageResult]
) -> dict[str, StageImages]:
    """Gather the images of the rungs that the generative models made, each for all of the ladder's images.

    ``starts`` is from :func:`start_rungs`, ``finals`` stage 2 of the brain and of the rungs.
    """
    if len(rows) < 2:
        return {}
    images: dict[str, StageImages] = {
        name: (start.stage1, finals[name]["images"] if start.refinement else None)
        for name, start in starts.items()
    }
    images[BRAIN] = (done.first["images"][list(rows)], finals[BRAIN]["images"][list(rows)])
    if "mean" in images:
        stage1, stage2 = (None if a is None else np.repeat(a, len(rows), axis=0) for a in images["mean"])
        images["mean"] = (stage1, stage2)
    return images


def reference_images(
    done: Decoded, rows: Sequence[int], shown: np.ndarray, stimuli: StimulusSet
) -> dict[str, StageImages]:
    """Take the images of the rungs that need no generative model: ``truth`` and ``retrieval``.

    ``shown`` are the stimuli of the ladder's images, uint8 (rows, H, W, 3).
    """
    # Retrieved are the training images with the most similar true latents, on average over targets.
    tables = [a for name, a in done.quality.arrays.items() if name.endswith("_to_training")]
    similarity = np.mean([np.asarray(table[list(rows)], dtype=np.float64) for table in tables], axis=0)
    retrieved = [done.split.train[i] for i in similarity.argmax(axis=1)]
    return {"truth": (None, shown), "retrieval": (None, shown_images(stimuli, retrieved))}


def score_rungs(
    images: Mapping[str, StageImages], shown: np.ndarray, models: Models, config: RunConfig
) -> dict[str, Rung]:
    """Score every rung against the stimuli, uint8 (n, H, W, 3); rungs in the order of ``RUNGS``."""

    def scored(made: np.ndarray | None) -> Scores | None:
        return None if made is None else score_images(made, shown, models, config)

    return {
        name: Rung(stage1, stage2, scored(stage1), scored(stage2))
        for name in RUNGS
        if name in images
        for stage1, stage2 in [images[name]]
    }


def score_images(images: np.ndarray, shown: np.ndarray, models: Models, config: RunConfig) -> Scores:
    """Score images against the stimuli that were shown, by the recipe's protocol."""
    section = config.recipe.metrics
    return score(
        np.asarray(images), shown, models.networks, section.size, config.seed, protocol=section.protocol
    )


def tabulate(rungs: Mapping[str, Rung], seed: int) -> tuple[LadderRow, ...]:
    """Give every metric of every rung and stage, with its share of the range from ``null`` to ``oracle``."""
    rows = []
    for stage in ("stage1", "stage2"):
        values = {name: _values(rung, stage) for name, rung in rungs.items()}
        for name, metrics in values.items():
            for metric, v in metrics.items():
                low, high = (values.get(k, {}).get(metric) for k in (NULL, ORACLE))
                share = None if low is None or high is None else share_of_range(v, low, high, seed)
                brain = values.get(BRAIN, {}).get(metric)
                gain = None if brain is None else mean_with_interval(v - brain, seed)
                mean = mean_with_interval(v, seed)
                rows.append(LadderRow(name, stage, metric, mean, share, len(v), gain))
    return tuple(rows)


def _values(rung: Rung, stage: str) -> dict[str, np.ndarray]:
    """Per-image metrics, and identification: the mean over networks of two-way identification."""
    scores = rung.scores1 if stage == "stage1" else rung.scores2
    if scores is None:
        return {}
    found = dict(scores.per_image)
    networks = [v for k, v in found.items() if k.startswith("two_way_")]
    return {IDENTIFICATION: np.mean(networks, axis=0), **found} if networks else found
