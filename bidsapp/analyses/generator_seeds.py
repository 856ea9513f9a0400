"""Seed-to-seed variability of scores: the ladder's brain images made again under further seeds.

Predicted latents and tokens stay as they are. What differs between seeds is what the models draw: the prior
of the VDVAE's later blocks, and the diffusion's noise. The first seed is the run's own, whose images the
ladder has already.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bidsapp.analyses.ladder import score_images
from bidsapp.config import RunConfig
from bidsapp.evidence import SeedSpread
from bidsapp.metrics.statistics import mean_with_interval
from bidsapp.pipeline.images import first_stage, take
from bidsapp.pipeline.records import Condition, Decoded, Refinement, Rung
from bidsapp.seeds import seed_for
from bidsapp.storage.stages import StageResult

if TYPE_CHECKING:
    from bidsapp.models.suite import Models

LOG = logging.getLogger("bidsapp")


def start_seeds(
    done: Decoded, rows: Sequence[int], models: Models, config: RunConfig
) -> dict[str, Refinement]:
    """Make stage 1 of the ladder's brain images under every seed but the run's own, by condition."""
    if config.generator_seeds < 2 or len(rows) < 2:
        return {}
    ids = tuple(done.split.test[row] for row in rows)
    latents = take(done.latents, rows, config.recipe.target_names)
    starts = {}
    for number in range(2, config.generator_seeds + 1):
        seed = seed_for(config.seed, f"generator seed {number}")
        condition = Condition(f"seed{number}", latents, ids, seed)
        first = first_stage(done.fit.stages, condition, done.subject.label, models)
        starts[condition.name] = Refinement(condition, first)
    return starts


def compare_seeds(
    brain: Rung | None,
    starts: Mapping[str, Refinement],
    finals: Mapping[str, StageResult],
    shown: npt.NDArray[np.uint8],
    models: Models,
    config: RunConfig,
) -> tuple[SeedSpread, ...]:
    """Compare scores of the ladder's brain images between seeds.

    Returns one per metric and stage; empty with one seed, or without a ladder.

    Parameters
    ----------
    brain : Rung or None
        The first seed's images; None where there is no ladder.
    starts, finals : mapping
        The other seeds' stage 1, from :func:`start_seeds`, and their stage 2.
    shown : ndarray of uint8, shape (ladder's images, H, W, 3)
    """
    if config.generator_seeds < 2:
        return ()
    if brain is None:
        LOG.warning("--generator-seeds: seeds were not compared, because the control ladder has no images")
        return ()
    seeds = [{"stage1": brain.scores1, "stage2": brain.scores2}]
    for name, start in starts.items():
        made = {"stage1": start.initial, "stage2": finals[name]}
        seeds.append({k: score_images(s["images"], shown, models, config) for k, s in made.items()})
    spreads = []
    for stage in ("stage1", "stage2"):
        scores = [s.per_image for each in seeds if (s := each[stage]) is not None]
        for metric in scores[0]:
            values = np.array([per_image[metric] for per_image in scores])
            spreads.append(spread_over_seeds(stage, metric, values, config.seed))
    return tuple(spreads)


def spread_over_seeds(stage: str, metric: str, values: npt.ArrayLike, seed: int) -> SeedSpread:
    """Measure how much a metric varies between seeds, with standard deviations of ``ddof=1``.

    ``values`` is (seeds, images), for at least two seeds (else ValueError); ``seed`` is the bootstrap's.
    """
    v = np.asarray(values, dtype=np.float64)
    if v.ndim != 2 or v.shape[0] < 2:
        raise ValueError(f"values have shape {v.shape}; expected (seeds >= 2, images)")
    return SeedSpread(
        stage=stage,
        metric=metric,
        value=mean_with_interval(v.mean(axis=0), seed),
        between_seeds=float(v.std(axis=0, ddof=1).mean()),
        of_mean=float(v.mean(axis=1).std(ddof=1)),
        n_seeds=v.shape[0],
        n_images=v.shape[1],
    )
