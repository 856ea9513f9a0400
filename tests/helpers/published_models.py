"""Small models with random weights in the layouts that the published ones have, for a run on the CPU."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import torch

from bidsapp.config import RECIPES
from bidsapp.models.judges.alexnet import AlexNet
from bidsapp.models.vdvae import VDVAE, VDVAEConfig
from bidsapp.outputs.provenance import write_settings
from helpers import tiny_diffusion
from helpers.formula_weights import formula_state

VDVAE_CONFIG = {
    "image_size": 16,
    "enc_blocks": "16x1,16d2,8x1,8d2,4x1,4d4,1x1",
    "dec_blocks": "1x1,4m1,4x1,8m4,16m8",
    "width": 16,
    "zdim": 4,
    "n_mixtures": 3,
}
#: Tokens of a caption.
LENGTH = 8
#: What the recipe has to change for models this small.
QUICK: dict[str, dict[str, Any]] = {
    "vdvae": {"layers": 3},
    "diffusion": {"steps": 4},
    "metrics": {"networks": ["alexnet2", "alexnet5"]},
    "controls": {"max_images": 3},
}


def write_recipe(folder: Path, base: str = "brain-diffuser", **changes: dict[str, Any]) -> Path:
    """Write a shipped recipe with few layers and steps, judged by AlexNet only."""
    content = tomllib.loads((RECIPES / f"{base}.toml").read_text(encoding="utf-8"))
    for section, values in (*QUICK.items(), *changes.items()):
        content[section] |= values
    write_settings(folder / "small.toml", content)
    return folder / "small.toml"


def write_models(root: Path) -> Path:
    """Write everything that :func:`write_recipe`'s recipe needs."""
    root.mkdir(parents=True, exist_ok=True)
    write_vdvae(root / "vdvae-imagenet64")
    versatile = root / "versatile-diffusion"
    versatile.mkdir()
    tiny_diffusion.write_models(versatile, safe=False, extra_keys=True)
    write_clip(versatile)
    write_alexnet(root / "evaluation")
    return root


def write_vdvae(folder: Path, prefix: str = "module.", config: dict[str, Any] = VDVAE_CONFIG) -> None:
    """Write a VDVAE as openai/vdvae publishes it: a state dict under the published name."""
    folder.mkdir()
    torch.manual_seed(4)
    model = VDVAE(VDVAEConfig(**config))
    state = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save(state, folder / "imagenet64-iter-1600000-model-ema.th")
    (folder / "config.json").write_text(json.dumps(config))


def write_clip(
    folder: Path,
    length: int = LENGTH,
    dims: int = tiny_diffusion.DIMS,
    vision_shape: dict[str, int] | None = None,
) -> None:
    """Write encoders as ``pytorch_model.bin``, and a tokenizer of vocabulary and merges."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    torch.manual_seed(5)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    shape |= {"projection_dim": dims}
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["!", *letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    side = int((tiny_diffusion.N_VISION - 1) ** 0.5)
    seen = shape | (vision_shape or {"image_size": 8 * side, "patch_size": 8})
    vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**seen))
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    text = CLIPTextModelWithProjection(
        CLIPTextConfig(vocab_size=len(words), max_position_embeddings=length, **ends, **shape)
    )
    for name, tower, model in (("image_encoder", "vision", vision), ("text_encoder", "text", text)):
        (folder / name).mkdir()
        model.config.save_pretrained(folder / name)
        # the published files are older than their library, which makes this tensor itself now
        old = {f"{tower}_model.embeddings.position_ids": torch.arange(5)[None]}
        torch.save({**model.state_dict(), **old}, folder / name / "pytorch_model.bin")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special |= {"pad_token": "<|endoftext|>"}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings | special))


def write_alexnet(folder: Path) -> None:
    """Write AlexNet under torchvision's name, with a classifier that is not read."""
    folder.mkdir()
    write_network(folder / "alexnet-owt-7be5be79.pth", AlexNet, "classifier.6.bias")


def write_network(path: Path, kind: type[torch.nn.Module], unused: str, prefix: str = "") -> None:
    """Write an evaluation network with formula weights (in half precision, which loads as well), and one
    tensor that is not read."""
    with torch.device("meta"):
        model = kind()
    state = formula_state(model.state_dict()) | {unused: torch.zeros(1000)}
    halves = {f"{prefix}{k}": v.half() if v.is_floating_point() else v for k, v in state.items()}
    torch.save(halves, path)
