"""How much of a score is the generator's luck: the ladder's brain images made again under further seeds.

Predicted latents and tokens stay as they are; what differs between seeds is what the models draw (the prior
of the VDVAE's later blocks, the diffusion's noise). The first seed is the run's own, whose images the
ladder has already.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bidsapp.analyses import ladder
from bidsapp.config import RunConfig
from bidsapp.evidence import SeedSpread
from bidsapp.metrics.statistics import mean_with_interval
from bidsapp.pipeline.images import first_stage, take
from bidsapp.pipeline.records import BRAIN, Decoded, Refinement, Rung
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
        name, seed = f"seed{number}", seed_for(config.seed, f"generator seed {number}")
        first = first_stage(done.stages, latents, ids, done.subject, models, seed, name)
        starts[name] = Refinement(name, first, latents, ids, seed)
    return starts


def compare_seeds(
    rungs: Mapping[str, Rung],
    rows: Sequence[int],
    starts: Mapping[str, Refinement],
    finals: Mapping[str, StageResult],
    shown: npt.NDArray[np.uint8],
    models: Models,
    config: RunConfig,
) -> tuple[SeedSpread, ...]:
    """Compare the spread of scores of the ladder's brain images under several seeds.

    Parameters
    ----------
    rungs : mapping of str to Rung
        The ladder, whose rung ``brain`` is the first seed's.
    rows : sequence of int
        Test images of the ladder.
    starts : mapping of str to Refinement
        From :func:`start_seeds`.
    finals : mapping of str to StageResult
        Their stage 2.
    shown : ndarray of uint8, shape (test images, H, W, 3)
    models : Models
    config : RunConfig
        ``generator_seeds`` says how many seeds; with one there is nothing to do.

    Returns
    -------
    tuple of SeedSpread
        One a metric and stage; empty where there is one seed, or no ladder.
    """
    if config.generator_seeds < 2:
        return ()
    if BRAIN not in rungs:
        LOG.warning("--generator-seeds: the ladder has no images, so seeds were not varied")
        return ()
    shown = shown[list(rows)]
    found = [{"stage1": rungs[BRAIN].scores1, "stage2": rungs[BRAIN].scores2}]
    for name, start in starts.items():
        made = {"stage1": start.initial, "stage2": finals[name]}
        found.append({k: ladder.judge(s["images"], shown, models, config) for k, s in made.items()})
    spreads = []
    for stage in ("stage1", "stage2"):
        scores = [s.per_image for each in found if (s := each[stage]) is not None]
        for metric in scores[0]:
            values = np.array([per_image[metric] for per_image in scores])
            spreads.append(spread_over_seeds(stage, metric, values, config.seed))
    return tuple(spreads)


def spread_over_seeds(stage: str, metric: str, values: npt.ArrayLike, seed: int) -> SeedSpread:
    """Say how far a metric moves with the generator's seed.

    Parameters
    ----------
    stage, metric : str
    values : array-like of float, (seeds, images)
    seed : int
        Of the bootstrap.

    Returns
    -------
    SeedSpread
        Standard deviations have ``ddof=1``.
    """
    v = np.asarray(values, dtype=np.float64)
    if v.ndim != 2 or v.shape[0] < 2:
        raise ValueError(f"values of shape {v.shape} given, (seeds >= 2, images) needed")
    return SeedSpread(
        stage=stage,
        metric=metric,
        value=mean_with_interval(v.mean(axis=0), seed),
        between_seeds=float(v.std(axis=0, ddof=1).mean()),
        of_mean=float(v.mean(axis=1).std(ddof=1)),
        n_seeds=v.shape[0],
        n_images=v.shape[1],
    )
