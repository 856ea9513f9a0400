"""Hostile inputs: each is refused with its named reason and exit code, and nothing in it runs.

A case gets 1 GiB of address space beyond what the process has, a minute, and a folder in which nothing may
change. Most go through the command itself.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.damage import copy_by_links, snapshot
from hostile import hostile_arrays, hostile_models, hostile_outputs, hostile_tables
from hostile.hostile_case import mark, participant, refusal

from bidsapp.models.suite import EMBEDDED

pytestmark = pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded weights are not there")

CASES = {
    **hostile_tables.CASES,
    **hostile_arrays.CASES,
    **hostile_models.CASES,
    **hostile_outputs.CASES,
}


@pytest.fixture(scope="module")
def good(tiny_dataset) -> Path:
    return tiny_dataset(n_subjects=1, n_sessions=1, n_trials=6)


@pytest.fixture(scope="module", autouse=True)
def _warm(good, tmp_path_factory) -> None:
    """Libraries are loaded and the good dataset is good before memory is confined."""
    tmp = tmp_path_factory.mktemp("warm")
    copy_by_links(good, tmp / "bids")
    assert participant("--dry-run", "--roi", "V1")(tmp) == 0


def test_there_are_enough_of_them():
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_by_name(name, good, tmp_path, capsys):
    case = CASES[name]
    copy_by_links(good, tmp_path / "bids")
    case.make(tmp_path)
    before = snapshot(tmp_path)
    capsys.readouterr()
    code, said = refusal(case.how, tmp_path, lambda: capsys.readouterr().err)
    assert case.reason.lower() in said.lower()
    assert code == case.code, said
    assert len(said) < 20_000
    assert not any(c in said for c in "\x1b\x07\u202e")
    assert "Traceback" not in said
    assert "please report" not in said
    assert not mark(tmp_path).exists()
    assert snapshot(tmp_path) == before
