"""The VDVAE against an independent transcription of its published equations, straight from the weights."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bidsapp.errors import AppError
from bidsapp.models.vdvae import VDVAE, VDVAEConfig, scale_initial_weights

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


@pytest.fixture(scope="module")
def small() -> VDVAE:
    return randomised(SMALL)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


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


# ------------------------------------------------- equality with the equations


@pytest.mark.parametrize(
    ("config", "n"),
    [(SMALL, 3), (VDVAEConfig(**{**vars(IMAGENET64), "width": 32, "zdim": 4, "n_mixtures": 10}), 1)],
    ids=["small", "all published blocks, narrow"],
)
def test_reconstruction_is_the_published_forward_pass(config: VDVAEConfig, n: int) -> None:
    model = randomised(config)
    side = config.image_size
    images = np.random.default_rng(1).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    state = {k: v.detach() for k, v in model.state_dict().items()}
    wanted, raw = reference_top_down(state, config, n, activations=reference_encoder(state, config, images))
    latents = model.encode_latents(images, model.n_blocks)
    assert latents.dtype == np.float32
    expected = torch.cat([z.flatten(1) for z in wanted], 1).numpy()
    np.testing.assert_allclose(latents, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    pixels, own_raw = decode_raw(model, latents, tuple(range(n)))
    torch.testing.assert_close(own_raw, raw, rtol=1e-4, atol=1e-5 * raw.abs().max().item())
    difference = np.abs(pixels.astype(int) - reference_mean_pixels(raw, config.n_mixtures))
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.99
    assert pixels.dtype == np.uint8
    assert pixels.std() > 5


def test_blocks_not_given_follow_the_prior(small: VDVAE) -> None:
    k = 4
    sizes = small.layer_sizes(k)
    latents = np.random.default_rng(2).normal(size=(1, sum(sizes))).astype(np.float32)
    rows = torch.from_numpy(latents).split(sizes, 1)
    plan = list(top_down_plan(SMALL))
    given_latents = [row.reshape(1, SMALL.zdim, res, res) for row, (res, _) in zip(rows, plan, strict=False)]
    for temperature in (1.0, 0.5, 0.0):
        rng = torch.Generator().manual_seed(11)
        noise = iter([temperature * torch.randn(SMALL.zdim, r, r, generator=rng) for r, _ in plan[k:]])
        _, raw = reference_top_down(small.state_dict(), SMALL, 1, given=given_latents, noise=noise)
        _, own = decode_raw(small, latents, (11,), temperature=temperature)
        torch.testing.assert_close(own, raw.detach(), rtol=1e-4, atol=1e-4)


def test_posterior_sample(small: VDVAE, images: np.ndarray) -> None:
    """A draw differs from the mean by sigma times the generator's noise; checked at the first block."""
    size = small.layer_sizes(1)[0]
    state = small.state_dict()
    activation = reference_encoder(state, SMALL, images)[1]
    stream = state["decoder.bias_xs.0"].repeat(3, 1, 1, 1)
    both = block(state, "decoder.dec_blocks.0.enc", torch.cat([stream, activation], 1))
    mean, log_sigma = both[:, : SMALL.zdim], both[:, SMALL.zdim :]
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(9))
    drawn = small.encode_latents(images, 3, sample=True, generator=torch.Generator().manual_seed(9))
    np.testing.assert_allclose(
        drawn[:, :size], (mean + log_sigma.exp() * noise).flatten(1), rtol=1e-4, atol=1e-4
    )
    again = small.encode_latents(images, 3, sample=True, generator=torch.Generator().manual_seed(9))
    np.testing.assert_array_equal(drawn, again)


def test_half_precision_keeps_sums_in_float32(small: VDVAE, images: np.ndarray) -> None:
    model = randomised(SMALL)
    model.half_type = torch.bfloat16
    exact = small.encode_latents(images, small.n_blocks)
    latents = model.encode_latents(images, model.n_blocks)
    assert latents.dtype == np.float32
    assert 0 < np.abs(latents - exact).max() < 0.1 * np.abs(exact).max()
    streams: list[torch.dtype] = []
    hooks = [
        part.register_forward_hook(lambda _m, _i, out: streams.append(out.dtype))
        for part in (*model.encoder.enc_blocks, *(part.resnet for part in model.decoder.blocks))
    ]
    pixels = model.decode_latents(model.encode_latents(images, model.n_blocks), generators(1, 2, 3))
    for hook in hooks:
        hook.remove()
    assert set(streams) == {torch.float32}
    expected = small.decode_latents(exact, generators(1, 2, 3))
    assert np.abs(pixels.astype(int) - expected.astype(int)).mean() < 3


def test_values_that_are_not_finite_stop_stage_1(images: np.ndarray) -> None:
    model = randomised(SMALL)
    with torch.no_grad():
        model.encoder.in_conv.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(AppError, match=r"latents that are not finite in torch\.float32 on cpu"):
        model.encode_latents(images, 2)
    with torch.no_grad():
        model.decoder.gain[0, 0] = torch.inf
    with pytest.raises(AppError, match="pixels that are not finite"):
        model.decode_latents(np.zeros((1, model.layer_sizes(1)[0]), np.float32), generators(0))


def test_evidence_lower_bound(small: VDVAE, images: np.ndarray) -> None:
    """The rate is the analytic divergence of Gaussians, summed over blocks; gradients reach every weight."""
    torch.manual_seed(0)
    distortion, rate = small.elbo_terms(images)
    torch.manual_seed(0)
    total = torch.zeros(3, dtype=torch.float64)
    streams = small.decoder.start(3)
    activations = reference_encoder(small.state_dict(), SMALL, images)
    for part in small.decoder.dec_blocks:
        x = part.enter(streams)
        q_mean, q_log = part.posterior_of(x, activations[part.base])
        p_mean, p_log, x = part.prior_of(x)
        q = torch.distributions.Normal(q_mean.double(), q_log.double().exp())
        p = torch.distributions.Normal(p_mean.double(), p_log.double().exp())
        total += torch.distributions.kl_divergence(q, p).sum((1, 2, 3))
        streams[part.base] = part.leave(x, q_mean + q_log.exp() * torch.randn_like(q_mean))
    torch.testing.assert_close(rate.double(), total / (3 * 16 * 16), rtol=1e-4, atol=1e-4)
    (distortion + rate).mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in small.parameters())
    small.zero_grad(set_to_none=True)


# ------------------------------------------------- what follows from the structure


def test_first_layers_are_the_start_of_all_layers(small: VDVAE, images: np.ndarray) -> None:
    everything = small.encode_latents(images, small.n_blocks)
    assert everything.shape == (3, sum(small.layer_sizes()))
    for k in (1, 4, small.n_blocks - 1):
        part = small.encode_latents(images, k)
        np.testing.assert_array_equal(part, everything[:, : sum(small.layer_sizes(k))])


def test_later_blocks_are_not_run(small: VDVAE, images: np.ndarray) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("this block is not needed")

    hooks = [part.prior.register_forward_pre_hook(refuse) for part in list(small.decoder.dec_blocks)[4:]]
    try:
        assert small.encode_latents(images, 4).shape == (3, sum(small.layer_sizes(4)))
        with pytest.raises(AssertionError):
            small.encode_latents(images, 5)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("sample", [False, True])
def test_an_image_does_not_depend_on_its_batch(small: VDVAE, images: np.ndarray, sample: bool) -> None:
    latents = small.encode_latents(images, 3)
    together = small.decode_latents(latents, generators(5, 6, 7), sample=sample)
    other_order = small.decode_latents(latents[::-1], generators(7, 6, 5), sample=sample)[::-1]
    alone = np.concatenate(
        [small.decode_latents(latents[i : i + 1], generators(5 + i), sample=sample) for i in range(3)]
    )
    for pixels in (other_order, alone):
        difference = np.abs(pixels.astype(int) - together.astype(int))
        assert (difference <= 1).mean() > 0.999  # the order of sums in a batch may move a rounding
    reseeded = small.decode_latents(latents, generators(5, 60, 7), sample=sample)
    np.testing.assert_array_equal(reseeded[[0, 2]], together[[0, 2]])
    assert (reseeded[1] != together[1]).mean() > 0.1


def test_published_configuration() -> None:
    with torch.device("meta"):
        model = VDVAE(IMAGENET64)
    state = model.state_dict()
    assert len(state) == 2482
    assert sum(v.numel() for v in state.values()) == 125_005_860
    assert model.n_blocks == 75
    sizes = model.layer_sizes(31)
    assert sizes == [16] * 2 + [256] * 4 + [1024] * 8 + [4096] * 16 + [16384]
    assert sum(sizes) == 91168
    expected = {"decoder.gain", "decoder.bias"} | {f"decoder.bias_xs.{i}" for i in range(6)}
    blocks = [f"encoder.enc_blocks.{i}" for i in range(65)]
    blocks += [f"decoder.dec_blocks.{i}.{part}" for i in range(75) for part in ("enc", "prior", "resnet")]
    layers = [f"{b}.c{i}" for b in blocks for i in (1, 2, 3, 4)]
    layers += [f"decoder.dec_blocks.{i}.z_proj" for i in range(75)]
    layers += ["encoder.in_conv", "decoder.out_net.out_conv"]
    expected |= {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert set(state) == expected
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    assert shapes["decoder.bias_xs.1"] == (1, 512, 4, 4)
    assert shapes["decoder.dec_blocks.0.enc.c1.weight"] == (128, 1024, 1, 1)
    assert shapes["decoder.dec_blocks.0.enc.c2.weight"] == (128, 128, 1, 1)
    assert shapes["decoder.dec_blocks.2.prior.c3.weight"] == (128, 128, 3, 3)
    assert shapes["decoder.dec_blocks.2.prior.c4.weight"] == (544, 128, 1, 1)
    assert shapes["decoder.out_net.out_conv.weight"] == (100, 512, 1, 1)


def test_kernels_at_one_and_two_pixels_are_one_wide(small: VDVAE) -> None:
    blocks = [*small.encoder.enc_blocks, *(part.resnet for part in small.decoder.dec_blocks)]
    resolutions = [16, 16, 16, 8, 8, 4, 4, 4, 2, 2, 1, 1] + [
        resolution for resolution, _ in top_down_plan(SMALL)
    ]
    for part, resolution in zip(blocks, resolutions, strict=True):
        kernels = [getattr(part, f"c{i}").weight.shape[-1] for i in (1, 2, 3, 4)]
        assert kernels == ([1, 3, 3, 1] if resolution > 2 else [1, 1, 1, 1])


def test_loading_is_strict(small: VDVAE) -> None:
    state = small.state_dict()
    copy = VDVAE(SMALL)
    copy.load_state_dict(state)
    state.pop("decoder.gain")
    with pytest.raises(RuntimeError, match=r"decoder\.gain"):
        copy.load_state_dict(state)


def test_initial_weights_follow_the_depth() -> None:
    torch.manual_seed(0)
    model = VDVAE(SMALL)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    scale_initial_weights(model)
    after = model.state_dict()
    n_enc, n_dec = len(model.encoder.enc_blocks), model.n_blocks
    key = "encoder.enc_blocks.3.c4.weight"
    torch.testing.assert_close(after[key], before[key] / n_enc**0.5)
    for key in ("decoder.dec_blocks.2.z_proj.weight", "decoder.dec_blocks.2.resnet.c4.weight"):
        torch.testing.assert_close(after[key], before[key] / n_dec**0.5)
    assert (after["decoder.dec_blocks.2.prior.c4.weight"] == 0).all()
