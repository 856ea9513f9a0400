"""IP-Adapter image-to-image against a slow, literal implementation of its equations in float64.

Only the residual and convolution layers of UNet and AutoKL and the text encoder are the libraries'; the
decoupled attention, the projection, the guidance, the noising and the DDIM steps are written out here.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_ip_adapter import (
    CROSS_ATTENTIONS,
    DIMS,
    EMBEDDING,
    HEADS,
    LENGTH,
    SETTINGS,
    TOKENS,
    Inputs,
    make_unet,
    write_models,
)
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from bidsapp.models.clip import ClipTokens
from bidsapp.models.generators.ip_adapter import ADAPTER, IMAGE_ENCODER, IPAdapterDiffusion
from bidsapp.models.generators.latent_diffusion import DiffusionSettings

START, END = 4, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("ip_adapter"))


@pytest.fixture(scope="module")
def model(folder: Path) -> IPAdapterDiffusion:
    return IPAdapterDiffusion.load(folder)


# ------------------------------------------------- the equations, one image at a time, in float64


def heads_of(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    size = q.shape[1] // HEADS
    parts = [slice(h * size, (h + 1) * size) for h in range(HEADS)]
    return torch.cat([(q[:, p] @ k[:, p].T / math.sqrt(size)).softmax(-1) @ v[:, p] for p in parts], 1)


class LiteralTransformer(nn.Module):
    """Spatial transformer whose cross-attention is text attention + scale * image attention."""

    def __init__(self, w: dict[str, Tensor], k_image: Tensor, v_image: Tensor, seen: dict[str, Any]) -> None:
        super().__init__()
        self.w, self.k_image, self.v_image, self.seen = w, k_image, v_image, seen

    def norm(self, number: int, y: Tensor) -> Tensor:
        name = f"transformer_blocks.0.norm{number}"
        return F.layer_norm(y, y.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def attend(self, name: str, x: Tensor, tokens: Tensor, image: Tensor | None = None) -> Tensor:
        w, name = self.w, f"transformer_blocks.0.{name}"
        q = x @ w[f"{name}.to_q.weight"].T
        y = heads_of(q, tokens @ w[f"{name}.to_k.weight"].T, tokens @ w[f"{name}.to_v.weight"].T)
        if image is not None:
            y = y + self.seen["scale"] * heads_of(q, image @ self.k_image.T, image @ self.v_image.T)
        return y @ w[f"{name}.to_out.0.weight"].T + w[f"{name}.to_out.0.bias"]

    def forward(self, x: Tensor, **_: Any) -> tuple[Tensor]:
        w, b = self.w, "transformer_blocks.0"
        y = F.group_norm(x, 4, w["norm.weight"], w["norm.bias"], eps=1e-6)
        y = F.conv2d(y, w["proj_in.weight"], w["proj_in.bias"])[0].flatten(1).T
        z = self.norm(1, y)
        y = y + self.attend("attn1", z, z)
        y = y + self.attend("attn2", self.norm(2, y), self.seen["text"], self.seen["image"])
        gated = self.norm(3, y) @ w[f"{b}.ff.net.0.proj.weight"].T + w[f"{b}.ff.net.0.proj.bias"]
        value, gate = gated.chunk(2, -1)
        y = y + (value * F.gelu(gate)) @ w[f"{b}.ff.net.2.weight"].T + w[f"{b}.ff.net.2.bias"]
        return (x + F.conv2d(y.T.reshape(x.shape), w["proj_out.weight"], w["proj_out.bias"]),)


def literal_unet(folder: Path, seen: dict[str, Any]) -> Any:
    from safetensors.torch import load_file

    state = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    adapter = {k: v.double() for k, v in load_file(folder / ADAPTER).items()}
    unet = make_unet(9)
    unet.load_state_dict(state)
    unet = unet.double()
    for number, (name, _) in enumerate(CROSS_ATTENTIONS):
        owner, index = name.rsplit(".", 1)
        part = {k.removeprefix(f"{name}."): v.double() for k, v in state.items() if k.startswith(f"{name}.")}
        k_image, v_image = (adapter[f"ip_adapter.{2 * number + 1}.to_{kind}_ip.weight"] for kind in "kv")
        unet.get_submodule(owner)[int(index)] = LiteralTransformer(part, k_image, v_image, seen)
    return unet


def literal_image_tokens(folder: Path, embedding: Tensor) -> Tensor:
    from safetensors.torch import load_file

    w = {k: v.double() for k, v in load_file(folder / ADAPTER).items()}
    x = (w["image_proj.proj.weight"] @ embedding + w["image_proj.proj.bias"]).reshape(TOKENS, DIMS)
    x = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True, correction=0) + 1e-5)
    return x * w["image_proj.norm.weight"] + w["image_proj.norm.bias"]


@torch.no_grad()
def literal_image_to_image(
    model: IPAdapterDiffusion,
    folder: Path,
    inputs: Inputs,
    row: int,
    settings: DiffusionSettings,
    seed: int = 100,
) -> Tensor:
    """Latents of one image before decoding."""
    from transformers import CLIPTextModel

    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
    signal = np.cumprod(1 - betas)
    generator = torch.Generator().manual_seed(seed + row)

    image = Image.fromarray(inputs.initial[row]).resize((16, 16), Image.Resampling.BICUBIC)
    x = torch.from_numpy(np.asarray(image).astype(np.float64) / 127.5 - 1).permute(2, 0, 1)[None]
    vae = model.pipeline.vae.double()
    mean, log_variance = vae.quant_conv(vae.encoder(x)).chunk(2, 1)
    vae.float()
    latent = mean
    if settings.sample_posterior:
        latent = mean + torch.exp(log_variance / 2) * torch.randn(4, 4, 4, generator=generator).double()
    latent = latent * 0.18215

    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").double().eval()
    ids = torch.tensor([[START] + [END] * (LENGTH - 1)])
    seen: dict[str, Any] = {"scale": 1 - settings.text_share}
    seen["text"] = text_encoder(ids).last_hidden_state[0]
    unet = literal_unet(folder, seen)

    timesteps = [1 + i * (1000 // settings.steps) for i in range(settings.steps)]
    n_run = int(settings.strength * settings.steps)
    first = timesteps[n_run if settings.noise_one_step_higher else n_run - 1]
    noise = torch.randn(4, 4, 4, generator=generator).double()
    latent = math.sqrt(signal[first]) * latent + math.sqrt(1 - signal[first]) * noise
    wanted = torch.from_numpy(inputs.embeddings[row]).double()
    for index in reversed(range(n_run)):
        t = timesteps[index]
        predicted = []
        for embedding in (torch.zeros_like(wanted), wanted):
            seen["image"] = literal_image_tokens(folder, embedding)
            predicted.append(unet(latent, t, encoder_hidden_states=torch.zeros(1, 1, DIMS).double()).sample)
        e = predicted[0] + settings.guidance * (predicted[1] - predicted[0])
        now = signal[t]
        before = signal[timesteps[index - 1]] if index else signal[0]
        clean = (latent - math.sqrt(1 - now) * e) / math.sqrt(now)
        latent = math.sqrt(before) * clean + math.sqrt(1 - before) * e
    assert t == 1
    return latent[0]


# ------------------------------------------------- equality

OTHER = replace(SETTINGS, sample_posterior=False, text_share=0.35, guidance=2.5, strength=0.5, steps=20)


@pytest.mark.parametrize(
    "settings",
    [SETTINGS, OTHER, replace(OTHER, guidance=1.0, noise_one_step_higher=True)],
    ids=["as the recipe", "other choices", "no guidance"],
)
def test_loop_equals_the_equations(
    model: IPAdapterDiffusion, folder: Path, settings: DiffusionSettings
) -> None:
    inputs = Inputs()
    own = inputs.latents(model, settings)
    expected = torch.stack(
        [literal_image_to_image(model, folder, inputs, i, settings) for i in range(2)]
    ).numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(own, expected, rtol=0, atol=1e-4 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize(
    "change",
    [
        {"text_share": 0.01},
        {"guidance": 7.4},
        {"sample_posterior": False},
        {"strength": 0.73},
        {"steps": 49},
        {"noise_one_step_higher": True},
        "embeddings",
        "layers swapped",
    ],
    ids=str,
)
def test_the_comparison_notices(folder: Path, model: IPAdapterDiffusion, change: Any) -> None:
    """Each choice moves the latents by far more than the tolerance above."""
    inputs = Inputs()
    right = inputs.latents(model)
    settings, other = SETTINGS, model
    if change == "embeddings":
        inputs.embeddings = inputs.embeddings * 1.1
    elif change == "layers swapped":
        other = IPAdapterDiffusion.load(folder)
        layers = [p.to_k_ip[0] for n, p in other.pipeline.unet.attn_processors.items() if "attn2" in n]
        first, last = (layer.weight.data.clone() for layer in (layers[0], layers[-1]))
        layers[0].weight.data, layers[-1].weight.data = last, first
    else:
        settings = replace(SETTINGS, **change)
    assert np.abs(inputs.latents(other, settings) - right).max() > 2e-3 * np.abs(right).max()


def test_zero_scale_is_plain_stable_diffusion(folder: Path, model: IPAdapterDiffusion) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    parts = model.pipeline.components | {"unet": make_unet(2), "image_encoder": None}
    plain = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    plain.set_progress_bar_config(disable=True)
    inputs = Inputs()
    size = (16, 16)
    images = [Image.fromarray(im).resize(size, Image.Resampling.BICUBIC) for im in inputs.initial]
    expected = plain(
        prompt=["", ""],
        image=images,
        strength=0.75,
        num_inference_steps=50,
        guidance_scale=7.5,
        generator=[torch.Generator().manual_seed(100 + i) for i in range(2)],
        output_type="latent",
    ).images
    without = replace(SETTINGS, text_share=1.0)
    np.testing.assert_allclose(inputs.latents(model, without), expected.double().numpy(), rtol=0, atol=1e-5)
    inputs.embeddings = -inputs.embeddings
    np.testing.assert_allclose(inputs.latents(model, without), expected.double().numpy(), rtol=0, atol=1e-5)
    assert np.abs(inputs.latents(model) - expected.double().numpy()).max() > 0.01


# ------------------------------------------------- what follows from the structure


def test_an_image_does_not_depend_on_its_batch(model: IPAdapterDiffusion) -> None:
    inputs = Inputs(3)
    together = inputs.latents(model)
    tolerance = 1e-5 * np.abs(together).max()
    for rows in ([1], [2, 0]):
        np.testing.assert_allclose(inputs.latents(model, rows=rows), together[rows], rtol=0, atol=tolerance)
    pixels = inputs.images(model).astype(int)
    assert np.abs(inputs.images(model, rows=[2]) - pixels[2:]).max() <= 1
    assert (np.abs(inputs.latents(model, seed=500) - together) > tolerance).mean() > 0.9


def test_an_embedding_reaches_its_own_image_only(model: IPAdapterDiffusion) -> None:
    """In the library's pipeline every image of a batch attends to all of them (diffusers, issue 9813)."""
    inputs, other = Inputs(3), Inputs(3)
    other.embeddings[1] = -inputs.embeddings[1]
    before, after = inputs.latents(model), other.latents(model)
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    assert np.abs(after[1] - before[1]).max() > 0.01


def test_images_that_come_out(model: IPAdapterDiffusion) -> None:
    images = Inputs(2, side=11).images(model)
    assert images.shape == (2, 16, 16, 3)
    assert images.dtype == np.uint8
    assert model.image_size == 16
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.18215 * 3
    with torch.no_grad():
        decoded = model.decode(latents)
        x = model.pipeline.vae.decode(latents / 0.18215).sample
    expected = ((x.permute(0, 2, 3, 1).numpy().astype(np.float64) + 1) * 127.5).clip(0, 255)
    assert np.abs(decoded - expected).max() < 0.501
    assert decoded.std() > 5


def test_embeddings_are_the_projected_class_token(folder: Path, model: IPAdapterDiffusion) -> None:
    """As transformers computes them from its own preprocessing of the same bytes."""
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    images = np.random.default_rng(1).integers(0, 256, (3, 40, 48, 3), dtype=np.uint8)
    own = model.encoder.image_embeddings(images)
    assert own.shape == (3, EMBEDDING)
    assert own.dtype == np.float32
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    encoder = CLIPVisionModelWithProjection.from_pretrained(folder / IMAGE_ENCODER).eval()
    pixels = processor([Image.fromarray(im) for im in images], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = encoder(pixels).image_embeds.numpy()
    np.testing.assert_allclose(own, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(
        own, ClipTokens(model.pipeline.image_encoder, None, None).image_embeddings(images)
    )
    assert np.ptp(np.linalg.norm(own, axis=1)) > 1e-3  # not normalised


def test_half_precision_follows_single(folder: Path, model: IPAdapterDiffusion) -> None:
    half = IPAdapterDiffusion.load(folder, dtype=torch.bfloat16)
    for part in ("unet", "vae", "text_encoder", "image_encoder"):
        assert {p.dtype for p in getattr(half.pipeline, part).parameters()} == {torch.bfloat16}
    settings = replace(SETTINGS, guidance=1.0)
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    with torch.no_grad():
        latents = half._latents(Inputs().initial, Inputs().embeddings, generators, settings)
    assert latents.dtype == torch.float32
    exact, rounded = Inputs().latents(model, settings), Inputs().latents(half, settings)
    assert np.abs(rounded - exact).max() < 0.1 * np.abs(exact).max()
    assert half.encoder.image_embeddings(Inputs().initial).dtype == np.float32


def test_the_published_scheduler_file_gives_ddim(model: IPAdapterDiffusion) -> None:
    scheduler = model.pipeline.scheduler
    assert type(scheduler).__name__ == "DDIMScheduler"
    assert (scheduler.config.clip_sample, scheduler.config.set_alpha_to_one) == (False, False)
    Inputs(1).latents(model)
    assert scheduler.timesteps[:: len(scheduler.timesteps) - 1].tolist() == [981, 1]
