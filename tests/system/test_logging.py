"""The settings file of a run reads back as what was written; log lines reach the file."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import subprocess
import sys
import tomllib
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bidsapp.outputs.provenance import write_settings
from bidsapp.system.logging import log_to_file, new_run_id, set_up_logging

TEXT = st.text(st.characters(exclude_categories=["Cs"]))  # no lone surrogates: UTF-8 has none
SCALARS = st.booleans() | st.integers() | st.floats() | TEXT
TABLES = st.recursive(
    st.dictionaries(TEXT, SCALARS | st.lists(SCALARS, max_size=3), max_size=4),
    lambda inner: st.dictionaries(TEXT, inner | SCALARS, max_size=4),
    max_leaves=6,
)


def same(a: object, b: object) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return type(a) is type(b) and a == b


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TABLES)
@example({"a\x7f": "\x7f\x00\x1f\x85\u2028\r\n\t\"'\\", "😀": {"": [1, 1.0, True, "x", []]}})
@example({"a": {"b": {"c.d": 1}}, "e": 1e300, "f": -0.0, "g": 10**30})
def test_settings_read_back_the_same(tmp_path, table):
    path = tmp_path / "run.toml"
    write_settings(path, table)
    assert same(tomllib.loads(path.read_text(encoding="utf-8")), table)


def test_other_kinds_of_values(tmp_path):
    class Level(IntEnum):
        HIGH = 3

    path = tmp_path / "run.toml"
    write_settings(
        path,
        {
            "none": None,
            "path": Path("/a/b"),
            "tuple": (1, 2),
            "level": Level.HIGH,
            "single": np.float32(0.5),
            "double": np.float64(0.1),
            "count": np.int64(3),
            "truth": np.bool_(True),
            "not utf-8": "caf\udce9",
        },
    )
    got = tomllib.loads(path.read_text(encoding="utf-8"))
    assert got.pop("not utf-8").startswith("caf")
    assert got == {
        "path": "/a/b",
        "tuple": [1, 2],
        "level": 3,
        "single": 0.5,
        "double": 0.1,
        "count": 3,
        "truth": True,
    }


def test_a_run_of_the_app_reads_back(tmp_path):
    from bidsapp.config import load_recipe

    recipe = load_recipe("embedded").as_dict()
    write_settings(tmp_path / "run.toml", {"recipe": recipe})
    got = tomllib.loads((tmp_path / "run.toml").read_text())["recipe"]
    assert got == json.loads(json.dumps(recipe))  # tuples are read back as lists


def test_run_ids_sort_by_time_and_differ():
    ids = {new_run_id() for _ in range(50)}
    assert len(ids) == 50
    assert all(re.fullmatch(r"\d{8}T\d{6}-[0-9a-f]{6}", i) for i in ids)


def test_the_log_file_gets_the_lines_of_its_block_only(tmp_path):
    log = logging.getLogger("bidsapp")
    before = log.level, log.handlers[:]
    log.setLevel(logging.INFO)
    path = tmp_path / "deep" / "run.log"
    log.info("before")
    with pytest.raises(RuntimeError), log_to_file(path):  # noqa: PT012
        log.info("during, with ümlaut")
        raise RuntimeError
    log.info("after")
    assert [line.split(" ", 3)[2:] for line in path.read_text("utf-8").splitlines()] == [
        ["INFO", "during, with ümlaut"]
    ]
    assert log.handlers == before[1]
    log.setLevel(before[0])


FORGED = "a\n2026-01-01 00:00:00,000 INFO The input is valid BIDS"


@pytest.fixture
def app_log():
    root, app = logging.getLogger(), logging.getLogger("bidsapp")
    before = root.handlers[:], root.level, app.level
    yield app
    root.handlers[:], root.level, app.level = before


@pytest.mark.parametrize("name", [Path(FORGED), FORGED, FORGED.replace("\n", "\r\n"), ValueError(FORGED)])
def test_a_file_name_cannot_forge_a_log_line(app_log, tmp_path, capsys, name):
    set_up_logging(0)
    with log_to_file(tmp_path / "run.log"):
        app_log.warning("%s: left out", name)
        app_log.warning("Files: %s", [name])
    for text in (capsys.readouterr().err, (tmp_path / "run.log").read_text("utf-8")):
        begun = [line for line in text.splitlines() if not line.startswith(" ")]
        assert len(begun) == 2
        assert all(" WARNING " in line for line in begun)
        assert not any(line.startswith("2026-01-01") for line in text.splitlines())


def test_further_lines_of_a_message_are_indented(app_log, capsys):
    set_up_logging(0)
    app_log.error("2 problems:\n  one\ntwo")
    assert capsys.readouterr().err.splitlines()[1:] == ["      one", "    two"]


@pytest.mark.parametrize(
    ("terminal", "verbose", "shown"), [(True, 0, False), (True, 1, True), (False, 0, True)]
)
def test_a_terminal_shows_the_beginning_and_end_of_stages_only_if_asked(tmp_path, terminal, verbose, shown):
    code = (
        "import pathlib, sys, numpy as np\n"
        "from bidsapp.storage.stages import Stages\n"
        "from bidsapp.system.logging import log_to_file, set_up_logging\n"
        "set_up_logging(int(sys.argv[1])); out = pathlib.Path(sys.argv[2])\n"
        "with log_to_file(out / 'run.log'):\n"
        "    for seed in 0, 1:\n"
        "        Stages(out / 'work').run('mean', {'seed': seed}, lambda _: {'a': np.zeros(2)})\n"
    )
    ours, theirs = os.openpty() if terminal else os.pipe()
    command = [sys.executable, "-c", code, str(verbose), str(tmp_path)]
    subprocess.run(command, stderr=theirs, check=True)
    said = os.read(ours, 10_000).decode()
    os.close(theirs)
    os.close(ours)
    assert ("mean: computing" in said) == shown
    assert ("mean: done in" in said) == shown
    assert "mean: recomputing, changed since an earlier run: seed (0, now 1)" in said
    log = (tmp_path / "run.log").read_text()
    assert "mean: computing" in log
    assert log.count("mean: done in") == 2
