"""What depends on the device: number formats, and the advice where one overflows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.published_models import write_models, write_recipe
from torch import nn

from bidsapp.config import load_recipe
from bidsapp.errors import AppError, ExitCode
from bidsapp.models.devices import choose_device, choose_dtype, numerics, other_format
from bidsapp.models.suite import Models
from bidsapp.participant.level import evaluation_networks

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("devices") / "models")


def test_auto_is_half_precision_on_cuda_only():
    cpu, cuda, mps = (numerics(d) for d in ("cpu", "cuda:1", "mps"))
    assert (cpu.transformers, cpu.vdvae_half, cpu.channels_last) == (torch.float32, None, False)
    assert (mps.transformers, mps.vdvae_half, mps.channels_last) == (torch.float32, None, False)
    assert (cuda.transformers, cuda.vdvae_half, cuda.channels_last) == (torch.float16, torch.float16, True)
    assert [choose_dtype("auto", d) for d in ("cpu", "cuda:1", "mps")] == ["float32", "float16", "float32"]


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_the_format_asked_for_is_the_one_taken(device):
    exact = numerics(device, "float32")
    assert (exact.transformers, exact.vdvae_half) == (torch.float32, None)
    for name, dtype in HALVES.items():
        half = numerics(device, name)
        assert (half.transformers, half.vdvae_half) == (dtype, dtype)
        assert half.channels_last == exact.channels_last
    # what rounds more may drift more
    assert exact.tolerance < numerics(device, "float16").tolerance < numerics(device, "bfloat16").tolerance
    assert numerics("cpu", "float32").tolerance <= exact.tolerance


def test_a_gpu_without_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla P100")
    with pytest.raises(
        AppError, match=r"Tesla P100 does not support bfloat16\. Use --dtype float16"
    ) as caught:
        choose_dtype("bfloat16", "cuda")
    assert caught.value.exit_code == ExitCode.USAGE
    assert choose_dtype("bfloat16", "cpu") == "bfloat16"
    assert choose_dtype("float16", "cuda") == "float16"


def test_a_device_that_is_not_there():
    absent = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(AppError, match=f"--device {absent}: not available") as caught:
        choose_device(absent)
    assert caught.value.exit_code == ExitCode.USAGE


def test_advice_names_a_format_that_is_not_the_one_that_failed():
    assert "--dtype bfloat16" in other_format(torch.float16, "cuda")
    assert "--dtype float32" in other_format(torch.bfloat16, "cuda")
    assert "--device cpu" in other_format(torch.float32, "mps")
    assert "damaged" in other_format(None, "cpu")
    for dtype in (torch.float16, torch.bfloat16):
        said = other_format(dtype, "cuda").split("run again", 1)[-1]
        assert f"--dtype {str(dtype).removeprefix('torch.')}" not in said


# ------------------------------------------------- the models follow


def formats_of(*modules: nn.Module) -> set[torch.dtype]:
    return {p.dtype for module in modules for p in module.parameters()}


@pytest.mark.parametrize("dtype", ["float32", *HALVES])
def test_every_model_of_the_suite_is_in_the_chosen_format(dtype, models, tmp_path, monkeypatch):
    """The VDVAE's weights stay float32: its convolutions alone are cast."""
    from bidsapp.models import suite as module

    monkeypatch.setattr(module, "_VIT_L14", {})  # a small CLIP may judge here
    recipe = load_recipe(str(write_recipe(tmp_path, metrics={"networks": ["clip", "alexnet2"]})))
    uses = evaluation_networks(recipe)
    uses["clip"] = replace(uses["clip"], resizing=replace(uses["clip"].resizing, sizes=(16,)))
    suite = Models(recipe, models, "cpu", uses, dtype)
    chosen = HALVES.get(dtype, torch.float32)
    assert suite.dtype == dtype
    assert suite.vdvae.half_type == HALVES.get(dtype)
    assert formats_of(suite.vdvae) == {torch.float32}
    clip, model = suite.generator.encoder, suite.generator.model
    assert formats_of(clip.vision, clip.text, model.unet, model.vae) == {chosen}
    images = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)
    for name in ("clip", "alexnet2"):
        features = suite.networks[name](images)
        assert features.dtype == np.float32
        assert np.isfinite(features).all()
    targets = suite.targets(images, [["a"], ["b", "c"]])
    assert all(rows.dtype == np.float32 and np.isfinite(rows).all() for rows in targets.values())


def test_the_evaluation_clip_of_the_other_generator_is_in_the_chosen_format(models, tmp_path, monkeypatch):
    """Its checkpoint is float32, whatever the generator runs in."""
    import shutil

    from bidsapp.models import suite as module
    from bidsapp.models.weights import registry as weights

    monkeypatch.setattr(module, "_VIT_L14", {})
    folder = tmp_path / "models" / weights.EVALUATION / weights.CLIP_NETWORK
    shutil.copytree(models / "versatile-diffusion" / "image_encoder", folder)
    recipe = load_recipe(str(write_recipe(tmp_path, "sd15-ip-adapter", metrics={"networks": ["clip"]})))
    for dtype, chosen in (("auto", torch.float32), ("float16", torch.float16)):
        suite = Models(recipe, tmp_path / "models", "cpu", evaluation_networks(recipe), dtype)
        assert formats_of(suite.protocol_clip()) == {chosen}


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_gives_nearly_the_same_targets(dtype, models, tmp_path):
    recipe = load_recipe(str(write_recipe(tmp_path)))
    images = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)
    exact, half = (
        Models(recipe, models, "cpu", None, d).targets(images, [["a"], ["b"]]) for d in ("float32", dtype)
    )
    for name, rows in exact.items():
        error = np.abs(half[name] - rows).max() / np.abs(rows).max()
        assert 0 < error < {"float16": 0.02, "bfloat16": 0.1}[dtype], name
