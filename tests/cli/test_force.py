"""``--force``: an unknown stage is a usage error that lists them, and every stage of a run can be named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import bidsapp
from bidsapp import cli
from bidsapp.config import STAGES


@pytest.mark.parametrize("stage", ["rigde", "", "stage3", "targets"])
def test_an_unknown_stage_is_a_usage_error_that_lists_them(stage, capsys):
    assert cli.main(["bids", "out", "participant", "--force", stage]) == 64
    said = capsys.readouterr().err
    assert all(f"'{name}'" in said for name in (*STAGES, "all"))


def test_every_stage_that_is_run_can_be_named():
    """Names as the code passes them to ``Stages.run``, or to blocks, up to the condition."""
    code = "".join(p.read_text() for p in Path(bidsapp.__file__).parent.rglob("*.py"))
    names = re.findall(r'stages\.run\(\s*f?"([a-z0-9]+)', code)
    names += re.findall(r'\bname = f"([a-z0-9]+)_\{condition\.name\}', code)
    assert set(names) == set(STAGES)
