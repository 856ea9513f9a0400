"""Dual-guided image-to-image diffusion against a slow, literal implementation of its equations in float64.

Only the residual and convolution layers of UNet and AutoKL are diffusers'; the attention blocks, their
mixing, the guidance, the noising and the DDIM steps are written out here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_diffusion import DIMS, HEADS, N_TEXT, N_VISION, SETTINGS, Inputs, make_unet, write_models
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from bidsapp.models.generators.dual_attention import read_weights, set_text_share
from bidsapp.models.generators.latent_diffusion import DiffusionSettings
from bidsapp.models.generators.versatile_diffusion import VersatileDiffusion


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("diffusion"))


@pytest.fixture
def model(folder: Path) -> VersatileDiffusion:
    return VersatileDiffusion.load(folder, N_VISION)


@pytest.fixture
def latents_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., np.ndarray]:
    """Run image-to-image and return the latents before they are decoded."""

    def run(model: VersatileDiffusion, inputs: Inputs, *args: Any, **kwargs: Any) -> np.ndarray:
        with monkeypatch.context() as patch:
            patch.setattr(VersatileDiffusion, "decode", lambda _self, latents: latents.double().numpy())
            return inputs.run(model, *args, **kwargs)

    return run


# ------------------------------------------------- the equations, one image at a time, in float64


def attend(w: dict[str, Tensor], name: str, x: Tensor, tokens: Tensor) -> Tensor:
    """Multi-head attention of x (positions, dims) to tokens."""
    q, k, v = (
        x @ w[f"{name}.to_q.weight"].T,
        tokens @ w[f"{name}.to_k.weight"].T,
        tokens @ w[f"{name}.to_v.weight"].T,
    )
    size = q.shape[1] // HEADS
    heads = []
    for h in range(HEADS):
        part = slice(h * size, (h + 1) * size)
        heads.append((q[:, part] @ k[:, part].T / math.sqrt(size)).softmax(-1) @ v[:, part])
    return torch.cat(heads, 1) @ w[f"{name}.to_out.0.weight"].T + w[f"{name}.to_out.0.bias"]


def transformer(w: dict[str, Tensor], x: Tensor, tokens: Tensor) -> Tensor:
    """One spatial transformer on a feature map (1, C, H, W), looking at one condition."""

    def norm(number: int, y: Tensor) -> Tensor:
        return F.layer_norm(y, y.shape[-1:], w[f"{b}.norm{number}.weight"], w[f"{b}.norm{number}.bias"])

    b = "transformer_blocks.0"
    y = F.group_norm(x, 4, w["norm.weight"], w["norm.bias"], eps=1e-6)
    y = F.conv2d(y, w["proj_in.weight"], w["proj_in.bias"])[0].flatten(1).T
    z = norm(1, y)
    y = y + attend(w, f"{b}.attn1", z, z)
    y = y + attend(w, f"{b}.attn2", norm(2, y), tokens)
    value, gate = (norm(3, y) @ w[f"{b}.ff.net.0.proj.weight"].T + w[f"{b}.ff.net.0.proj.bias"]).chunk(2, -1)
    y = y + (value * F.gelu(gate)) @ w[f"{b}.ff.net.2.weight"].T + w[f"{b}.ff.net.2.bias"]
    y = y.T.reshape(x.shape)
    return x + F.conv2d(y, w["proj_out.weight"], w["proj_out.bias"])


class LiteralMix(nn.Module):
    """0.6 of what the image's transformer adds and 0.4 of what the text's adds."""

    def __init__(self, image: dict[str, Tensor], text: dict[str, Tensor], tokens: dict[str, Any]) -> None:
        super().__init__()
        self.image, self.text, self.tokens = image, text, tokens

    def forward(self, x: Tensor, **_: Any) -> tuple[Tensor]:
        by_image = transformer(self.image, x, self.tokens["vision"]) - x
        by_text = transformer(self.text, x, self.tokens["text"]) - x
        m = self.tokens["text_share"]
        return (x + (1 - m) * by_image + m * by_text,)


def literal_unet(folder: Path, tokens: dict[str, Any]) -> Any:
    unet = make_unet(9)
    image, text = read_weights(folder / "image_unet"), read_weights(folder / "text_unet")
    unet.load_state_dict(image)
    unet = unet.double()

    def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v.double() for k, v in state.items() if k.startswith(prefix)}

    for name in ("down_blocks.1", "mid_block", "up_blocks.0"):
        owner = unet.get_submodule(name)
        for index in range(len(owner.attentions)):
            prefix = f"{name}.attentions.{index}."
            owner.attentions[index] = LiteralMix(part(image, prefix), part(text, prefix), tokens)
    return unet


@torch.no_grad()
def literal_image_to_image(
    model: VersatileDiffusion,
    folder: Path,
    inputs: Inputs,
    row: int,
    settings: DiffusionSettings,
    seed: int = 100,
) -> Tensor:
    """Latents of one image before decoding."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
    signal = np.cumprod(1 - betas)
    generator = torch.Generator().manual_seed(seed + row)

    image = Image.fromarray(inputs.initial[row]).resize((16, 16), Image.Resampling.BICUBIC)
    x = torch.from_numpy(np.asarray(image).astype(np.float64) / 127.5 - 1).permute(2, 0, 1)[None]
    vae = model.vae.double()
    mean, log_variance = vae.quant_conv(vae.encoder(x)).chunk(2, 1)
    vae.float()
    latent = mean
    if settings.sample_posterior:
        latent = mean + torch.exp(log_variance / 2) * torch.randn(4, 4, 4, generator=generator).double()
    latent = latent * 0.18215

    timesteps = list(range(1, 1000, 20))
    assert len(timesteps) == settings.steps == 50
    t_enc = int(settings.strength * 50)
    assert t_enc == 37
    start = timesteps[t_enc] if settings.noise_one_step_higher else timesteps[t_enc - 1]
    assert start == (741 if settings.noise_one_step_higher else 721)
    noise = torch.randn(4, 4, 4, generator=generator).double()
    latent = math.sqrt(signal[start]) * latent + math.sqrt(1 - signal[start]) * noise

    tokens: dict[str, Any] = {"text_share": settings.text_share}
    unet = literal_unet(folder, tokens)
    count = 0
    for index in reversed(range(t_enc)):
        t = timesteps[index]
        predicted = []
        for seen, read in (inputs.nothing, (inputs.vision[row][None], inputs.text[row][None])):
            tokens["vision"], tokens["text"] = (torch.from_numpy(c[0]).double() for c in (seen, read))
            predicted.append(unet(latent, t, encoder_hidden_states=torch.zeros(1, 1, DIMS).double()).sample)
        e = predicted[0] + settings.guidance * (predicted[1] - predicted[0])
        now = signal[t]
        before = signal[timesteps[index - 1]] if index else signal[0]
        clean = (latent - math.sqrt(1 - now) * e) / math.sqrt(now)
        latent = math.sqrt(before) * clean + math.sqrt(1 - before) * e
        count += 1
    assert count == 37
    assert t == 1
    return latent[0]


# ------------------------------------------------- equality


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        replace(SETTINGS, noise_one_step_higher=False, sample_posterior=False, text_share=0.15, guidance=2.0),
    ],
    ids=["as the paper", "other choices"],
)
def test_loop_equals_the_equations(
    model: VersatileDiffusion,
    folder: Path,
    latents_of: Callable[..., np.ndarray],
    settings: DiffusionSettings,
) -> None:
    inputs = Inputs()
    own = latents_of(model, inputs, settings)
    expected = torch.stack(
        [literal_image_to_image(model, folder, inputs, i, settings) for i in range(2)]
    ).numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(own, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize(
    "wrong", ["721 for both", "text share", "guidance", "posterior mean", "one text half"]
)
def test_the_comparison_notices(
    model: VersatileDiffusion, folder: Path, latents_of: Callable[..., np.ndarray], wrong: str
) -> None:
    """Each choice of the recipe moves the latents by far more than the tolerance above."""
    settings = {
        "721 for both": replace(SETTINGS, noise_one_step_higher=False),
        "text share": replace(SETTINGS, text_share=0.41),
        "guidance": replace(SETTINGS, guidance=7.4),
        "posterior mean": replace(SETTINGS, sample_posterior=False),
    }
    inputs = Inputs()
    right = latents_of(model, inputs)
    if wrong == "one text half":
        half = model.unet.mid_block.attentions[0]
        half.text.load_state_dict(half.vision.state_dict())
    assert np.abs(latents_of(model, inputs, settings.get(wrong, SETTINGS)) - right).max() > 1e-3


@pytest.mark.parametrize(("safe", "extra_keys"), [(True, True), (False, False), (False, True)])
def test_every_published_layout_loads_to_the_same_model(
    tmp_path: Path,
    model: VersatileDiffusion,
    latents_of: Callable[..., np.ndarray],
    safe: bool,
    extra_keys: bool,
) -> None:
    other = VersatileDiffusion.load(write_models(tmp_path, safe=safe, extra_keys=extra_keys), N_VISION)
    assert (tmp_path / "image_unet" / "diffusion_pytorch_model.bin").exists() != safe
    np.testing.assert_array_equal(latents_of(other, Inputs()), latents_of(model, Inputs()))


def test_schedule(model: VersatileDiffusion) -> None:
    timesteps, noised_to = model.schedule(SETTINGS)
    assert noised_to.tolist() == [741]
    assert timesteps.tolist() == list(range(721, 0, -20))
    assert len(timesteps) == 37
    _, same = model.schedule(replace(SETTINGS, noise_one_step_higher=False))
    assert same.tolist() == [721]
    timesteps, noised_to = model.schedule(replace(SETTINGS, strength=1.0))
    assert (len(timesteps), int(noised_to), int(timesteps[0])) == (50, 981, 981)


# ------------------------------------------------- what follows from the structure


def test_an_image_does_not_depend_on_its_batch(
    model: VersatileDiffusion, latents_of: Callable[..., np.ndarray]
) -> None:
    inputs = Inputs(3)
    together = latents_of(model, inputs)
    for rows in ([1], [2, 0]):
        np.testing.assert_allclose(latents_of(model, inputs, rows=rows), together[rows], rtol=0, atol=1e-5)
    pixels = inputs.run(model, rows=[1, 2]).astype(int)
    assert np.abs(inputs.run(model, rows=[2]) - pixels[1:]).max() <= 1
    assert (latents_of(model, inputs, seed=500) != together).mean() > 0.9


def test_share_zero_reads_no_text_and_share_one_sees_no_image(
    model: VersatileDiffusion, latents_of: Callable[..., np.ndarray]
) -> None:
    inputs, other_text, other_vision = Inputs(), Inputs(), Inputs()
    other_text.text = -inputs.text
    other_vision.vision = -inputs.vision
    by_vision, by_text = replace(SETTINGS, text_share=0.0), replace(SETTINGS, text_share=1.0)
    for settings, same, different in (
        (by_vision, other_text, other_vision),
        (by_text, other_vision, other_text),
    ):
        result = latents_of(model, inputs, settings)
        np.testing.assert_allclose(latents_of(model, same, settings), result, rtol=0, atol=1e-6)
        assert np.abs(latents_of(model, different, settings) - result).max() > 1e-3


def test_share_zero_is_the_image_unet_by_itself(model: VersatileDiffusion, folder: Path) -> None:
    plain = make_unet(9)
    plain.load_state_dict(read_weights(folder / "image_unet"))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 4, 4, generator=generator)
    tokens = torch.randn(2, N_VISION + N_TEXT, DIMS, generator=generator)
    set_text_share(model.unet, 0.0)
    with torch.no_grad():
        dual = model.unet(latents, 321, encoder_hidden_states=tokens).sample
        single = plain(latents, 321, encoder_hidden_states=tokens[:, :N_VISION]).sample
    torch.testing.assert_close(dual, single, rtol=0, atol=1e-6)


def test_latents_of_images(model: VersatileDiffusion) -> None:
    """Encoding takes images of any size and gives float32 at AutoKL's scale; a draw adds its deviation."""
    inputs = Inputs(2, side=11)
    mean = model.encode(inputs.initial)
    assert mean.shape == (2, 4, 4, 4)
    assert mean.dtype == torch.float32
    rows = [Image.fromarray(im).resize((16, 16), Image.Resampling.BICUBIC) for im in inputs.initial]
    x = torch.from_numpy(np.stack([np.asarray(r) for r in rows])).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        expected = model.vae.encode(x).latent_dist
    torch.testing.assert_close(mean, expected.mean * 0.18215)
    drawn = model.encode(inputs.initial, [torch.Generator().manual_seed(s) for s in (1, 2)])
    noise = torch.stack([torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(s)) for s in (1, 2)])
    torch.testing.assert_close(drawn - mean, expected.std * noise * 0.18215, rtol=1e-4, atol=1e-6)


def test_images_of_latents(model: VersatileDiffusion) -> None:
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.18215 * 3
    images = model.decode(latents)
    assert images.shape == (2, 16, 16, 3)
    assert images.dtype == np.uint8
    with torch.no_grad():
        x = model.vae.decode(latents / 0.18215).sample
    expected = ((x.permute(0, 2, 3, 1).numpy().astype(np.float64) + 1) * 127.5).clip(0, 255)
    assert np.abs(images - expected).max() < 0.501
    assert images.std() > 5


def test_half_precision_follows_single(
    folder: Path, model: VersatileDiffusion, latents_of: Callable[..., np.ndarray]
) -> None:
    half = VersatileDiffusion.load(folder, N_VISION, dtype=torch.bfloat16)
    assert {p.dtype for p in [*half.unet.parameters(), *half.vae.parameters()]} == {torch.bfloat16}
    assert half.encode(Inputs().initial).dtype == torch.float32
    settings = replace(SETTINGS, guidance=1.0)
    exact, rounded = latents_of(model, Inputs(), settings), latents_of(half, Inputs(), settings)
    assert np.abs(rounded - exact).max() < 0.1 * np.abs(exact).max()
