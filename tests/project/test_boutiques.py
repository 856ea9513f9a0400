"""The Boutiques descriptor: current, valid, and the commands it makes mean what was asked."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import boutiques
import click
import pytest
from boutiques.bosh import execute

import bidsapp
from bidsapp.cli import app
from bidsapp.cli.words import normalise

ROOT = Path(__file__).parents[2]
PATH = ROOT / "boutiques.json"


@pytest.fixture(scope="module")
def descriptor() -> dict[str, Any]:
    return json.loads(PATH.read_text(encoding="utf-8"))


def test_current():
    spec = importlib.util.spec_from_file_location("made", ROOT / "tools" / "boutiques_descriptor.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert made.text() == PATH.read_text(encoding="utf-8"), "run tools/boutiques_descriptor.py"


def test_valid(descriptor):
    boutiques.validate_descriptor(json.loads(json.dumps(descriptor)))
    broken = descriptor | {"command-line": "bidsapp-recon [BIDS_DIR]"}
    with pytest.raises(Exception, match="not in command-line"):
        boutiques.validate_descriptor(broken)


def test_every_parameter_and_documented_exit_code_is_there(descriptor):
    options = {p.name for p in app.params if p.expose_value}
    assert {given["id"] for given in descriptor["inputs"]} == options
    usage = (ROOT / "docs" / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    documented = {int(code) for code in re.findall(r"\b(1|\d\d|\d\d\d)\b", usage)}
    assert {error["code"] for error in descriptor["error-codes"]} == documented
    assert descriptor["tool-version"] == bidsapp.__version__


def parse(invocation: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Parameters that the app gets from the command that Boutiques makes."""
    path = folder / "invocation.json"
    path.write_text(json.dumps(invocation))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        execute("simulate", str(PATH), "-i", str(path))  # it checks the invocation against the descriptor too
    words = shlex.split(said.getvalue().partition("Generated Command:")[2])
    assert words[0] == "bidsapp-recon"
    return app.make_context("bidsapp-recon", normalise(words[1:], app)).params


def test_lists_flags_and_numbers(tmp_path):
    found = parse(
        {
            "bids_dir": str(tmp_path), "output_dir": "an out folder", "analysis_level": "participant",
            "participant_label": ["01", "sub-02"], "roi": ["V1", "hV4"], "force": ["ridge", "stage1"],
            "min_noise_ceiling": 12.5, "seed": 3, "verbose": True, "dry_run": False, "mem": "8GB",
        },
        tmp_path,
    )  # fmt: skip
    assert found["bids_dir"] == tmp_path
    assert found["output_dir"] == Path("an out folder")
    assert found["participant_label"] == ("01", "sub-02")
    assert found["roi"] == ("V1", "hV4")
    assert found["force"] == ("ridge", "stage1")
    assert (found["min_noise_ceiling"], found["seed"], found["mem"]) == (12.5, 3, 8 * 10**9)
    assert (found["verbose"], found["dry_run"]) == (1, False)
    assert found["recipe"] is None


def test_every_option(descriptor, tmp_path):
    (tmp_path / "file").write_text("{}")
    by_type = {"String": "1/2", "Number": 7, "Flag": True, "File": str(tmp_path / "file")}
    asked = {}
    one_of = {name for group in descriptor.get("groups", []) for name in group["members"][1:]}
    for given in (g for g in descriptor["inputs"] if g["id"] not in one_of):
        value = given.get("value-choices", [by_type[given["type"]]])[-1]
        asked[given["id"]] = [value] if given.get("list") else value
    asked |= {
        "mem": "1GB",
        "derivatives": [f"x={tmp_path}"],
        "bids_dir": str(tmp_path),
        "models_dir": str(tmp_path),
    }
    found = parse(asked, tmp_path)
    for param in app.params:
        if param.expose_value and param.name not in one_of:
            assert found[param.name], param.name
            if isinstance(param, click.Option):
                assert found[param.name] != param.get_default(click.Context(app)), param.name
