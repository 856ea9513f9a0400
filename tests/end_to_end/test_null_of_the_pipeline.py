"""The null of the whole pipeline: shuffled pairs, decoded to pictures and scored, stay at chance over seeds.

A tiny subject is run once; what follows, from the shuffled pairs on, is done again for every seed by the
run's own functions: predictions and calibration, stage 1, scores with their intervals.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
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
from bidsapp.pipeline.records import NULL, Condition

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
    seen: dict[str, tuple[Any, ...]] = {}

    def watched(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *a: (seen.setdefault(name, a), step(*a))[1]

    with pytest.MonkeyPatch.context() as patch:
        # Looks at what the run's ladder starts from and is compared with; the run goes on with the real ones.
        for name in ("start_rungs", "score_images"):
            patch.setattr(participant.ladder, name, watched(name, getattr(ladder, name)))
        words = (bids, folder / "out", "participant", "--recipe", folder / "quick.toml", "--device", "cpu")
        more = ("-w", folder / "work", "--n-cpus", 1, "--keep-work", "--ladder-images", 2)
        assert cli.main([*map(str, (*words, *more)), "--skip-bids-validation"]) == 0
    (done, _, models, config), (_, shown, *_) = seen["start_rungs"], seen["score_images"]
    found = []
    for seed in range(SEEDS):
        here = replace(config, seed=seed)
        latents = predict_and_calibrate(done.fit, here, NULL)
        condition = Condition(f"null{seed}", latents, done.split.test, seed)
        first = first_stage(done.fit.stages, condition, done.subject.label, models)
        found.append(ladder.score_images(first["images"], shown, models, here))
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
