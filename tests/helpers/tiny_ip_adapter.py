"""A tiny Stable Diffusion with IP-Adapter, random weights, in the layouts of the two hub repositories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bidsapp.models.generators.ip_adapter import IPAdapterDiffusion
from bidsapp.models.generators.latent_diffusion import DiffusionSettings

DIMS, HEADS, LENGTH, EMBEDDING, TOKENS = 32, 2, 8, 20, 4
SETTINGS = DiffusionSettings(
    steps=50, strength=0.75, guidance=7.5, text_share=0.0, noise_one_step_higher=False, sample_posterior=True
)
#: Cross-attentions in the order in which the published adapter numbers them (1, 3, 5, ...): down, up, middle.
CROSS_ATTENTIONS = [
    ("down_blocks.1.attentions.0", 16),
    ("up_blocks.0.attentions.0", 16),
    ("up_blocks.0.attentions.1", 16),
    ("mid_block.attentions.0", 16),
]


def make_unet(seed: int) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=DIMS,
        attention_head_dim=HEADS,  # diffusers' name for the number of heads
    )
    return unet.eval()


def make_adapter(seed: int = 5, embedding: int = EMBEDDING) -> dict[str, torch.Tensor]:
    """State dict with the keys of ip-adapter_sd15.safetensors."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    state = {
        "image_proj.proj.weight": draw(TOKENS * DIMS, embedding) / embedding**0.5,
        "image_proj.proj.bias": draw(TOKENS * DIMS) * 0.3,
        "image_proj.norm.weight": 1 + draw(DIMS) * 0.3,
        "image_proj.norm.bias": draw(DIMS) * 0.3,
    }
    for number, (_, width) in enumerate(CROSS_ATTENTIONS):
        for kind in "kv":
            state[f"ip_adapter.{2 * number + 1}.to_{kind}_ip.weight"] = draw(width, DIMS) / DIMS**0.5
    return state


def write_models(folder: Path) -> Path:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(1)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        sample_size=16,
        mid_block_add_attention=False,
    )
    vae.save_pretrained(folder / "vae")
    make_unet(2).save_pretrained(folder / "unet")
    shape = {"num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48}
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=6,
            hidden_size=DIMS,
            max_position_embeddings=LENGTH,
            eos_token_id=5,
            bos_token_id=4,
            **shape,
        )
    )
    vision = CLIPVisionModelWithProjection(
        CLIPVisionConfig(hidden_size=24, image_size=32, patch_size=8, projection_dim=EMBEDDING, **shape)
    )
    with torch.no_grad():
        for model in (text, vision):
            for p in model.parameters():  # biases and norms start from constants
                p.add_(torch.randn_like(p) * 0.2)
    text.save_pretrained(folder / "text_encoder")
    vision.save_pretrained(folder / "models" / "image_encoder")
    save_file(make_adapter(), folder / "models" / "ip-adapter_sd15.safetensors")
    _write_scheduler(folder / "scheduler")
    _write_tokenizer(folder / "tokenizer")
    return folder


def _write_scheduler(folder: Path) -> None:
    """The keys and values of Stable Diffusion 1.5's scheduler_config.json, which is PNDM's."""
    folder.mkdir()
    config = {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    }
    (folder / "scheduler_config.json").write_text(json.dumps(config))


def _write_tokenizer(folder: Path) -> None:
    """CLIP's tokenizer with two letters: vocab.json, merges.txt and the two configuration files."""
    folder.mkdir()
    vocabulary = ["a", "b", "a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    config = special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


class Inputs:
    """First-stage images and embeddings for n images."""

    def __init__(self, n: int = 2, side: int = 8) -> None:
        rng = np.random.default_rng(0)
        self.initial = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
        self.embeddings = rng.normal(size=(n, EMBEDDING)).astype(np.float32)

    def _arguments(
        self, settings: DiffusionSettings, rows: list[int] | None, seed: int
    ) -> tuple[np.ndarray, np.ndarray, list[torch.Generator], DiffusionSettings]:
        rows = list(range(len(self.initial))) if rows is None else rows
        generators = [torch.Generator().manual_seed(seed + i) for i in rows]
        return self.initial[rows], self.embeddings[rows], generators, settings

    def images(
        self,
        model: IPAdapterDiffusion,
        settings: DiffusionSettings = SETTINGS,
        rows: list[int] | None = None,
        seed: int = 100,
    ) -> np.ndarray:
        return model.image_to_image(*self._arguments(settings, rows, seed))

    @torch.no_grad()
    def latents(
        self,
        model: IPAdapterDiffusion,
        settings: DiffusionSettings = SETTINGS,
        rows: list[int] | None = None,
        seed: int = 100,
    ) -> np.ndarray:
        """Latents before they are decoded."""
        return model._latents(*self._arguments(settings, rows, seed)).double().numpy()
