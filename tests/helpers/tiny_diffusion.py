"""Tiny diffusion models with random weights, written in the hub's layout, and inputs for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from bidsapp.models.generators.latent_diffusion import DiffusionSettings
from bidsapp.models.generators.versatile_diffusion import VersatileDiffusion

N_VISION, N_TEXT, DIMS, HEADS = 5, 3, 12, 2
SETTINGS = DiffusionSettings()


def make_unet(seed: int, dims: int = DIMS) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=dims,
        attention_head_dim=HEADS,  # diffusers' name for the number of heads
    )
    return unet.eval()


def write_models(folder: Path, *, safe: bool = True, extra_keys: bool = False, dims: int = DIMS) -> Path:
    """Random weights; ``text_unet`` holds attentions only, or other layers too, as the hub's does."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from safetensors.torch import save_file

    torch.manual_seed(1)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        sample_size=16,
        mid_block_add_attention=False,
    )
    vae.save_pretrained(folder / "vae", safe_serialization=safe)
    make_unet(2, dims).save_pretrained(folder / "image_unet", safe_serialization=safe)
    other = make_unet(3, dims).state_dict()
    text = {k: v.clone() for k, v in other.items() if extra_keys or ".attentions." in k}
    (folder / "text_unet").mkdir()
    if safe:
        save_file(text, folder / "text_unet" / "diffusion_pytorch_model.safetensors")
    else:
        torch.save(text, folder / "text_unet" / "diffusion_pytorch_model.bin")
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.save_pretrained(folder / "scheduler")
    return folder


class Inputs:
    """First-stage images and tokens for n images."""

    def __init__(self, n: int = 2, side: int = 8) -> None:
        rng = np.random.default_rng(0)
        self.initial = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
        self.vision = rng.normal(size=(n, N_VISION, DIMS)).astype(np.float32)
        self.text = rng.normal(size=(n, N_TEXT, DIMS)).astype(np.float32)
        self.nothing = (
            rng.normal(size=(1, N_VISION, DIMS)).astype(np.float32),
            rng.normal(size=(1, N_TEXT, DIMS)).astype(np.float32),
        )

    def run(
        self,
        model: VersatileDiffusion,
        settings: DiffusionSettings = SETTINGS,
        rows: list[int] | None = None,
        seed: int = 100,
    ) -> np.ndarray:
        rows = list(range(len(self.initial))) if rows is None else rows
        generators = [torch.Generator().manual_seed(seed + i) for i in rows]
        return model.image_to_image(
            self.initial[rows], self.vision[rows], self.text[rows], self.nothing, generators, settings
        )
