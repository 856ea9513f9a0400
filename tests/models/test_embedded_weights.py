"""The weights that come with the package."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from bidsapp.models.suite import EMBEDDED

pytestmark = pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded weights are not there")


def test_they_are_small_and_plain():
    files = [p for p in EMBEDDED.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 10_000_000
    assert {p.suffix for p in files} == {".json", ".safetensors"}


def test_they_are_finite_half_precision_numbers():
    for path in EMBEDDED.rglob("*.safetensors"):
        for name, value in load_file(path).items():
            if value.is_floating_point():
                assert value.dtype == torch.float16, (path, name)
                assert torch.isfinite(value).all(), (path, name)
