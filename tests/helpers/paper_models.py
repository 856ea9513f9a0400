"""Small random-weight models for the recipes as they are, with the layers, tokens and networks that they
name, in the layouts and under the names of the registry."""

from __future__ import annotations

from pathlib import Path

import torch

from bidsapp.models.judges.efficientnet import EfficientNetB1
from bidsapp.models.judges.inception import InceptionV3
from bidsapp.models.judges.resnet import ResNet50
from helpers import tiny_diffusion, tiny_ip_adapter
from helpers.published_models import write_alexnet, write_clip, write_network, write_vdvae

#: The published model's blocks with fewer of them at 32 and 64 pixels, where no latents are predicted.
VDVAE = {
    "image_size": 64,
    "enc_blocks": "64x1,64d2,32x1,32d2,16x1,16d2,8x1,8d2,4x1,4d4,1x1",
    "dec_blocks": "1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x1,64m32,64x1",
    "width": 8,
    "zdim": 2,
    "n_mixtures": 3,
}
#: What tells ViT-L/14, in one narrow layer in place of 24.
VIT_L14 = {"image_size": 224, "patch_size": 14, "hidden_size": 1024, "num_attention_heads": 16}
VIT_L14 |= {"num_hidden_layers": 1, "intermediate_size": 32}
CLIP_DIMS, CAPTION_LENGTH = 768, 77


def write_brain_diffuser(root: Path) -> Path:
    """Write all that the recipe ``brain-diffuser`` needs."""
    versatile = root / "versatile-diffusion"
    versatile.mkdir(parents=True)
    write_vdvae(root / "vdvae-imagenet64", config=VDVAE)
    tiny_diffusion.write_models(versatile, safe=False, extra_keys=True, dims=CLIP_DIMS)
    write_clip(versatile, CAPTION_LENGTH, CLIP_DIMS, VIT_L14)
    _write_judges(root / "evaluation")
    return root


def write_sd15_ip_adapter(root: Path) -> Path:
    """Write all that the recipe ``sd15-ip-adapter`` needs."""
    root.mkdir(parents=True, exist_ok=True)
    write_vdvae(root / "vdvae-imagenet64", config=VDVAE)
    tiny_ip_adapter.write_models(root / "sd15-ip-adapter")
    _write_judges(root / "evaluation")
    _write_clip_l14(root / "evaluation" / "clip-vit-large-patch14")
    return root


def _write_judges(folder: Path) -> None:
    write_alexnet(folder)
    write_network(folder / "inception_v3_google-0cc3c7bd.pth", InceptionV3, "fc.bias")
    write_network(folder / "efficientnet_b1_rwightman-bac287d4.pth", EfficientNetB1, "classifier.1.bias")
    write_network(folder / "swav_800ep_pretrain.pth.tar", ResNet50, "projection_head.0.bias", "module.")


def _write_clip_l14(folder: Path) -> None:
    """Write both of CLIP's towers, as openai/clip-vit-large-patch14 has them; the vision tower judges."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(6)
    text = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    text |= {"vocab_size": 50, "bos_token_id": 48, "eos_token_id": 49, "pad_token_id": 49}
    size = {"projection_dim": CLIP_DIMS}
    config = CLIPConfig(text_config=text | size, vision_config=VIT_L14 | size, **size)
    CLIPModel(config).save_pretrained(folder)
