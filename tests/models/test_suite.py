"""The models of a recipe: how they are loaded, and the targets they compute."""

from __future__ import annotations

import json
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.published_models import VDVAE_CONFIG, write_models, write_recipe, write_vdvae
from safetensors.torch import save_file

from bidsapp.config import load_recipe
from bidsapp.errors import AppError, ExitCode
from bidsapp.models.generators.dual_attention import read_weights
from bidsapp.models.suite import Models
from bidsapp.models.vdvae import load_vdvae, read_config

PUBLISHED = "imagenet64-iter-1600000-model-ema.th"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return write_models(tmp_path_factory.mktemp("suite") / "models")


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)


# ------------------------------------------------- the VDVAE's files


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_published_file_and_a_converted_one_are_the_same_model(prefix, tmp_path, pictures):
    write_vdvae(tmp_path / "published", prefix)
    published = load_vdvae(tmp_path / "published")
    folder = tmp_path / "converted"
    folder.mkdir()
    save_file({k: v.clone() for k, v in published.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(VDVAE_CONFIG))
    converted = load_vdvae(folder)
    assert not published.training
    latents = published.encode_latents(pictures, 3)
    assert latents.std() > 0
    np.testing.assert_array_equal(latents, converted.encode_latents(pictures, 3))


def test_without_a_configuration_it_is_the_published_one(tmp_path):
    config = read_config(tmp_path)
    assert (config.image_size, config.width, config.zdim, config.n_mixtures) == (64, 512, 16, 10)
    assert config.enc_blocks == "64x11,64d2,32x20,32d2,16x9,16d2,8x8,8d2,4x7,4d4,1x5"
    assert config.dec_blocks == "1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x31,64m32,64x12"
    assert (config.shift, config.scale) == (115.92961967, 69.37404)


def test_vdvae_files_that_do_not_fit(tmp_path):
    with pytest.raises(AppError, match=PUBLISHED) as caught:
        load_vdvae(tmp_path)
    assert caught.value.exit_code == ExitCode.TRY_AGAIN
    write_vdvae(tmp_path / "v")
    (tmp_path / "v" / "config.json").write_text(json.dumps(VDVAE_CONFIG | {"width": 32}))
    with pytest.raises(AppError, match=r"not the weights of VDVAE .*of another shape") as caught:
        load_vdvae(tmp_path / "v")
    assert caught.value.exit_code == ExitCode.BAD_DATA
    for text in ("{", '{"image_size": 3}', '{"depth": 3}'):
        (tmp_path / "v" / "config.json").write_text(text)
        with pytest.raises(AppError, match=r"config\.json.*not (a VDVAE|valid JSON)") as caught:
            load_vdvae(tmp_path / "v")
        assert caught.value.exit_code == ExitCode.BAD_DATA


# ------------------------------------------------- targets


@pytest.mark.parametrize("sample", [False, True])
def test_targets_do_not_depend_on_the_batch(sample, models, pictures, tmp_path):
    captions = [["one two"], ["three"], ["four", "five"], ["six"], ["seven"]]
    made = []
    for batch, order in ((2, range(5)), (5, range(5)), (3, range(4, -1, -1))):
        folder = tmp_path / f"{batch}"
        folder.mkdir()
        recipe = write_recipe(folder, vdvae={"batch": batch, "sample_latents": sample})
        suite = Models(load_recipe(str(recipe)), models, "cpu")
        found = suite.targets(pictures[list(order)], [captions[i] for i in order])
        made.append({name: rows[np.argsort(list(order))] for name, rows in found.items()})
    assert set(made[0]) == {"vdvae", "clip_vision", "clip_text"}
    for other in made[1:]:
        for name, rows in made[0].items():
            assert rows.shape[0] == 5
            np.testing.assert_allclose(other[name], rows, rtol=1e-3, atol=1e-4)
    assert np.abs(np.diff(made[0]["vdvae"], axis=0)).max(axis=1).min() > 1e-3


def test_drawn_latents_are_not_the_mean(models, pictures, tmp_path):
    found = []
    for sample in (False, True):
        recipe = write_recipe(tmp_path, vdvae={"sample_latents": sample})
        suite = Models(load_recipe(str(recipe)), models, "cpu")
        same = np.concatenate([pictures[:1], pictures[:1]])
        found.append(suite.targets(same, [["a"], ["a"]])["vdvae"])
        np.testing.assert_allclose(found[-1][0], found[-1][1], rtol=1e-4, atol=1e-5)  # by the pixels alone
    assert np.abs(found[0] - found[1]).mean() > 0.1


def test_weights_that_are_not_whole_are_refused(models, tmp_path):
    import shutil

    from bidsapp.models.clip import ClipTokens
    from bidsapp.models.generators.versatile_diffusion import VersatileDiffusion

    folder = tmp_path / "vd"
    shutil.copytree(models / "versatile-diffusion", folder)
    for part, file, name in (
        ("image_unet", "diffusion_pytorch_model.bin", "conv_out.weight"),
        ("vae", "diffusion_pytorch_model.bin", "quant_conv.weight"),
        ("text_encoder", "pytorch_model.bin", "text_projection.weight"),
    ):
        path = folder / part / file
        state = torch.load(path, weights_only=True)
        torch.save({k: v for k, v in state.items() if k != name}, path)
        load = partial(ClipTokens.load if part == "text_encoder" else VersatileDiffusion.load, folder)
        words = () if part == "text_encoder" else (5,)
        with pytest.raises(AppError, match=f"{part}: not the weights of a complete .*{name}"):
            load(*words)
        torch.save(state, path)


@pytest.mark.parametrize("zipped", [True, False])
def test_text_weights_of_both_torch_formats(zipped, tmp_path):
    path = tmp_path / "diffusion_pytorch_model.bin"
    torch.save({"a": torch.arange(5.0)}, path, _use_new_zipfile_serialization=zipped)
    assert zipfile.is_zipfile(path) == zipped
    assert read_weights(tmp_path)["a"].tolist() == [0, 1, 2, 3, 4]


def test_autoencoders_of_the_published_age(tmp_path):
    """The published AutoKL is older than its library: its attention has other names, its config fewer."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from bidsapp.models.weights.checkpoints import load_component
    from bidsapp.models.weights.configurations import AUTOKL

    torch.manual_seed(0)
    shape = {"block_out_channels": (8, 8), "norm_num_groups": 4, "sample_size": 16}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    new = AutoencoderKL(**shape, **blocks).eval()
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, tensor in new.state_dict().items():
        for recent, old in names.items():
            name = name.replace(f"attentions.0.{recent}.", f"attentions.0.{old}.")
        state[name] = tensor
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in state
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    config = {"_class_name": "AutoencoderKL", "_diffusers_version": "0.8.0.dev0", **shape, **blocks}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_component(AutoencoderKL, tmp_path, AUTOKL).eval()
    assert loaded.config.scaling_factor == 0.18215
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode(x).latent_dist.mean, new.encode(x).latent_dist.mean)
