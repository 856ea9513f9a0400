"""The ladder's table: what a rung is above the brain, image by image."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.analyses.ladder import tabulate
from bidsapp.metrics.scoring import Scores
from bidsapp.pipeline.records import Rung


def rung(values: np.ndarray) -> Rung:
    return Rung(None, None, None, Scores(per_image={"two_way_a": values, "two_way_b": values + 0.02}))


def test_gain_over_the_brain_is_paired() -> None:
    brain = np.random.default_rng(0).uniform(size=12)  # images differ more than rungs do
    rows = tabulate({"true_tokens": rung(brain + 0.05), "brain": rung(brain)}, seed=0)
    table = {(r.rung, r.metric): r for r in rows}
    gain = table["true_tokens", "identification"].gain
    assert gain is not None
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.05, 0.05, 0.05))
    mean = table["true_tokens", "identification"].value
    assert mean.low is not None
    assert mean.low < mean.mean - 0.1
    own = table["brain", "two_way_a"].gain
    assert own is not None
    assert own.mean == 0.0


def test_without_the_brain_there_is_no_gain() -> None:
    assert all(r.gain is None for r in tabulate({"oracle": rung(np.ones(4))}, seed=0))
