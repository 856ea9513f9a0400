"""The VDVAE's published equations, written out from a state dict, and small models with random weights."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bidsapp.models.vdvae import VDVAE, VDVAEConfig

SMALL = VDVAEConfig(
    image_size=16,
    enc_blocks="16x2,16d2,8x1,8d2,4x2,4d2,2x1,2d2,1x2",
    dec_blocks="1x2,2m1,2,4m2,4x2,8m4,16m8,16x2",
    width=24,
    zdim=5,
    n_mixtures=3,
    no_bias_above=8,  # none at 16: that stream starts from zeros
)
IMAGENET64 = VDVAEConfig(
    image_size=64,
    enc_blocks="64x11,64d2,32x20,32d2,16x9,16d2,8x8,8d2,4x7,4d4,1x5",
    dec_blocks="1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x31,64m32,64x12",
    width=512,
    zdim=16,
)

State = dict[str, Tensor]


# ------------------------------------------------- the published equations, from a state dict


def conv(state: State, name: str, x: Tensor) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)


def block(state: State, name: str, x: Tensor) -> Tensor:
    for i in (1, 2, 3, 4):
        x = conv(state, f"{name}.c{i}", F.gelu(x))
    return x


def reference_encoder(state: State, config: VDVAEConfig, images: np.ndarray) -> dict[int, Tensor]:
    x = (torch.from_numpy(images.astype(np.float32)) - 115.92961967) / 69.37404
    x = conv(state, "encoder.in_conv", x.permute(0, 3, 1, 2))
    activations, number = {config.image_size: x}, 0
    for item in config.enc_blocks.split(","):
        pooling = re.fullmatch(r"(\d+)d(\d+)", item)
        repeats = re.fullmatch(r"(\d+)x(\d+)", item)
        for _ in range(int(repeats[2]) if repeats else 1):
            x = x + block(state, f"encoder.enc_blocks.{number}", x)
            if pooling:
                x = F.avg_pool2d(x, int(pooling[2]), int(pooling[2]))
            activations[x.shape[-1]] = x
            number += 1
    return activations


def top_down_plan(config: VDVAEConfig) -> Iterator[tuple[int, int | None]]:
    for item in config.dec_blocks.split(","):
        if "m" in item:
            yield tuple(int(p) for p in item.split("m"))  # type: ignore[misc]
        else:
            resolution, _, number = item.partition("x")
            yield from [(int(resolution), None)] * int(number or 1)


def reference_top_down(
    state: State,
    config: VDVAEConfig,
    n: int,
    *,
    activations: dict[int, Tensor] | None = None,
    given: list[Tensor] | None = None,
    noise: Iterator[Tensor] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Latents (posterior means of ``activations``, or ``given``, else the prior) and output parameters."""
    streams = {}
    i = 0
    while f"decoder.bias_xs.{i}" in state:
        bias = state[f"decoder.bias_xs.{i}"]
        streams[bias.shape[-1]] = bias.repeat(n, 1, 1, 1)
        i += 1
    latents = []
    for number, (resolution, mixin) in enumerate(top_down_plan(config)):
        name = f"decoder.dec_blocks.{number}"
        x = streams.get(resolution, torch.zeros(n, config.width, resolution, resolution))
        if mixin is not None:
            x = x + streams[mixin].repeat_interleave(resolution // mixin, 2).repeat_interleave(
                resolution // mixin, 3
            )
        features = block(state, f"{name}.prior", x)
        prior_mean, prior_log = features[:, : config.zdim], features[:, config.zdim : 2 * config.zdim]
        if activations is not None:
            z = block(state, f"{name}.enc", torch.cat([x, activations[resolution]], 1))[:, : config.zdim]
        elif given is not None and number < len(given):
            z = given[number]
        else:
            assert noise is not None
            z = prior_mean + torch.exp(prior_log) * next(noise).reshape(prior_mean.shape)
        x = x + features[:, 2 * config.zdim :]
        x = x + conv(state, f"{name}.z_proj", z)
        streams[resolution] = x + block(state, f"{name}.resnet", x)
        latents.append(z)
    x = streams[config.image_size] * state["decoder.gain"] + state["decoder.bias"]
    return latents, conv(state, "decoder.out_net.out_conv", x)


def reference_mean_pixels(raw: Tensor, k: int) -> np.ndarray:
    """uint8 image of the mixture's mean, mixture by mixture."""
    out = np.zeros((len(raw), *raw.shape[2:], 3))
    p = raw.double().permute(0, 2, 3, 1).numpy()
    share = np.exp(p[..., :k]) / np.exp(p[..., :k]).sum(-1, keepdims=True)
    for m in range(k):
        (r, g, b), (c0, c1, c2) = (
            [p[..., k + c * 3 * k + part * k + m] for c in range(3)] for part in (0, 2)
        )
        g = g + np.tanh(c0) * r
        b = b + np.tanh(c1) * r + np.tanh(c2) * g
        out += share[..., m, None] * np.stack([r, g, b], -1)
    return np.clip(np.round((np.clip(out, -1, 1) + 1) * 127.5), 0, 255)


# ------------------------------------------------- fixtures


def randomised(config: VDVAEConfig, seed: int = 0) -> VDVAE:
    """Random weights everywhere, also where training starts from zeros; activations stay near one."""
    model = VDVAE(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            fan_in = p[0].numel() if name.endswith("weight") else 16
            p.normal_(generator=generator).mul_(fan_in**-0.5)
        for part in model.decoder.dec_blocks:
            part.prior.c4.weight[: 2 * config.zdim] *= 0.3
            part.resnet.c4.weight *= 0.5
        model.decoder.gain += 1
    return model


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


def decode_raw(
    model: VDVAE, latents: np.ndarray, seeds: tuple[int, ...], **options: float
) -> tuple[np.ndarray, Tensor]:
    """Images and the output parameters behind them."""
    seen: list[Tensor] = []
    hook = model.decoder.out_net.out_conv.register_forward_hook(lambda _m, _i, out: seen.append(out))
    pixels = model.decode_latents(latents, generators(*seeds), **options)  # type: ignore[arg-type]
    hook.remove()
    return pixels, seen[0]
