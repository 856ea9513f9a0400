"""The ridge penalties that the report shows."""

from __future__ import annotations

from types import SimpleNamespace

from bidsapp.config import load_recipe
from bidsapp.decoding.crossvalidation import Selection
from bidsapp.outputs.model import ridge_penalties


def test_penalties_are_listed_with_how_they_were_chosen():
    recipe = load_recipe("embedded")
    chosen = dict.fromkeys(recipe.target_names, Selection((2000.0,)))
    chosen["vdvae"] = Selection((10.0, 2000.0), (2.0, 1.0))
    penalties = ridge_penalties(SimpleNamespace(penalties=chosen), SimpleNamespace(recipe=recipe))
    assert list(penalties) == list(recipe.target_names)
    assert {p.alpha for p in penalties.values()} == {2000.0}
    assert penalties["vdvae"].note == "penalty chosen by leave-one-out from 10, 2,000"
    assert penalties["clip_vision"].note == ""
