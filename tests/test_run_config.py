"""Settings of a run: each is recorded, or named as having no effect, and the records follow its value."""

from __future__ import annotations

import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from bidsapp.config import GROUPS, OPTIONS, Option, RunConfig, load_recipe, setting_name
from bidsapp.outputs.provenance import settings_of, write_settings

#: A value of each setting that differs from the one in the fixture.
OTHER_VALUES: dict[str, Any] = {
    "bids_dir": Path("/other"),
    "output_dir": Path("/other"),
    "work_dir": Path("/other"),
    "recipe_given": "other.toml",
    "derivatives": {"rois": Path("/rois")},
    "device": "cuda",
    "dtype": "float16",
    "shard": (1, 2),
    "force": ("ridge",),
}
BY_KIND: dict[str, Any] = {
    "text": "other",
    "number": 7,
    "flag": True,
    "count": 2,
    "recipe": "other",
    "file": Path("/other"),
    "folder": Path("/other"),
    "percent": 12.5,
    "memory": 8_000_000_000,
}


@pytest.fixture
def config() -> RunConfig:
    return RunConfig(Path("/bids"), Path("/out"), Path("/work"), load_recipe("embedded"))


def other_value(name: str) -> Any:
    if name == "recipe":
        return load_recipe("brain-diffuser")
    value = OTHER_VALUES.get(name, BY_KIND.get(OPTIONS[name].kind))
    return (value,) if OPTIONS[name].several and isinstance(value, str) else value


def test_every_field_states_its_effect():
    assert set(OPTIONS) == {f.name for f in fields(RunConfig)}
    for name, option in OPTIONS.items():
        assert isinstance(option, Option), name
        assert option.effect in ("results", "run", "none"), name
        assert bool(option.reason) == (option.effect == "none"), (
            f"{name}: a reason, only if nothing records it"
        )
        assert not option.flags or (option.flag and option.help and option.group in GROUPS), name


@pytest.mark.parametrize("name", list(OPTIONS))
def test_a_changed_setting_changes_the_records_that_hold_it(name, config):
    changed = replace(config, **{name: other_value(name)})
    effect = OPTIONS[name].effect
    assert (settings_of(changed) != settings_of(config)) == (effect != "none")
    assert (changed.affecting_results() != config.affecting_results()) == (effect == "results")


def test_what_has_no_effect_on_outputs():
    """A finished subject is not computed again if one of these differs; all others count, new ones too."""
    assert {name for name, option in OPTIONS.items() if option.effect != "results"} == {
        *("output_dir", "work_dir", "models_dir", "recipe_given", "participants", "n_cpus", "omp_nthreads"),
        *(
            "memory",
            "skip_bids_validation",
            "stop_on_first_crash",
            "verbose",
            "command",
            "force",
            "keep_work",
        ),
        *("prepare", "shard"),
    }


def test_records_are_read_back_from_toml(config, tmp_path):
    everything = replace(config, **{name: other_value(name) for name in OPTIONS})
    write_settings(tmp_path / "run.toml", settings_of(everything))
    found = tomllib.loads((tmp_path / "run.toml").read_text())
    recorded = {name for name, option in OPTIONS.items() if option.effect != "none"}
    assert set(found["run"]) == {setting_name(name) for name in recorded}
    assert found["run"]["mem"] == "8000000000B"
    assert found["run"]["derivatives"] == ["rois=/rois"]
    assert found["recipe"]["name"] == "brain-diffuser"


def test_threads_are_at_most_the_cpus(config):
    assert replace(config, n_cpus=4).n_threads == 4
    assert replace(config, n_cpus=4, omp_nthreads=2).n_threads == 2
    assert replace(config, n_cpus=4, omp_nthreads=9).n_threads == 4
