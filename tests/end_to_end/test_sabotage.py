"""A run names the stage that was broken, and a healthy run names none: simulated subject, embedded models."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bidsapp import cli
from bidsapp.config import RECIPES
from bidsapp.demo.design import DatasetDesign
from bidsapp.demo.simulate import write_dataset
from bidsapp.models.clip import CLIP_MEAN, CLIP_STD, ClipTokens
from bidsapp.models.generators.versatile_diffusion import VersatileDiffusion
from bidsapp.models.suite import EMBEDDED, Models
from bidsapp.outputs.provenance import write_settings
from bidsapp.storage.text import read_tsv

pytestmark = pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded weights are not there")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """The embedded recipe with fewer steps, a small ladder, and the network that needs no extra."""
    content = tomllib.loads((RECIPES / "embedded.toml").read_text())
    content["diffusion"] |= {"steps": 12}
    content["metrics"] |= {"networks": ["small_clip"]}
    content["controls"] |= {"max_images": 12}
    path = tmp_path_factory.mktemp("recipe") / "quick.toml"
    write_settings(path, content)
    return path


@pytest.fixture(scope="module")
def bids(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("healthy") / "bids"
    return write_dataset(folder, DatasetDesign(seed=3, n_subjects=1, n_train=240, n_test=24))


@pytest.fixture(scope="module")
def healthy(bids, recipe) -> Path:
    """Work folder of a run in which nothing is broken."""
    work = bids.parent / "work"
    findings = run(bids, recipe, work, bids.parent / "out")
    assert findings["broken"] == []
    return work


def run(bids: Path, recipe: Path, work: Path, out: Path) -> dict[str, list[str]]:
    """Run the participant level; codes of its findings by severity, and sentences of broken stages."""
    words = (bids, out, "participant", "--recipe", recipe, "-w", work, "--device", "cpu")
    assert cli.main([*map(str, words), "--skip-bids-validation", "--keep-work"]) == 0
    table = read_tsv(next(out.glob("sub-01/func/*_desc-findings_metrics.tsv")))
    found: dict[str, list[str]] = {s: [] for s in ("broken", "limit", "ok", "unknown", "sentences")}
    for code, severity, sentence in zip(table["code"], table["severity"], table["sentence"], strict=True):
        found[severity].append(code)
        if severity == "broken":
            found["sentences"].append(sentence)
    return found


def copy_work(healthy: Path, folder: Path, *remade: str) -> Path:
    """Copy a work folder without the stages that the damage reaches: their keys do not know of it."""
    shutil.copytree(healthy, folder)
    for pattern in remade:
        for path in folder.glob(pattern):
            shutil.rmtree(path)
    return folder


def test_a_healthy_run_names_no_stage(bids, recipe, healthy, tmp_path):
    found = run(bids, recipe, healthy, tmp_path / "out")
    assert found["broken"] == []
    assert set(found["ok"]) >= {"clip-input", "first-stage", "generator", "trial-order", "responses"}
    assert found["limit"] == ["limit"]


def test_clip_input_rescaled_twice(bids, recipe, healthy, tmp_path, monkeypatch):
    mean, std = (np.array(c, dtype=np.float32)[:, None, None] for c in (CLIP_MEAN, CLIP_STD))
    right = ClipTokens.pixels

    def twice(self, images):
        between_0_and_1 = right(self, images).numpy() * std + mean
        return torch.from_numpy((between_0_and_1 / 255 - mean) / std)

    monkeypatch.setattr(ClipTokens, "pixels", twice)
    # canaries find it before a run begins; here they passed before the damage
    work = copy_work(healthy, tmp_path / "work", "sub-01", "targets-*")
    found = run(bids, recipe, work, tmp_path / "out")
    assert found["broken"] == ["clip-input"]
    assert "Either pixels are scaled twice" in found["sentences"][0]


def test_trial_order_of_one_session_shifted_by_one(bids, recipe, healthy, tmp_path):
    broken = tmp_path / "bids"
    shutil.copytree(bids, broken)
    trials = sorted(broken.glob("sub-01/ses-*/func/*_trials.tsv"))[1]
    header, *rows = trials.read_text().splitlines()
    place = header.split("\t").index("stim_id")
    cells = [row.split("\t") for row in rows]
    ids = [row[place] for row in cells]
    for row, stimulus in zip(cells, [*ids[1:], ids[0]], strict=True):
        row[place] = stimulus
    trials.write_text("\n".join([header, *("\t".join(row) for row in cells)]) + "\n")
    work = copy_work(healthy, tmp_path / "work", "sub-01")
    found = run(broken, recipe, work, tmp_path / "out")
    assert found["broken"] == ["trial-order"]
    session = trials.name.split("_")[1]
    assert f"{session} by 1 trial" in found["sentences"][0]


def test_layer_order_of_the_latents_reversed(bids, recipe, healthy, tmp_path, monkeypatch):
    right = Models.first_stage

    def reversed_order(self, latents, generators):
        sizes = self.vdvae.layer_sizes(self.recipe.vdvae.layers)
        parts = np.split(np.asarray(latents), np.cumsum(sizes)[:-1], axis=1)
        return right(self, np.concatenate(parts[::-1], axis=1), generators)

    monkeypatch.setattr(Models, "first_stage", reversed_order)
    work = copy_work(healthy, tmp_path / "work", "sub-01/stage1_*", "sub-01/stage2_*")
    found = run(bids, recipe, work, tmp_path / "out")
    assert found["broken"] == ["first-stage"]
    assert "order of its latents" in found["sentences"][0]


def test_weights_of_the_unet_replaced_by_noise(bids, recipe, healthy, tmp_path, monkeypatch):
    right = VersatileDiffusion.load.__func__

    def noise(cls, *args, **kwargs):
        model = right(cls, *args, **kwargs)
        generator = torch.Generator().manual_seed(0)
        for weights in model.unet.parameters():
            with torch.no_grad():
                drawn = torch.randn(weights.shape, generator=generator)
                weights.copy_(drawn * weights.std(correction=0))
        return model

    monkeypatch.setattr(VersatileDiffusion, "load", classmethod(noise))
    work = copy_work(healthy, tmp_path / "work", "sub-01/stage2_*")
    found = run(bids, recipe, work, tmp_path / "out")
    assert found["broken"] == ["generator"]
    assert "the generator is broken, not the brain data" in found["sentences"][0]


def test_responses_replaced_by_noise(bids, recipe, healthy, tmp_path):
    broken = tmp_path / "bids"
    shutil.copytree(bids, broken)
    rng = np.random.default_rng(0)
    for path in sorted(broken.glob("sub-01/ses-*/func/*_statmap.nii.gz")):
        image = nib.load(path)
        drawn = rng.normal(0, 300, image.shape).astype(np.int16)
        nib.save(nib.Nifti1Image(drawn, image.affine, image.header), path)
    work = copy_work(healthy, tmp_path / "work", "sub-01")
    found = run(broken, recipe, work, tmp_path / "out")
    assert found["broken"] == ["responses"]
    assert "no signal of the images" in found["sentences"][0]
