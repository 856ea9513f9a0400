"""Recipes: they load, and everything wrong in one is reported by its key."""

from __future__ import annotations

import tomllib
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bidsapp.config import RECIPES, RunConfig, load_recipe
from bidsapp.errors import AppError, ExitCode
from bidsapp.outputs.provenance import write_settings
from bidsapp.recipes import Recipe

SHIPPED = sorted(p.stem for p in RECIPES.glob("*.toml"))
EMBEDDED = tomllib.loads((RECIPES / "embedded.toml").read_text())


def leaves(table: dict, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in table.items():
        found += leaves(value, (*prefix, key)) if isinstance(value, dict) else [(*prefix, key)]
    return found


def changed(place: tuple[str, ...], value: object, *, drop: bool = False) -> dict:
    copy = tomllib.loads((RECIPES / "embedded.toml").read_text())
    table = copy
    for key in place[:-1]:
        table = table[key]
    if drop:
        del table[place[-1]]
    else:
        table[place[-1]] = value
    return copy


def refused(tmp_path, content: dict) -> str:
    path = tmp_path / "mine.toml"
    write_settings(path, content)
    with pytest.raises(AppError) as caught:
        load_recipe(str(path))
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_recipe_is_shipped():
    assert "embedded" in SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_load(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert set(recipe.targets) == set(recipe.target_names)
    assert load_recipe(str(RECIPES / f"{name}.toml")) == recipe


def test_values_are_those_of_the_file():
    recipe = load_recipe("embedded")
    plain = recipe.as_dict()
    for place in leaves(EMBEDDED):
        mine, theirs = plain, EMBEDDED
        for key in place:
            mine, theirs = mine[key], theirs[key]
        assert mine == (tuple(theirs) if isinstance(theirs, list) else theirs), place
    assert isinstance(recipe.metrics.networks, tuple)


def test_integers_are_numbers(tmp_path):
    path = tmp_path / "mine.toml"
    write_settings(path, changed(("diffusion", "guidance"), 7))
    guidance = load_recipe(str(path)).diffusion.guidance
    assert (guidance, type(guidance)) == (7.0, float)


@pytest.mark.parametrize("place", leaves(EMBEDDED), ids=".".join)
def test_a_missing_key_is_named(place, tmp_path):
    said = refused(tmp_path, changed(place, None, drop=True))
    assert f"missing key '{place[-1]}'" in said
    assert len(place) == 1 or f"[{'.'.join(place[:-1])}]" in said


@pytest.mark.parametrize(
    "place", [("sed",), ("vdvae", "layer"), ("targets", "clip_text", "alfa")], ids=".".join
)
def test_an_unknown_key_is_named(place, tmp_path):
    assert f"unknown key '{place[-1]}'" in refused(tmp_path, changed(place, 1))


@pytest.mark.parametrize("place", leaves(EMBEDDED), ids=".".join)
def test_a_wrong_type_is_named(place, tmp_path):
    value = EMBEDDED
    for key in place:
        value = value[key]
    wrong = "three" if isinstance(value, (bool, int, float)) else 3
    said = refused(tmp_path, changed(place, wrong))
    assert ".".join(place) in said
    assert "should be" in said


def test_a_target_may_list_penalties(tmp_path):
    path = tmp_path / "mine.toml"
    write_settings(path, changed(("targets", "vdvae", "alpha"), [10, 2000.5]))
    targets = load_recipe(str(path)).targets
    assert targets["vdvae"].alphas == (10.0, 2000.5)
    assert targets["clip_text"].alphas == (targets["clip_text"].alpha,) == (2000.0,)


def test_true_and_false_are_not_numbers(tmp_path):
    assert "vdvae.layers" in refused(tmp_path, changed(("vdvae", "layers"), True))
    assert "diffusion.guidance" in refused(tmp_path, changed(("diffusion", "guidance"), True))
    assert "sample_latents" in refused(tmp_path, changed(("vdvae", "sample_latents"), 1))
    assert "networks" in refused(tmp_path, changed(("metrics", "networks"), ["clip", 3]))
    assert "[vdvae]" in refused(tmp_path, changed(("vdvae",), "none"))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("targets", "vdvae", "alpha"), 0.0),
        (("targets", "clip_text", "alpha"), -2.0),
        (("targets", "clip_text", "alpha"), float("nan")),
        (("targets", "clip_vision", "alpha"), float("inf")),
        (("targets", "clip_vision", "stored"), "float8"),
        (("diffusion", "strength"), 0.0),
        (("diffusion", "strength"), 1.2),
        (("diffusion", "strength"), float("nan")),
        (("diffusion", "text_share"), -0.1),
        (("diffusion", "text_share"), 1.1),
        (("diffusion", "guidance"), float("nan")),
        (("diffusion", "steps"), 0),
        (("diffusion", "batch"), 0),
        (("vdvae", "layers"), 0),
        (("vdvae", "batch"), -1),
        (("vdvae", "temperature"), -0.5),
        (("vdvae", "temperature"), float("nan")),
        (("models", "location"), "moon"),
        (("targets", "clip_text", "alpha"), [1.0, 0.0]),
        (("targets", "clip_text", "alpha"), [1.0, float("nan")]),
        (("targets", "clip_text", "alpha"), [3.0, 1.0, 3]),
        (("targets", "clip_text", "alpha"), []),
        (("targets", "clip_text", "alpha"), [1.0, "2"]),
        (("ridge", "selection"), "guess"),
        (("ridge", "folds"), 1),
        (("calibration", "method"), "guess"),
        (("calibration", "max_rows"), 1),
        (("metrics", "size"), 0),
        (("controls", "max_images"), 1),
        (("roi_analysis", "norms"), [1.0]),
        (("roi_analysis", "norms"), [1.0, -1.0, 0.0]),
        (("roi_analysis", "calibrated_norms"), 80.0),
        (("targets", "clip_sound"), {"alpha": 1.0, "stored": "float32"}),
    ],
    ids=str,
)
def test_bad_values_are_refused(place, value, tmp_path):
    said = refused(tmp_path, changed(place, value))
    assert place[0] in said
    assert len(place) > 2 or "[targets]" in said or place[-1] in said


def test_a_missing_target_is_refused(tmp_path):
    assert "[targets]" in refused(tmp_path, changed(("targets", "clip_text"), None, drop=True))


def test_everything_wrong_is_reported_at_once(tmp_path):
    content = changed(("diffusion", "strength"), 2.0)
    content["models"] |= {"location": "moon", "vdvae": "../weights"}
    content["vdvae"]["layer"] = content["vdvae"].pop("layers")
    del content["targets"]["clip_text"]
    content["targets"]["vdvae"]["alpha"] = [1.0, -1.0]
    content["metrics"]["networks"] = ["clip", 3]
    said = refused(tmp_path, content)
    assert said.startswith("7 problems found")
    for part in (
        "diffusion.strength should be at most 1, but is 2.0.",
        "models.location should be one of 'package' or 'models-dir', but is 'moon'.",
        "models.vdvae should be the path of a folder in the models folder, without '..'.",
        "[vdvae]: missing key 'layers'.",
        "[vdvae]: unknown key 'layer'.",
        "Did you mean 'layers'?",
        "targets.vdvae.alpha[1] should be above 0, but is -1.0.",
        "metrics.networks[1] should be text, but is 3.",
    ):
        assert part in said, part


@pytest.mark.parametrize("name", ["no-such", "../embedded", "", "."])
def test_unknown_names_list_the_known(name):
    with pytest.raises(AppError, match="embedded") as caught:
        load_recipe(name)
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"name = ", b"[a]\n[a]\n", b"", b"[diffusion]\nguidance = 1" + b"0" * 400]
)
def test_broken_files(content, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(AppError, match=r"mine.toml") as caught:
        load_recipe(str(path))
    assert caught.value.exit_code == ExitCode.BAD_DATA


def test_a_number_too_large_for_a_float(tmp_path):
    assert "guidance" in refused(tmp_path, changed(("diffusion", "guidance"), 10**400))


VALUES = st.one_of(
    st.integers(-3, 60),
    st.floats(),
    st.booleans(),
    st.text(max_size=4),
    st.lists(st.text(max_size=4), max_size=2),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(leaves(EMBEDDED)), value=VALUES)
def test_a_changed_value_is_taken_as_it_is_or_refused_by_name(place, value, tmp_path):
    path = tmp_path / "mine.toml"
    write_settings(path, changed(place, value))
    try:
        recipe = load_recipe(str(path))
    except AppError as error:
        refusal = str(error)
        assert place[-1] in refusal or place[0] in refusal
        return
    got = recipe.as_dict()
    for key in place:
        got = got[key]
    assert got == (tuple(value) if isinstance(value, list) else value)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_text_is_read_or_refused(data, tmp_path):
    text = (RECIPES / "embedded.toml").read_bytes()
    at = data.draw(st.integers(0, len(text) - 1))
    length = data.draw(st.integers(0, 30))
    path = tmp_path / "mine.toml"
    path.write_bytes(text[:at] + data.draw(st.binary(max_size=6)) + text[at + length :])
    try:
        assert isinstance(load_recipe(str(path)), Recipe)
    except AppError as error:
        assert error.exit_code == ExitCode.BAD_DATA  # noqa: PT017 - most damage leaves a recipe whole


def test_settings_are_frozen(tmp_path):
    recipe = load_recipe("embedded")
    config = RunConfig(tmp_path, tmp_path, tmp_path, recipe)
    with pytest.raises(FrozenInstanceError):
        config.seed = 3
    with pytest.raises(ValidationError, match="frozen"):
        recipe.vdvae.layers = 3


def test_the_message_that_the_documentation_shows(tmp_path, monkeypatch):
    text = (RECIPES / "embedded.toml").read_text()
    text = text.replace("\nlayers = ", "\nlayer = ").replace("\nstrength = 0.75", "\nstrength = 2")
    (tmp_path / "mine.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AppError) as caught:
        load_recipe("mine.toml")
    page = Path(__file__).parents[2] / "docs" / "reference" / "recipes.md"
    assert f"```text\n{caught.value}\n```" in page.read_text()
