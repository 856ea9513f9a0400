"""What an image costs, against the tensors really alive in a pass, at full size on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers.live_tensors import LiveTensors
from helpers.vdvae_equations import IMAGENET64, SMALL
from torch import nn

from bidsapp.models import costs
from bidsapp.models._logistic import mixture_mean, mixture_sample
from bidsapp.models.clip import ClipTokens
from bidsapp.models.generators.dual_attention import add_text_path
from bidsapp.models.judges.alexnet import AlexNet
from bidsapp.models.judges.efficientnet import EfficientNetB1
from bidsapp.models.judges.inception import InceptionV3
from bidsapp.models.judges.resnet import ResNet50
from bidsapp.models.vdvae import VDVAE, VDVAEConfig

META = torch.device("meta")
#: Batch that is measured; costs are an image's.
N = 2


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def measured(model: nn.Module, run: Callable[[], Any]) -> float:
    """Bytes an image."""
    with LiveTensors([*model.parameters(), *model.buffers()]) as live:
        run()
    return live.peak / N


def near(cost: int, peak: float, factor: float = 2.0) -> None:
    """A bound, and one that is of use."""
    assert peak <= cost <= factor * peak, f"cost {cost / 1e6:.1f} MB, measured {peak / 1e6:.1f} MB"


def test_the_measure_itself() -> None:
    def run() -> None:
        x = torch.empty(1000, device=META)
        y = x + 1
        x.add_(1)  # nothing new
        z = y.view(10, 100) * 2
        del y
        torch.empty(100, device=META)
        del z

    with LiveTensors() as live:
        run()
    assert live.peak == 3 * 4000


@pytest.mark.parametrize("config", [IMAGENET64, SMALL], ids=["published", "small"])
@pytest.mark.parametrize("way", ["encode", "decode"])
def test_vdvae(config: VDVAEConfig, way: str) -> None:
    with META:
        model = VDVAE(config)

    def encode() -> None:
        activations = model.encoder(torch.empty(N, 3, config.image_size, config.image_size, device=META))
        streams = model.decoder.start(N)
        for block in model.decoder.blocks:
            x = block.enter(streams)
            z, _ = block.posterior_of(x, activations[block.base])
            _, _, x = block.prior_of(x)
            streams[block.base] = block.leave(x, z)

    def decode() -> None:
        streams = model.decoder.start(N)
        for block in model.decoder.blocks:
            x = block.enter(streams)
            mean, log_sigma, x = block.prior_of(x)
            streams[block.base] = block.leave(x, mean + log_sigma.exp() * torch.empty_like(mean))
        raw = model.decoder.finish(streams, config.image_size)
        mixture_mean(raw, config.n_mixtures)
        mixture_sample(raw, config.n_mixtures)

    near(costs.vdvae(config), measured(model, {"encode": encode, "decode": decode}[way]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_clip_vit_l14(dtype: torch.dtype) -> None:
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    seen = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=2, num_attention_heads=16, patch_size=14
    )
    read = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=2, num_attention_heads=12
    )
    with META:
        vision = CLIPVisionModelWithProjection(seen).to(dtype).eval()
        text = CLIPTextModelWithProjection(read).to(dtype).eval()
    clip = ClipTokens(vision, text, None)
    pixels, ids = torch.empty(N, 3, 224, 224, device=META), torch.zeros(N, 77, dtype=torch.long, device=META)
    near(costs.clip_vision(seen, dtype.itemsize), measured(vision, lambda: clip._vision_tokens(pixels)))
    near(costs.clip_text(read, dtype.itemsize), measured(text, lambda: clip._text_tokens(ids)), 2.5)


def latent_models(dtype: torch.dtype) -> tuple[Any, Any]:
    """AutoKL and the dual UNet of the published sizes, which Stable Diffusion 1.5 shares but for the text."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with META:
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            sample_size=512,
        )
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    add_text_path(unet, 257)
    assert sum(p.numel() for p in unet.parameters()) == 1_126_760_324
    return vae.to(dtype).eval(), unet.to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_stage_2(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, unet = latent_models(dtype)

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device=META)

    def denoise() -> None:
        unet(empty(2 * N, 4, 64, 64), 500, encoder_hidden_states=empty(2 * N, 334, 768))

    decode = measured(vae, lambda: vae.decode(empty(N, 4, 64, 64)).sample)
    encode = measured(vae, lambda: vae.encode(empty(N, 3, 512, 512)).latent_dist)
    # on the meta device attention is not fused
    unfused = measured(unet, denoise)
    near(costs.latent_diffusion(unet.config, vae.config, dtype.itemsize, fused=False), unfused)
    monkeypatch.setattr(
        nn.functional, "scaled_dot_product_attention", lambda q, *_, **__: torch.empty_like(q)
    )
    fused = measured(unet, denoise)
    assert fused < unfused / 4
    near(costs.latent_diffusion(unet.config, vae.config, dtype.itemsize), max(decode, encode, fused))
    # the UNet's share of the formula, where AutoKL is small
    small = type("Config", (), {"block_out_channels": (1, 1, 1, 1)})
    near(costs.latent_diffusion(unet.config, small, dtype.itemsize), fused)


NETWORKS = [(AlexNet, 224), (AlexNet, 256), (EfficientNetB1, 224), (EfficientNetB1, 255), (InceptionV3, 342)]


@pytest.mark.parametrize(("kind", "side"), [*NETWORKS, (ResNet50, 224)])
def test_evaluation_networks(kind: type[nn.Module], side: int) -> None:
    with META:
        model = kind().eval()
    peak = measured(model, lambda: model(torch.empty(N, 3, side, side, device=META)))
    near(costs.evaluation_network(side), peak, 8)  # one number for all; AlexNet needs least


def test_efficientnet_lite0() -> None:
    networks = pytest.importorskip("efficientnet_lite_pytorch")
    model = networks.EfficientNet.from_name("efficientnet-lite0").eval().to(META)
    near(
        costs.evaluation_network(224),
        measured(model, lambda: model.extract_features(torch.empty(N, 3, 224, 224, device=META))),
    )
