"""What IP-Adapter image-to-image refuses, how it loads, and its recipe."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_ip_adapter import EMBEDDING, SETTINGS, Inputs, make_adapter, write_models
from torch import Tensor

from bidsapp.config import load_recipe
from bidsapp.errors import AppError
from bidsapp.models.generators.ip_adapter import ADAPTER, IPAdapterDiffusion


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("ip_adapter"))


@pytest.fixture(scope="module")
def model(folder: Path) -> IPAdapterDiffusion:
    return IPAdapterDiffusion.load(folder)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_only_uint8_images(model: IPAdapterDiffusion, dtype: Any) -> None:
    inputs = Inputs()
    inputs.initial = inputs.initial.astype(dtype)
    with pytest.raises(TypeError, match="uint8"):
        inputs.images(model)
    with pytest.raises(TypeError, match="uint8"):
        model.encoder.image_embeddings(inputs.initial)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_latents_that_are_not_finite(model: IPAdapterDiffusion, value: float) -> None:
    inputs = Inputs()
    inputs.embeddings[1, 3] = value
    with pytest.raises(AppError, match=r"latents that are not finite in torch.float32 on cpu.*float32"):
        inputs.images(model)


def test_pixels_that_are_not_finite(folder: Path) -> None:
    model = IPAdapterDiffusion.load(folder)
    model.pipeline.vae.decoder.conv_out.bias.data[0] = torch.inf
    with pytest.raises(AppError, match=r"pixels that are not finite.*--dtype float32"):
        Inputs().images(model)


@pytest.mark.parametrize("wrong", ["fewer embeddings", "wider embeddings", "a generator too many"])
def test_numbers_that_do_not_fit(model: IPAdapterDiffusion, wrong: str) -> None:
    inputs = Inputs()
    embeddings = {
        "fewer embeddings": inputs.embeddings[:1],
        "wider embeddings": np.repeat(inputs.embeddings, 2, axis=1),
    }.get(wrong, inputs.embeddings)
    generators = [torch.Generator() for _ in range(3 if wrong == "a generator too many" else 2)]
    with pytest.raises(ValueError, match="2 images need"):
        model.image_to_image(inputs.initial, embeddings, generators, SETTINGS)


@pytest.fixture
def altered(folder: Path, tmp_path: Path) -> Callable[[str, Callable[[dict[str, Tensor]], Any]], Path]:
    """Copy the models and change one file's tensors in place."""
    from safetensors.torch import load_file, save_file

    def make(file: str, change: Callable[[dict[str, Tensor]], Any]) -> Path:
        root = Path(shutil.copytree(folder, tmp_path / "models"))
        state = load_file(root / file)
        change(state)
        save_file(state, root / file, metadata={"format": "pt"})
        return root

    return make


def test_adapters_of_another_kind(altered: Any) -> None:
    root = altered(ADAPTER, lambda state: state.pop("image_proj.proj.weight"))
    with pytest.raises(AppError, match="not a plain IP-Adapter"):
        IPAdapterDiffusion.load(root)


def test_adapters_of_another_image_encoder(altered: Any) -> None:
    root = altered(ADAPTER, lambda state: state.update(make_adapter(embedding=EMBEDDING + 4)))
    with pytest.raises(AppError, match=f"embeddings of {EMBEDDING + 4} values.*gives {EMBEDDING}"):
        IPAdapterDiffusion.load(root)


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "conv_in.bias"),
        ("vae/diffusion_pytorch_model.safetensors", "quant_conv.weight"),
        ("models/image_encoder/model.safetensors", "visual_projection.weight"),
    ],
)
def test_missing_weights_are_not_left_random(altered: Any, file: str, key: str) -> None:
    with pytest.raises(AppError, match=rf"missing: {key}"):
        IPAdapterDiffusion.load(altered(file, lambda state: state.pop(key)))


def test_older_scheduler_files_clip_nothing_either(
    folder: Path, tmp_path: Path, model: IPAdapterDiffusion
) -> None:
    """Without the key diffusers would clip every estimate of the clean latents to [-1, 1]."""
    root = Path(shutil.copytree(folder, tmp_path / "models"))
    file = root / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    del config["clip_sample"]
    file.write_text(json.dumps(config))
    with warnings.catch_warnings():
        warnings.simplefilter(
            "error", FutureWarning
        )  # diffusers warns where it has to turn the clipping off itself
        other = IPAdapterDiffusion.load(root)
    np.testing.assert_array_equal(Inputs().images(other), Inputs().images(model))


def test_loading_says_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    IPAdapterDiffusion.load(folder)
    assert "".join(capfd.readouterr()) == ""


def test_recipe() -> None:
    recipe = load_recipe("sd15-ip-adapter")
    assert recipe.target_names == ("vdvae", "clip_image")
    assert recipe.diffusion.kind == "ip-adapter"
    assert recipe.diffusion.noise_one_step_higher is False
    assert 1 - recipe.diffusion.text_share == 1.0
