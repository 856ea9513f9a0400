"""What is said about the fit of targets, where there is nothing to say too."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np

from bidsapp.config import load_recipe
from bidsapp.decoding.crossvalidation import Selection
from bidsapp.decoding.quality import column_correlation
from bidsapp.outputs.model import target_rows


def test_correlations_are_those_of_dimensions_that_vary():
    rng = np.random.default_rng(0)
    names = load_recipe("embedded").target_names
    true = {name: rng.standard_normal((9, 6)).astype(np.float32) for name in names}
    predicted = {f"{name}_raw": 3 * t + rng.standard_normal(t.shape) - 1 for name, t in true.items()}
    true["clip_text"][:] = true["clip_text"][:1]  # captions that all read the same
    true["clip_vision"][:, 2:] = 0.1
    penalties = dict.fromkeys(names, Selection((2000.0,))) | {"vdvae": Selection((10.0, 2000.0), (2.0, 1.0))}
    quality = [
        SimpleNamespace(target=name, r=column_correlation(predicted[f"{name}_raw"], true[name]))
        for name in names
    ]
    found = SimpleNamespace(evidence=SimpleNamespace(targets=quality), penalties=penalties)
    vdvae, vision, text = target_rows(found, SimpleNamespace(recipe=load_recipe("embedded")))
    expected = [np.corrcoef(true["vdvae"][:, i], predicted["vdvae_raw"][:, i])[0, 1] for i in range(6)]
    np.testing.assert_allclose(vdvae.correlation, np.mean(expected), rtol=1e-12)
    np.testing.assert_allclose([vdvae.low, vdvae.high], np.quantile(expected, [0.025, 0.975]), rtol=1e-12)
    expected = [
        np.corrcoef(true["clip_vision"][:, i], predicted["clip_vision_raw"][:, i])[0, 1] for i in (0, 1)
    ]
    np.testing.assert_allclose(vision.correlation, np.mean(expected), rtol=1e-12)
    assert math.isnan(text.correlation)
    assert text.low is None
    assert text.note
    assert vdvae.alpha == vision.alpha == 2000.0
    assert vdvae.note == "penalty chosen by leave-one-out of 10, 2,000"
    assert vision.note == ""
    assert [r.target for r in (vdvae, vision, text)] == list(names)
    assert {r.n_dims for r in (vdvae, vision, text)} == {6}
