"""Images of the ladder, collected for the report."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from bidsapp.outputs.figures import ladder_images
from bidsapp.pipeline.records import Rung


def test_each_rung_shows_the_last_stage_that_it_has() -> None:
    first, second = (np.full((2, 4, 4, 3), v, np.uint8) for v in (1, 2))
    scores = SimpleNamespace()
    rungs = {
        "truth": Rung(None, second, None, scores),  # type: ignore[arg-type]
        "brain": Rung(first, second, scores, scores),  # type: ignore[arg-type]
        "random": Rung(first, None, scores, None),  # type: ignore[arg-type]
    }
    found = SimpleNamespace(rungs=rungs, ladder_ids=("a", "b"))
    stimuli = SimpleNamespace(captions=lambda i: ["one", "two"] if i == "a" else [])
    shown = ladder_images(found, stimuli)  # type: ignore[arg-type]
    assert shown is not None
    assert shown.captions == ("one", "")
    assert {name: int(x.max()) for name, x in shown.rungs.items()} == {"truth": 2, "brain": 2, "random": 1}
    assert shown.first_only == ("random",)
    assert ladder_images(SimpleNamespace(rungs={}), stimuli) is None  # type: ignore[arg-type]
