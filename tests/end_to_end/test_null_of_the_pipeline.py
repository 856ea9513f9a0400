"""The null of the whole pipeline: shuffled pairs, decoded to pictures and scored, stay at chance over seeds.

A tiny subject is run once; what follows, from the shuffled pairs on, is done again for every seed by the
run's own functions: predictions and calibration, stage 1, scores with their intervals.
"""

from __future__ import annotations

import tomllib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bidsapp import cli
from bidsapp.analyses import ladder
from bidsapp.config import RECIPES
from bidsapp.metrics.scoring import Scores
from bidsapp.models.suite import EMBEDDED
from bidsapp.outputs.provenance import write_settings
from bidsapp.participant import reconstruct as participant
from bidsapp.pipeline.decoding import predict_and_calibrate
from bidsapp.pipeline.images import first_stage
from bidsapp.pipeline.records import NULL

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded weights are not there"),
]
SEEDS = 20


@pytest.fixture(scope="module")
def nulls(tiny_dataset: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Scores]:
    """Scores of stage 1 of the null under 20 seeds."""
    bids = tiny_dataset(n_subjects=1, n_trials=90)
    folder = tmp_path_factory.mktemp("null")
    content = tomllib.loads((RECIPES / "embedded.toml").read_text())
    content["diffusion"] |= {"steps": 2}
    content["metrics"] |= {"networks": ["small_clip"]}
    write_settings(folder / "quick.toml", content)
    seen: list[tuple[Any, ...]] = []
    climb = ladder.climb
    with pytest.MonkeyPatch.context() as patch:
        # Looks at what the run's ladder starts from; the run goes on with the real one.
        patch.setattr(participant.ladder, "climb", lambda *a: (seen.append(a), climb(*a))[1])
        words = (bids, folder / "out", "participant", "--recipe", folder / "quick.toml", "--device", "cpu")
        more = ("-w", folder / "work", "--n-cpus", 1, "--keep-work", "--ladder-images", 2)
        assert cli.main([*map(str, (*words, *more)), "--skip-bids-validation"]) == 0
    ((done, _, shown, _, models, config),) = seen
    found = []
    for seed in range(SEEDS):
        here = replace(config, seed=seed)
        latents = predict_and_calibrate(
            done.stages, done.ridge, done.train, done.targets_key, done.penalties, here, NULL
        )
        ids = done.split.test
        first = first_stage(done.stages, latents, ids, done.subject, models, seed, f"null{seed}")
        found.append(ladder.judge(first["images"], shown, models, here))
    return found


def test_intervals_of_the_null_cover_chance_in_at_least_18_of_20_seeds(nulls: list[Scores]) -> None:
    summaries = [s.summary["two_way_small_clip"] for s in nulls]
    assert len({s.mean for s in summaries}) > 15  # the seeds' nulls are not one and the same
    over_images = sum(s.low <= 0.5 <= s.high for s in summaries)
    under_pairings = sum(s.chance_low <= s.mean <= s.chance_high for s in summaries)
    assert over_images >= 18
    assert under_pairings >= 18
    # Shuffled pairs still know how strong an image's responses are, so their mean may lie a little above.
    assert abs(np.mean([s.mean for s in summaries]) - 0.5) < 0.05
