"""The benchmarks of the models run, and write where they are told to or below their own folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(script: str, *words: object, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_stage_2_by_batches(tmp_path):
    words = ("--config", "tiny", "--device", "cpu", "--most", 4, "--repeats", 1, "--steps", 4)
    said = run("stage2_speed.py", *words, "--json", tmp_path / "results" / "mine.json", cwd=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["results"]
    found = json.loads((tmp_path / "results" / "mine.json").read_text())
    assert [row["batch"] for row in found["batches"]] == [1, 2, 4]
    for row in found["batches"]:
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["seconds"])
        assert row["memory_peak"] > row["cost_planned"] > 0
    assert found["guided_steps"] == 3
    assert found["dtype"] == "float32"
    assert found["best_batch"] in (1, 2, 4)
    assert {"torch", "diffusers", "numpy"} <= set(found["machine"]["versions"])
    assert "under 12 GB: 1, 2, 4 at once" in said


@pytest.mark.parametrize("script", ["stage2_speed.py", "vdvae_latents.py"])
def test_results_go_below_the_benchmarks_by_default(script):
    text = (ROOT / "benchmarks" / script).read_text()
    assert f'default=RESULTS / "{script.removesuffix(".py")}.json"' in text
    assert "/benchmarks/results/" in (ROOT / ".gitignore").read_text().splitlines()
