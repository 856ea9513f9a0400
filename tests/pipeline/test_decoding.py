"""The stage that chooses penalties: as scikit-learn would, recorded, and found by a second run."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import RidgeCV

from bidsapp.config import RunConfig, load_recipe
from bidsapp.decoding.crossvalidation import Selection
from bidsapp.decoding.decoder import alpha_name
from bidsapp.errors import AppError
from bidsapp.pipeline.decoding import choose_alphas, fit_ridge, predict_and_calibrate
from bidsapp.pipeline.records import BRAIN, Fit
from bidsapp.recipes import RidgeSection, TargetSection
from bidsapp.storage.stages import StageResult, Stages

LISTS = {"vdvae": (1.0, 30.0, 1000.0, 30_000.0), "clip_vision": (7.0,), "clip_text": (30.0, 1e5)}


def config(folder, selection: str = "loo", folds: int = 5, lists=LISTS) -> RunConfig:
    recipe = load_recipe("embedded")
    targets = {
        name: TargetSection(alpha=a if len(a) > 1 else a[0], stored="float32") for name, a in lists.items()
    }
    recipe = recipe.model_copy(
        update={"targets": targets, "ridge": RidgeSection(selection=selection, folds=folds)}
    )
    return RunConfig(folder, folder, folder, recipe, device="cpu")


def data(n: int = 40, p: int = 60):
    rng = np.random.default_rng(0)
    x, x_new = rng.standard_normal((n, p)), rng.standard_normal((6, p))
    learnable = x @ rng.standard_normal((p, 8)) + 4 * rng.standard_normal((n, 8))
    targets = {"vdvae": learnable, "clip_vision": learnable[:, :3], "clip_text": rng.standard_normal((n, 5))}
    responses = StageResult("responses", {"train": x.astype(np.float32), "test": x_new.astype(np.float32)})
    return responses, {name: y.astype(np.float32) for name, y in targets.items()}


@pytest.mark.parametrize(("selection", "cv"), [("loo", None), ("kfold", 5)])
def test_penalties_are_chosen_as_scikit_learn_chooses(selection, cv, tmp_path):
    responses, targets = data()
    found = choose_alphas(Stages(tmp_path), responses, targets, "t", config(tmp_path, selection))
    for name in ("vdvae", "clip_text"):
        scoring = "neg_mean_squared_error" if cv else None
        reference = RidgeCV(LISTS[name], cv=cv, scoring=scoring)
        reference.fit(responses["train"].astype(np.float64), targets[name].astype(np.float64))
        assert found[name].alpha == reference.alpha_
        assert found[name].alphas == LISTS[name]
        np.testing.assert_allclose(min(found[name].errors), -reference.best_score_, rtol=1e-6)
    assert found["clip_vision"] == Selection((7.0,))
    assert found["vdvae"].alpha not in (1.0, 30_000.0)


def test_predictions_use_the_penalty_chosen(tmp_path):
    responses, targets = data()
    settings, stages = config(tmp_path), Stages(tmp_path)
    found = choose_alphas(stages, responses, targets, "t", settings)
    ridge = fit_ridge(stages, responses, found, {}, "", settings)
    chosen = {alpha_name(s.alpha) for s in found.values()}
    assert {k.partition("_")[2] for k in ridge.arrays} == chosen | {"rows"}
    raw = predict_and_calibrate(Fit(stages, found, ridge, targets, {}, "t"), settings, BRAIN)["vdvae_raw"]
    reference = RidgeCV(LISTS["vdvae"]).fit(responses["train"].astype(np.float64), targets["vdvae"])
    np.testing.assert_allclose(
        raw, reference.predict(responses["test"].astype(np.float64)), rtol=1e-4, atol=1e-4
    )


def test_without_lists_nothing_is_computed(tmp_path):
    responses, targets = data()
    single = dict.fromkeys(LISTS, (5.0,))
    found = choose_alphas(Stages(tmp_path), responses, targets, "t", config(tmp_path, lists=single))
    assert {s.alpha for s in found.values()} == {5.0}
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_finds_the_choice(tmp_path, caplog):
    responses, targets = data()
    first = choose_alphas(Stages(tmp_path), responses, targets, "t", config(tmp_path))
    with caplog.at_level("INFO", logger="bidsapp"):
        assert choose_alphas(Stages(tmp_path), responses, targets, "t", config(tmp_path)) == first
    assert "alphas: found from an earlier run" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", logger="bidsapp"):
        choose_alphas(Stages(tmp_path), responses, targets, "t", config(tmp_path, "kfold"))
    assert "found from an earlier run" not in caplog.text


def test_an_end_of_the_list_is_reported(tmp_path, caplog):
    responses, targets = data()
    with caplog.at_level("WARNING", logger="bidsapp"):
        choose_alphas(Stages(tmp_path), responses, targets, "t", config(tmp_path))
    assert "clip_text: this is the largest in the recipe's list" in caplog.text
    assert "vdvae: this is" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"selection": "kfold", "folds": 41}, "41 folds"),
        ({"lists": LISTS | {"vdvae": (1e-15, 1.0)}}, "too small"),
    ],
)
def test_impossible_choices_are_refused(settings, match, tmp_path):
    responses, targets = data()
    with pytest.raises(AppError, match=match) as caught:
        choose_alphas(Stages(tmp_path), responses, targets, "t", config(tmp_path, **settings))
    assert caught.value.exit_code == 65
    assert "embedded" in str(caught.value)


def test_no_two_penalties_share_a_name():
    names = [alpha_name(a) for a in (50000, 123456.7, 123456.8, 1e-7, 0.1, 1e22)]
    assert names == ["50000", "123456.7", "123456.8", "1e-07", "0.1", "1e+22"]
