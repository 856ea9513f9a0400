"""The ladder: the pipeline with one part after the other replaced by the truth, or by luck.

Every rung is scored on the same test images, so that rungs can be compared image by image:

- ``truth``: the stimuli themselves; ``retrieval``: the training image whose latents are most like the
  predicted ones;
- ``oracle``: true latents and tokens; ``true_tokens``: true tokens from the predicted stage 1;
  ``true_stage1``: predicted tokens from the true stage 1;
- ``brain``: everything predicted; ``recalibrated``: the same under the other calibration, stage 1 only;
- ``mean``: the training images' mean latents; ``null``: the pipeline on shuffled pairs; ``random``: responses
  of independent normal numbers, stage 1 only.

Stage 2 takes nearly all of a rung's time, so it is run where it tells most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.analyses import controls as control_steps
from bidsapp.analyses.findings import IDENTIFICATION
from bidsapp.config import RunConfig, ladder_size
from bidsapp.evidence import RUNGS, LadderRow
from bidsapp.metrics.scoring import Scores, score
from bidsapp.metrics.statistics import mean_with_interval, share_of_range
from bidsapp.pipeline.decoding import predict_and_calibrate
from bidsapp.pipeline.images import first_stage, shown_images, take, true_latents
from bidsapp.pipeline.records import BRAIN, NULL, ORACLE, Decoded, Refinement, Rung, Start, _Images
from bidsapp.seeds import seed_for
from bidsapp.storage.stages import StageResult

if TYPE_CHECKING:
    from bidsapp.data.stimuli import StimulusSet
    from bidsapp.models.suite import Models


def choose_rows(n_test: int, config: RunConfig) -> tuple[int, ...]:
    """Draw the ladder's images from the test images, by the run's seed; rising places."""
    rng = np.random.default_rng(seed_for(config.seed, "ladder images"))
    return tuple(sorted(int(i) for i in rng.permutation(n_test)[: ladder_size(config, n_test)]))


def climb(
    done: Decoded,
    rows: Sequence[int],
    starts: Mapping[str, Start],
    finals: Mapping[str, StageResult],
    shown: np.ndarray,
    stimuli: StimulusSet,
    models: Models,
    config: RunConfig,
) -> dict[str, Rung]:
    """Score the rungs.

    Parameters
    ----------
    done : Decoded
    rows : sequence of int
        Test images of the ladder; with fewer than two there is none.
    starts : mapping of str to Start
        From :func:`start_rungs`.
    finals : mapping of str to StageResult
        Stage 2 of the brain and of the rungs.
    shown : ndarray of uint8, shape (test images, H, W, 3)
    stimuli : StimulusSet
    models : Models
    config : RunConfig

    Returns
    -------
    dict of str to Rung
        In the order of :data:`~bidsapp.evidence.RUNGS`.
    """
    if len(rows) < 2:
        return {}
    controls = config.recipe.controls
    shown = shown[list(rows)]
    made: dict[str, _Images] = {
        name: (start.stage1, finals[name]["images"] if start.refinement else None)
        for name, start in starts.items()
    }
    made[BRAIN] = (done.first["images"][list(rows)], finals[BRAIN]["images"][list(rows)])
    if "mean" in made:  # its picture is one and the same, whatever image it stands for
        stage1, stage2 = (None if a is None else np.repeat(a, len(rows), axis=0) for a in made["mean"])
        made["mean"] = (stage1, stage2)
    if controls.ladder:
        made["truth"] = (None, shown)
        made["retrieval"] = (None, shown_images(stimuli, _retrieved(done, rows)))

    def judged(images: np.ndarray | None) -> Scores | None:
        return None if images is None else judge(images, shown, models, config)

    return {
        name: Rung(stage1, stage2, judged(stage1), judged(stage2))
        for name in RUNGS
        if name in made
        for stage1, stage2 in [made[name]]
    }


def start_rungs(done: Decoded, rows: Sequence[int], models: Models, config: RunConfig) -> dict[str, Start]:
    """Make all that comes before stage 2 of the rungs that the generative models make, by rung."""
    if len(rows) < 2:
        return {}
    controls = config.recipe.controls
    names = config.recipe.target_names
    ids = tuple(done.split.test[row] for row in rows)
    made: dict[str, Start] = {}
    stages, ridge, brain, train, key = done.stages, done.ridge, done.latents, done.train, done.targets_key
    penalties, probe_latents = done.penalties, control_steps.probe_latents

    def first(name: str, latents: StageResult, of: tuple[str, ...] = ids) -> StageResult:
        return first_stage(done.stages, latents, of, done.subject, models, config.seed, name)

    def both(
        name: str, latents: StageResult, initial: StageResult | None = None, of: tuple[str, ...] = ids
    ) -> None:
        initial = initial or first(name, latents, of)
        made[name] = Start(initial["images"], Refinement(name, initial, latents, of, config.seed))

    def stage1_only(name: str, latents: StageResult) -> None:
        made[name] = Start(first(name, latents)["images"], None)

    if controls.oracle:
        true = true_latents(done.stages, done.test, done.targets_key, rows)
        both(ORACLE, true)
    if controls.null:
        both(NULL, predict_and_calibrate(stages, ridge, train, key, penalties, config, NULL, rows))
    if not controls.ladder:
        return made
    if controls.oracle:
        both("true_tokens", true, take(done.first, rows, ["images"]))
        both("true_stage1", take(done.latents, rows, names), first(ORACLE, true))
    stage1_only(
        "recalibrated",
        control_steps.recalibrated_latents(stages, ridge, brain, train, key, penalties, config, rows),
    )
    stage1_only("random", probe_latents(stages, ridge, brain, train, key, penalties, config, "random"))
    both("mean", probe_latents(stages, ridge, brain, train, key, penalties, config, "mean"), of=ids[:1])
    return made


def _retrieved(done: Decoded, rows: Sequence[int]) -> list[str]:
    """Training images whose true latents are most like the predicted ones, on average over targets."""
    tables = [a for name, a in done.quality.arrays.items() if name.endswith("_to_training")]
    similarity = np.mean([np.asarray(table[list(rows)], dtype=np.float64) for table in tables], axis=0)
    return [done.split.train[i] for i in similarity.argmax(axis=1)]


def judge(images: np.ndarray, shown: np.ndarray, models: Models, config: RunConfig) -> Scores:
    """Score images against the stimuli that were shown, by the recipe's protocol."""
    section = config.recipe.metrics
    return score(
        np.asarray(images), shown, models.networks, section.size, config.seed, protocol=section.protocol
    )


def tabulate(rungs: Mapping[str, Rung], seed: int) -> tuple[LadderRow, ...]:
    """Every metric of every rung and stage, with its share of the way from ``null`` to ``oracle``."""
    rows = []
    for stage in ("stage1", "stage2"):
        values = {name: _values(rung, stage) for name, rung in rungs.items()}
        for name, metrics in values.items():
            for metric, v in metrics.items():
                luck, best = (values.get(k, {}).get(metric) for k in (NULL, ORACLE))
                share = None if luck is None or best is None else share_of_range(v, luck, best, seed)
                brain = values.get(BRAIN, {}).get(metric)
                gain = None if brain is None else mean_with_interval(v - brain, seed)
                mean = mean_with_interval(v, seed)
                rows.append(LadderRow(name, stage, metric, mean, share, len(v), gain))
    return tuple(rows)


def _values(rung: Rung, stage: str) -> dict[str, np.ndarray]:
    """Per-image metrics, and identification: the mean over judging networks of two-way identification."""
    scores = rung.scores1 if stage == "stage1" else rung.scores2
    if scores is None:
        return {}
    found = dict(scores.per_image)
    networks = [v for k, v in found.items() if k.startswith("two_way_")]
    return {IDENTIFICATION: np.mean(networks, axis=0), **found} if networks else found
