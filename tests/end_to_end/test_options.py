"""The analyses that options add to a run, from end to end on a tiny dataset, and what they leave alone."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from bidsapp import cli
from bidsapp.analyses.generator_seeds import spread_over_seeds
from bidsapp.bids.outputs import OutputTree, write_metrics
from bidsapp.config import RECIPES, RunConfig, load_recipe
from bidsapp.demo.scenes import COLOURS, KINDS
from bidsapp.evidence import ProtocolScores, Value
from bidsapp.models.suite import EMBEDDED
from bidsapp.outputs.provenance import write_settings
from bidsapp.outputs.tables import PROTOCOL_COLUMNS, protocol_rows
from bidsapp.planning.estimate import images_made
from bidsapp.storage.text import read_tsv

needs_weights = pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded weights are not there")
FUNC = "sub-01/func/sub-01_task-tiny_desc-{}_metrics.tsv"


def describe_scenes(captions: Path) -> None:
    """Give stimuli captions of the embedded CLIP's vocabulary, so that they fall into clusters."""
    colours, kinds = list(COLOURS)[:3], list(KINDS)[:2]
    ids = dict.fromkeys(read_tsv(captions)["stimulus_id"])
    lines = [f"{s}\ta large {colours[i % 3]} {kinds[i % 2]}" for i, s in enumerate(ids)]
    captions.write_text("\n".join(["stimulus_id\tcaption", *lines]) + "\n")


@pytest.fixture(scope="module")
def outputs(tiny_dataset, tmp_path_factory) -> tuple[Path, Path]:
    """Outputs of a run without options and of one with all of them, which finds the first one's work."""
    bids = tiny_dataset(n_subjects=1, n_trials=60)
    describe_scenes(bids / "stimuli" / "captions.tsv")
    folder = tmp_path_factory.mktemp("options")
    content = tomllib.loads((RECIPES / "embedded.toml").read_text())
    content["diffusion"] |= {"steps": 4}
    content["metrics"] |= {"networks": ["small_clip"]}
    content["controls"] |= {"max_images": 3}
    write_settings(folder / "quick.toml", content)
    plain, full = folder / "plain", folder / "full"
    words = ["participant", "--recipe", folder / "quick.toml", "-w", folder / "work", "--device", "cpu"]
    words = [str(w) for w in (*words, "--n-cpus", "1", "--skip-bids-validation", "--keep-work")]
    assert cli.main([str(bids), str(plain), *words]) == 0
    assert (
        cli.main(
            [str(bids), str(full), *words, "--generator-seeds", "3", "--cluster-holdout", "--roi-analysis"]
        )
        == 0
    )
    return plain, full


@needs_weights
def test_options_change_nothing_else(outputs):
    plain, full = outputs
    for desc in ("recon", "ladder", "targets", "findings", "summary"):
        assert (plain / FUNC.format(desc)).read_bytes() == (full / FUNC.format(desc)).read_bytes()
    added = {p.relative_to(full) for p in full.rglob("*metrics.tsv")}
    added -= {p.relative_to(plain) for p in plain.rglob("*metrics.tsv")}
    assert added == {Path(FUNC.format(desc)) for desc in ("holdout", "regions", "seeds")}


@needs_weights
def test_seeds_move_the_second_stage(outputs):
    table = read_tsv(outputs[1] / FUNC.format("seeds"))
    assert set(table["n_seeds"]) == {"3"}
    assert set(table["n_images"]) == {"3"}
    moved = dict(zip(zip(table["stage"], table["metric"], strict=True), table["between_seeds"], strict=True))
    assert float(moved["stage2", "pixcorr"]) > 0
    ladder = read_tsv(outputs[1] / FUNC.format("ladder"))
    brain = {
        (s, m): float(v)
        for r, s, m, v in zip(*(ladder[c] for c in ("rung", "stage", "metric", "mean")), strict=True)
        if r == "brain"
    }
    mean = dict(zip(zip(table["stage"], table["metric"], strict=True), table["mean"], strict=True))
    of_mean = dict(zip(zip(table["stage"], table["metric"], strict=True), table["of_mean"], strict=True))
    for key, value in mean.items():
        # The run's own seed is one of three: none of three lies further from their mean than 2 / sqrt(3) sd.
        assert abs(float(value) - brain[key]) <= 2 / np.sqrt(3) * float(of_mean[key]) + 1e-6


@needs_weights
def test_holdout_tells_of_three_training_sets(outputs):
    table = read_tsv(outputs[1] / FUNC.format("holdout"))
    assert table["trained_on"] == ["all", "other_clusters", "random_rest"] * 3
    quality = read_tsv(outputs[1] / FUNC.format("targets"))
    whole = [v for v, part in zip(quality["two_way"], quality["part"], strict=True) if part == "all"]
    assert table["two_way"][::3] == whole
    assert table["left_out"][1] == table["left_out"][2] != "0"


@needs_weights
def test_regions_are_decoded_one_at_a_time(outputs):
    plain, full = outputs
    table = read_tsv(full / FUNC.format("regions"))
    # The mask and the segmentation as a whole are all that is decoded; V1v and V1d are V1.
    assert list(dict.fromkeys(table["region"])) == ["V1", "hV4"]
    assert table["analysis"] == ["keep", "lesion"] * 6
    quality = read_tsv(full / FUNC.format("targets"))
    whole = [float(v) for v, part in zip(quality["two_way"], quality["part"], strict=True) if part == "all"]
    # The text's targets too: captions repeat, and ties count one half in both.
    np.testing.assert_allclose([float(v) for v in table["whole"][::4]], whole, atol=1e-6)
    # What one of two regions keeps is what a lesion of the other leaves.
    kept, left = (np.array(table["two_way"][k::2], dtype=float).reshape(3, 2) for k in (0, 1))
    np.testing.assert_allclose(kept, left[:, ::-1], atol=0.01)
    assert all(0 < float(p) <= 1 for p in table["p"])
    figures = sorted(p.name for p in (full / "sub-01/figures").glob("*_synthetic.png"))
    assert figures == [f"sub-01_task-tiny_desc-region{n}_synthetic.png" for n in ("1V1", "2hV4")]
    page = (full / "sub-01.html").read_text()
    assert all(f"sub-01/figures/{name}" in page for name in figures)
    assert not list((plain / "sub-01/figures").glob("*_synthetic.png"))


@needs_weights
def test_images_of_options_are_those_foreseen(outputs):
    work = outputs[0].parent / "work" / "sub-01"
    made = sum(len(np.load(p, mmap_mode="r")) for p in work.glob("stage2_*/images.npy"))
    recipe = load_recipe(str(outputs[0].parent / "quick.toml"))
    folders = outputs[0], outputs[0], outputs[0]
    config = RunConfig(*folders, recipe, generator_seeds=3, cluster_holdout=True, roi_analysis=True)
    assert made == images_made(config, n_test=20, n_regions=2)


@needs_weights
def test_everything_written_is_valid_bids(outputs, validate):
    """What options write too, and the scores by published protocols."""
    full = outputs[1]
    tree = OutputTree(full, "01", "tiny", "func3mm")
    values = {"pixcorr": Value(0.1, 0.0, 0.2)}
    rows = protocol_rows([ProtocolScores(name, name, values, {}, 20) for name in ("bd2023", "mindeye")])
    table = {k: [row[i] for row in rows] for i, k in enumerate(PROTOCOL_COLUMNS)}
    write_metrics(tree, table, PROTOCOL_COLUMNS, desc="protocols")
    names = {p.name for p in full.rglob("*_metrics.tsv")}
    assert {Path(FUNC.format(d)).name for d in ("holdout", "regions", "seeds", "protocols")} <= names
    assert validate(full) == []


def test_spread_over_seeds_by_hand():
    spread = spread_over_seeds("stage2", "ssim", [[0.1, 0.5], [0.3, 0.5], [0.5, 0.5]], seed=0)
    assert spread.between_seeds == pytest.approx(0.1)  # sd 0.2 of the first image, none of the second
    assert spread.of_mean == pytest.approx(0.1)  # of 0.3, 0.4 and 0.5
    assert spread.value.mean == pytest.approx(0.4)
    assert (spread.n_seeds, spread.n_images) == (3, 2)
    with pytest.raises(ValueError, match="seeds >= 2"):
        spread_over_seeds("stage2", "ssim", [[0.1, 0.5]], seed=0)
