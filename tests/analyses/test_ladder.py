"""The ladder of a run from end to end: which rungs there are, and what must hold for any weights."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from bidsapp import cli
from bidsapp.config import RECIPES
from bidsapp.evidence import RUNGS
from bidsapp.models.suite import EMBEDDED
from bidsapp.outputs.provenance import write_settings
from bidsapp.storage.text import read_tsv

pytestmark = pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded weights are not there")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    content = tomllib.loads((RECIPES / "embedded.toml").read_text())
    content["diffusion"] |= {"steps": 2}
    content["metrics"] |= {"networks": ["small_clip"]}
    content["controls"] |= {"max_images": 5}
    path = tmp_path_factory.mktemp("recipe") / "quick.toml"
    write_settings(path, content)
    return path


@pytest.fixture(scope="module")
def bids(tiny_dataset) -> Path:
    return tiny_dataset(n_subjects=1, n_trials=30)


def run(bids: Path, out: Path, recipe: Path, *words: object) -> None:
    common = (bids, out, "participant", "--recipe", recipe, "--device", "cpu", "--n-cpus", 1)
    assert cli.main([*map(str, common), "--skip-bids-validation", "--keep-work", *map(str, words)]) == 0


@pytest.fixture(scope="module")
def out(bids, recipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ladder") / "out"
    run(bids, folder, recipe)
    return folder


def table(out: Path, desc: str) -> dict[str, list[str]]:
    return read_tsv(next(out.glob(f"sub-01/func/*_desc-{desc}_metrics.tsv")))


def cells(out: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    found = table(out, "ladder")
    rows = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
    return {(r["rung"], r["stage"], r["metric"]): r for r in rows}


def test_every_rung_is_there_and_scored_on_the_same_images(out):
    found = cells(out)
    with_stage2 = [r for r in RUNGS if (r, "stage2", "identification") in found]
    assert with_stage2 == [r for r in RUNGS if r not in ("recalibrated", "random")]
    assert {r["n_images"] for r in found.values()} == {"5"}
    made = {"truth", "retrieval"}
    assert {r for r in RUNGS if (r, "stage1", "pixcorr") in found} == set(RUNGS) - made


def test_ends_of_the_ladder(out):
    found = cells(out)
    assert float(found["truth", "stage2", "identification"]["mean"]) == 1
    assert float(found["truth", "stage2", "pixcorr"]["mean"]) == 1
    # One picture for all images wins as often as it loses.
    assert float(found["mean", "stage2", "two_way_small_clip"]["mean"]) == pytest.approx(0.5)
    for (rung, _, _), row in found.items():
        if row["share"] != "n/a" and rung in ("null", "oracle"):
            assert float(row["share"]) == (rung == "oracle")
            assert float(row["share_low"]) == float(row["share_high"]) == (rung == "oracle")


def test_parts_are_swapped_as_their_names_say(out):
    def images(stage):
        return np.load(out / ".work" / "sub-01" / stage / "images.npy")

    found = cells(out)
    for metric in ("pixcorr", "two_way_small_clip"):
        same = (("true_tokens", "brain"), ("true_stage1", "oracle"))
        for rung, source in same:
            assert found[rung, "stage1", metric]["mean"] == found[source, "stage1", metric]["mean"]
    assert not np.array_equal(images("stage2_true_tokens"), images("stage2_oracle"))
    assert not np.array_equal(images("stage2_true_tokens"), images("stage2_true_stage1"))


def test_brain_images_do_not_depend_on_the_ladder(bids, recipe, out, tmp_path):
    run(bids, tmp_path / "out", recipe, "--ladder-images", 0)
    for path in out.glob("sub-01/func/*_image.png"):
        other = tmp_path / "out" / path.relative_to(out)
        assert other.read_bytes() == path.read_bytes(), path.name
    assert not list((tmp_path / "out").glob("sub-01/func/*_desc-null_*"))
    assert table(tmp_path / "out", "ladder")["rung"] == []
    assert "No control ladder was computed" in (tmp_path / "out" / "sub-01.html").read_text()


def test_findings_and_quality_are_written_and_valid(out, validate):
    found = table(out, "findings")
    assert set(found["severity"]) <= {"ok", "limit", "unknown", "broken"}
    assert found["code"][:3] == ["clip-input", "first-stage", "generator"]
    parts = table(out, "targets")
    assert parts["part"].count("all") == 3
    assert parts["part"].count("layer 1") == 1
    assert validate(out) == []
    page = (out / "sub-01.html").read_text()
    for sentence in found["sentence"]:
        assert sentence.split(" (")[0].replace("'", "&#39;") in page
