"""Shapes of the embedded models: small configurations of the classes that the published ones have."""

from __future__ import annotations

import torch
from torch import nn

from bidsapp.demo.scenes import vocabulary
from bidsapp.models.clip import ClipTokens
from bidsapp.models.generators.dual_attention import add_text_path

VDVAE_CONFIG = {
    "image_size": 32,
    "enc_blocks": "32x1,32d2,16x3,16d2,8x3,8d2,4x2,4d4,1x2",
    "dec_blocks": "1x1,4m1,4x2,8m4,8x3,16m8,16x3,32m16,32x1",
    "width": 80,
    "zdim": 8,
    "bottleneck": 0.25,
    "n_mixtures": 4,
    "no_bias_above": 64,
}
TEXT_LENGTH = 24
PROJECTION = 64


def make_tokenizer() -> object:
    """Make a word-level tokenizer over the closed vocabulary of the drawn scenes."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<start>", "<unk>", "<end>", *vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=TEXT_LENGTH,
    )


def make_clip() -> ClipTokens:
    """Make a CLIP of transformers' classes in a small configuration."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    shape = {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_attention_heads": 4,
        "projection_dim": PROJECTION,
    }
    vision = CLIPVisionModelWithProjection(
        CLIPVisionConfig(image_size=64, patch_size=8, num_hidden_layers=3, **shape)
    )
    text = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(vocabulary()) + 4,
            max_position_embeddings=TEXT_LENGTH,
            num_hidden_layers=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=3,
            **shape,
        )
    )
    return ClipTokens(vision, text, make_tokenizer())


def make_autoencoder() -> nn.Module:
    """Make an AutoencoderKL that halves the image twice."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 48, 48),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def make_unet() -> nn.Module:
    """Make a dual-guided UNet: the image UNet's blocks, each cross-attention doubled for text."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 80),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=PROJECTION,
        attention_head_dim=4,
    )
    # Tokens have about unit norm, so each of their values is about 1 / sqrt(width): the first
    # weights that meet them are scaled up, which the full-size model learns over a long training.
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
                parameter *= PROJECTION**0.5
    return add_text_path(unet, 65)


def make_scheduler() -> object:
    """Make the noise schedule of Versatile Diffusion."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
