"""The shipped recipes, unchanged, on the simulated dataset with small random-weight models: one command each,
and the files that loading asks for."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import paper_models
from helpers.file_watch import opened
from PIL import Image

from bidsapp import cli
from bidsapp.config import load_recipe
from bidsapp.demo.design import DatasetDesign
from bidsapp.demo.simulate import write_dataset
from bidsapp.models.suite import EMBEDDED, Models
from bidsapp.models.weights.registry import VARIABLE, files_to_fetch, generative_files
from bidsapp.planning.check import evaluation_networks
from bidsapp.storage.text import read_tsv

METRICS = {"pixcorr", "ssim", "ssim_columnwise", "distance_effnet", "distance_swav"}
METRICS |= {f"two_way_{name}" for name in ("alexnet2", "alexnet5", "inception", "clip")}
N_TEST = 3
#: Latents of the first 31 blocks: 2, 4, 8, 16 and 1 of 1, 4, 8, 16 and 32 pixels.
VDVAE_DIMS = paper_models.VDVAE["zdim"] * (2 * 1 + 4 * 16 + 8 * 64 + 16 * 256 + 1 * 1024)
#: Files of the published repositories that no recipe reads.
OTHERS = {
    "versatile-diffusion": (
        "model_index.json",
        "image_feature_extractor/preprocessor_config.json",
        "text_unet/config.json",
        "pretrained_pth/vd-four-flow-v1-0.pth",
    ),
    "sd15-ip-adapter": (
        "model_index.json",
        "feature_extractor/preprocessor_config.json",
        "safety_checker/config.json",
        "safety_checker/model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "text_encoder/pytorch_model.bin",
        "models/ip-adapter_sd15.bin",
        "models/ip-adapter-plus_sd15.safetensors",
        "models/image_encoder/pytorch_model.bin",
    ),
    "evaluation/clip-vit-large-patch14": (
        "preprocessor_config.json",
        "pytorch_model.bin",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ),
}


@pytest.fixture(autouse=True, scope="module")
def _no_models_folder() -> None:
    os.environ.pop(VARIABLE, None)


@pytest.fixture(scope="module")
def bids(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "bids"
    design = DatasetDesign(n_subjects=1, n_sessions=2, n_train=12, n_test=N_TEST, repeats=2, image_size=64)
    return write_dataset(folder, design)


@pytest.fixture(scope="module")
def brain_diffuser(tmp_path_factory) -> Path:
    return _with_others(paper_models.write_brain_diffuser(tmp_path_factory.mktemp("paper") / "models"))


@pytest.fixture(scope="module")
def sd15_ip_adapter(tmp_path_factory) -> Path:
    return _with_others(paper_models.write_sd15_ip_adapter(tmp_path_factory.mktemp("other") / "models"))


def _with_others(root: Path) -> Path:
    for folder, names in OTHERS.items():
        for path in (root / folder / name for name in names if (root / folder).is_dir()):
            path.parent.mkdir(exist_ok=True)
            path.write_text("not to be read")
    return root


@pytest.fixture
def calls(monkeypatch) -> list[object]:
    """Attempts to reach the network, which all fail."""
    from huggingface_hub import constants

    attempts: list[object] = []

    def refuse(*words: object, **_: object) -> None:
        attempts.append(words)
        raise OSError("no network in this test")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return attempts


@pytest.mark.parametrize(
    ("recipe", "sizes"),
    [
        ("brain-diffuser", {"vdvae": VDVAE_DIMS, "clip_vision": 257 * 768, "clip_text": 77 * 768}),
        pytest.param("sd15-ip-adapter", {"vdvae": VDVAE_DIMS, "clip_image": 20}, marks=pytest.mark.slow),
    ],
)
def test_one_command_runs_the_recipe_from_end_to_end(
    recipe, sizes, bids, tmp_path, request, validate, calls, monkeypatch
):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")  # small models: threads would only wait for each other
    models, out = request.getfixturevalue(recipe.replace("-", "_")), tmp_path / "out"
    words = [str(bids), str(out), "participant", "--recipe", recipe, "--models-dir", str(models)]
    assert cli.main(words) == 0
    assert calls == []
    func = out / "sub-01" / "func"
    for desc in ("recon", "vdvae"):
        images = sorted(func.glob(f"*_desc-{desc}_image.png"))
        assert len(images) == N_TEST
        pixels = [np.asarray(Image.open(path)) for path in images]
        assert all(image.std() > 1 for image in pixels)
        assert not np.array_equal(pixels[0], pixels[1])
    summary = read_tsv(next(func.glob("*_desc-summary_metrics.tsv")))
    rows = list(zip(summary["condition"], summary["stage"], summary["metric"], strict=True))
    assert len(rows) == len(set(rows)) == 3 * 2 * len(METRICS)
    assert set(summary["condition"]) == {"brain", "null", "oracle"}
    assert set(summary["metric"]) == METRICS
    assert all(np.isfinite(float(v)) for v in summary["mean"])
    with h5py.File(next(func.glob("*_desc-ridge_model.h5"))) as model:
        targets = model["targets"]
        assert {name: targets[name]["calibration_scale"].size for name in targets} == sizes
    assert cli.main([str(bids), str(out), "group"]) == 0
    table = read_tsv(out / "phenotype" / "reconmetrics.tsv")
    assert table["participant_id"] == ["sub-01"]
    assert {f"{stage}_{metric}" for stage in ("stage1", "stage2") for metric in METRICS} <= set(table)
    assert validate(out) == []


@pytest.mark.parametrize("name", ["brain-diffuser", "sd15-ip-adapter", "embedded"])
def test_the_registry_lists_exactly_the_files_that_loading_reads(name, request):
    recipe = load_recipe(name)
    embedded = recipe.models.location == "package"
    root = EMBEDDED if embedded else request.getfixturevalue(name.replace("-", "_"))
    uses = evaluation_networks(recipe)
    models = Models(recipe, root, "cpu", uses)
    with opened(root) as found:
        _ = models.vdvae
        _ = models.generator.model
        _ = models.networks
    needed = generative_files(recipe) if embedded else files_to_fetch(recipe, uses)
    listed = {path.relative_to(root).as_posix() for item in needed if (path := item.found(root))}
    assert not any(item.is_missing(root) for item in needed)
    assert {path for path in found if "weights." not in path} == listed
