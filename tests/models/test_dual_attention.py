"""Dual attention blocks: their mixing, their weights on disk, and what stops a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_diffusion import DIMS, N_TEXT, N_VISION, SETTINGS, Inputs, make_unet, write_models
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from training_parts import split_paths

from bidsapp.errors import AppError
from bidsapp.models.generators.dual_attention import (
    DualTransformer,
    add_text_path,
    dual_transformers,
    load_text_path,
    read_weights,
    set_text_share,
)
from bidsapp.models.generators.versatile_diffusion import VersatileDiffusion


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("diffusion"))


@pytest.fixture
def model(folder: Path) -> VersatileDiffusion:
    return VersatileDiffusion.load(folder, N_VISION)


class AddSum(nn.Module):
    """Adds a multiple of the sum of what it looks at."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor, *, encoder_hidden_states: Tensor, return_dict: bool) -> tuple[Tensor]:
        assert not return_dict
        return (x + self.factor * encoder_hidden_states.sum((1, 2)).view(-1, 1, 1, 1),)


def text_state(seed: int = 3) -> dict[str, Tensor]:
    return dict(make_unet(seed).state_dict())


# ------------------------------------------------- mixing


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_mixing_in_closed_form(share: float) -> None:
    block = DualTransformer(AddSum(1.0), AddSum(100.0), n_vision=2)
    assert block.text_share == 0.4  # the paper's, unless set
    set_text_share(block, share)
    tokens = torch.tensor([[[1.0], [2.0], [4.0], [8.0], [16.0]], [[0.0], [1.0], [0.0], [0.0], [3.0]]])
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    (mixed,) = block(x, encoder_hidden_states=tokens, encoder_attention_mask=None)
    added = torch.tensor([(1 - share) * 3 + share * 2800, (1 - share) * 1 + share * 300])
    torch.testing.assert_close(mixed, x + added.view(2, 1, 1, 1))


def test_a_share_for_each_image() -> None:
    """Training draws one an image."""
    block = DualTransformer(AddSum(1.0), AddSum(100.0), n_vision=2)
    set_text_share(block, torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))
    (mixed,) = block(torch.zeros(2, 1, 1, 1), encoder_hidden_states=torch.ones(2, 3, 1))
    assert mixed.flatten().tolist() == [2.0, 100.0]


def test_every_cross_attention_is_doubled() -> None:
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    unet = make_unet(0)
    n = sum(isinstance(m, Transformer2DModel) for m in unet.modules())
    assert n == 4
    before = {k: v.clone() for k, v in unet.state_dict().items()}
    add_text_path(unet, N_VISION)
    assert len(dual_transformers(unet)) == n
    # the halves are equal and independent
    for block in dual_transformers(unet):
        assert block.n_vision == N_VISION
        pairs = list(zip(block.vision.parameters(), block.text.parameters(), strict=True))
        assert all(torch.equal(a, b) and a is not b for a, b in pairs)
    tokens = torch.randn(1, N_VISION, DIMS, generator=torch.Generator().manual_seed(0))
    x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    plain = make_unet(0)
    plain.load_state_dict(before)
    with torch.no_grad():
        twice = unet(x, 9, encoder_hidden_states=torch.cat([tokens, tokens], 1)).sample
        torch.testing.assert_close(twice, plain(x, 9, encoder_hidden_states=tokens).sample, rtol=0, atol=1e-6)


# ------------------------------------------------- weights


def test_split_paths_come_back(tmp_path: Path) -> None:
    unet = add_text_path(make_unet(2), N_VISION)
    load_text_path(unet, text_state())
    image, text = split_paths(unet)
    plain = make_unet(2).state_dict()
    assert set(image) == set(plain)
    assert all(torch.equal(image[k], v) for k, v in plain.items())
    attentions = {k: v for k, v in text_state().items() if ".attentions." in k}
    assert set(text) == set(attentions)
    assert all(torch.equal(text[k], v) for k, v in attentions.items())

    save_file({k: v.contiguous() for k, v in text.items()}, tmp_path / "diffusion_pytorch_model.safetensors")
    back = make_unet(7)
    back.load_state_dict(image)
    load_text_path(add_text_path(back, N_VISION), read_weights(tmp_path))
    whole = unet.state_dict()
    assert set(back.state_dict()) == set(whole)
    assert all(torch.equal(v, whole[k]) for k, v in back.state_dict().items())


@pytest.mark.parametrize(
    "block", ["mid_block.attentions.0.", "down_blocks.1.attentions.0.", "up_blocks.0.attentions.1."]
)
def test_a_block_without_text_weights_is_named(block: str) -> None:
    unet = add_text_path(make_unet(2), N_VISION)
    state = {k: v for k, v in text_state().items() if not k.startswith(block)}
    with pytest.raises(KeyError, match=block.replace(".", r"\.")):
        load_text_path(unet, state)


def test_a_missing_or_misshapen_text_weight_is_named() -> None:
    unet = add_text_path(make_unet(2), N_VISION)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    state = text_state()
    state[name] = state[name][:, :-1]
    with pytest.raises(RuntimeError, match=r"size mismatch for transformer_blocks\.0\.attn2\.to_k\.weight"):
        load_text_path(unet, state)
    del state[name]
    with pytest.raises(KeyError, match=r"attn2\.to_k\.weight"):
        load_text_path(unet, state)


def test_safetensors_are_preferred_and_pickles_are_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    binary = tmp_path / "diffusion_pytorch_model.bin"
    torch.save({"a": torch.ones(2)}, binary)
    assert read_weights(tmp_path)["a"].tolist() == [1, 1]
    torch.save({"a": Trap()}, binary)
    with pytest.raises(AppError, match="perhaps code; none of it was run"):
        read_weights(tmp_path)
    assert not (tmp_path / "ran").exists()
    save_file({"a": torch.zeros(2)}, tmp_path / "diffusion_pytorch_model.safetensors")
    assert read_weights(tmp_path)["a"].tolist() == [0, 0]
    assert load_file(tmp_path / "diffusion_pytorch_model.safetensors")["a"].tolist() == [0, 0]


# ------------------------------------------------- what can go wrong


@pytest.mark.parametrize("where", ["unet", "encoder", "decoder"])
def test_values_that_are_not_finite_stop_the_run(model: VersatileDiffusion, where: str) -> None:
    """Such values would otherwise end as black pixels."""
    part = {"unet": model.unet, "encoder": model.vae.encoder, "decoder": model.vae.decoder}[where]
    with torch.no_grad():
        part.conv_out.bias[0] = torch.inf
    what = "pixels" if where == "decoder" else "latents"
    with pytest.raises(AppError, match=rf"{what} that are not finite.*float32.*cpu"):
        Inputs().run(model)


def test_missing_weights_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AppError, match=r"diffusion_pytorch_model\.bin: these weights are missing"):
        read_weights(tmp_path)
    with pytest.raises(AppError, match=r"vae.config\.json: there is no such file"):
        VersatileDiffusion.load(tmp_path, N_VISION)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_one_generator_an_image(model: VersatileDiffusion, n: int) -> None:
    """One generator for two images would give both the same noise."""
    inputs = Inputs(2)
    generators = [torch.Generator().manual_seed(i) for i in range(n)]
    with pytest.raises(ValueError, match="2 images need as many generators"):
        model.image_to_image(inputs.initial, inputs.vision, inputs.text, inputs.nothing, generators, SETTINGS)


@pytest.mark.parametrize("swap", ["vision", "text"])
def test_tokens_of_another_number_are_refused(model: VersatileDiffusion, swap: str) -> None:
    """Vision and text tokens are told apart by their number alone."""
    inputs = Inputs(2)
    rng = np.random.default_rng(1)
    other = rng.normal(size=(2, 4, DIMS)).astype(np.float32)
    assert N_VISION != 4 != N_TEXT
    setattr(inputs, swap, other)
    with pytest.raises(ValueError, match={"vision": "image tokens", "text": "text tokens"}[swap]):
        inputs.run(model)
    inputs = Inputs(2)
    inputs.vision, inputs.text, inputs.nothing = inputs.text, inputs.vision, inputs.nothing[::-1]
    with pytest.raises(ValueError, match="takes 5 image tokens, got 3"):
        inputs.run(model)
