"""What ``bidsapp.metrics`` offers, what importing it costs, and the documented example."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.published_models import write_alexnet
from PIL import Image

import bidsapp.metrics
from bidsapp.metrics import score, ssim_columnwise, two_way

API = Path(__file__).parents[2] / "docs" / "tutorials" / "scoring.md"


def test_every_public_name_is_there():
    for name in bidsapp.metrics.__all__:
        assert getattr(bidsapp.metrics, name) is not None
    assert set(bidsapp.metrics.__all__) <= set(dir(bidsapp.metrics))
    assert sorted(n for names in bidsapp.metrics._HOMES.values() for n in names) == bidsapp.metrics.__all__
    assert bidsapp.metrics.score is score
    with pytest.raises(AttributeError, match="no attribute 'scores'"):
        _ = bidsapp.metrics.scores


def test_importing_the_package_imports_nothing_else():
    """And the protocols with their records no more than numpy."""
    code = "import sys, bidsapp.metrics; a = set(sys.modules); "
    code += "from bidsapp.metrics import score, two_way, ssim_columnwise; b = set(sys.modules); "
    code += "print([sorted({m.partition('.')[0] for m in s} - set(sys.stdlib_module_names)) for s in (a, b)])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    at_once, when_used = (set(names) - _started_with() for names in ast.literal_eval(done.stdout))
    assert at_once == {"bidsapp"}
    assert when_used == {"bidsapp", "numpy"}


def _started_with() -> set[str]:
    """Modules that an interpreter of this environment has from its start."""
    code = "import sys; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ast.literal_eval(done.stdout))


def test_the_documented_example_runs(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    stimuli = rng.integers(0, 256, (6, 5, 5, 3), dtype=np.uint8).repeat(20, axis=1).repeat(20, axis=2)
    made = np.clip(stimuli.astype(int) + rng.normal(0, 60, stimuli.shape), 0, 255).astype(np.uint8)
    for folder, images in (("stimuli", stimuli), ("reconstructions", made)):
        (tmp_path / folder).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / folder / f"{i}.png")
    (tmp_path / "models").mkdir()
    write_alexnet(tmp_path / "models" / "evaluation")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", API.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(API), "exec"), names)
    said = capsys.readouterr().out
    row = r"^(\w+) +(-?[\d.]+)  \[(-?[\d.]+), (-?[\d.]+)\]  chance (-?[\d.]+)$"
    listed = re.findall(row, said, flags=re.M)
    metrics = ["pixcorr", "ssim", "ssim_columnwise", "two_way_alexnet2", "two_way_alexnet5"]
    assert [row[0] for row in listed] == metrics
    assert all(float(low) <= float(mean) <= float(high) for _, mean, low, high, _ in listed)
    skipped = ("two_way_inception", "two_way_clip", "distance_effnet", "distance_swav")
    assert f"because the network is missing: {skipped}" in said
    assert said.splitlines()[-1] == "1.0 0"  # noise does not hide which picture it was


@pytest.mark.parametrize("protocol", ["bd2023", "mindeye"])
def test_without_networks_the_pixel_metrics_remain(protocol):
    images = np.random.default_rng(1).integers(0, 256, (3, 30, 30, 3), dtype=np.uint8)
    scores = score(images[::-1], images, protocol=protocol)
    assert {"pixcorr", "ssim"} <= set(scores.summary)
    assert all(values.shape == (3,) for values in scores.per_image.values())
    assert len(scores.skipped) == 6
    assert ("ssim_columnwise" in scores.summary) == (protocol == "bd2023")


def test_images_of_another_kind_are_refused():
    images = np.zeros((3, 30, 30, 3), np.uint8)
    for wrong in (images / 255, images[..., :1], images[0]):
        with pytest.raises(ValueError, match=r"reconstructions should be uint8 \(n, H, W, 3\)"):
            score(wrong, images, protocol="bd2023")
        with pytest.raises(ValueError, match="stimuli should be"):
            score(images, wrong, protocol="bd2023")


def test_public_names_are_the_functions_themselves():
    from bidsapp.metrics import identification, pixel

    assert ssim_columnwise is pixel.ssim_columnwise
    assert two_way is identification.two_way
