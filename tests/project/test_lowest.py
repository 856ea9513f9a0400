"""tools/lowest.py: every dependency has a lower bound, and the lock lies in the ranges."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lowest() -> Any:
    spec = importlib.util.spec_from_file_location("lowest", ROOT / "tools" / "lowest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_bounds(lowest):
    assert lowest.lowest("scipy>=1.14,<2") == "scipy==1.14"
    assert lowest.lowest("mkdocstrings[python]>=1.0,<2") == "mkdocstrings==1.0"
    assert lowest.lowest("demo-model==0.1.0; python_version < '4'") == "demo-model==0.1.0"
    with pytest.raises(SystemExit, match="no lower bound"):
        lowest.lowest("scipy<2")


def test_extras_bring_the_extras_that_they_name(lowest):
    plain, test = lowest.constraints([]), lowest.constraints(["test"])
    assert set(plain) < set(test)
    assert any(line.startswith("bids-validator-deno==") for line in test)
    assert not any(line.startswith("bidsapp-recon") for line in test)
