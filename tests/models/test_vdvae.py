"""The VDVAE against an independent transcription of its published equations, straight from the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.vdvae_equations import (
    IMAGENET64,
    SMALL,
    block,
    decode_raw,
    generators,
    randomised,
    reference_encoder,
    reference_mean_pixels,
    reference_top_down,
    top_down_plan,
)
from training_parts import elbo_terms, scale_initial_weights

from bidsapp.errors import AppError
from bidsapp.models.vdvae import VDVAE, VDVAEConfig


@pytest.fixture(scope="module")
def small() -> VDVAE:
    return randomised(SMALL)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


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
    distortion, rate = elbo_terms(small, images)
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
