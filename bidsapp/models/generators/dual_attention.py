"""Versatile Diffusion's dual guidance: each cross-attention attends to image and text, and mixes both.

Versatile Diffusion: Xu et al. 2023 (arXiv 2211.08332).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bidsapp.models.weights.checkpoints import read_checkpoint


class DualTransformer(nn.Module):
    """Two transformer blocks, one for image tokens and one for text tokens, mixed.

    The output is ``x + m (T_text(x) - x) + (1 - m) (T_vision(x) - x)`` with m the share of text.

    ``n_vision`` of the condition's tokens are image tokens; the rest are text tokens.
    """

    def __init__(self, vision: nn.Module, text: nn.Module, n_vision: int) -> None:
        super().__init__()
        self.vision, self.text = vision, text
        self.n_vision = n_vision
        self.text_share: float | Tensor = 0.4

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> tuple[Tensor]:
        """Attend to ``encoder_hidden_states`` of shape (n, n_vision + n_text, dims)."""
        seen, read = torch.split(
            encoder_hidden_states, [self.n_vision, encoder_hidden_states.shape[1] - self.n_vision], dim=1
        )
        by_vision = self.vision(hidden_states, encoder_hidden_states=seen, return_dict=False)[0]
        by_text = self.text(hidden_states, encoder_hidden_states=read, return_dict=False)[0]
        share = self.text_share
        return (share * by_text + (1 - share) * by_vision,)


def add_text_path(unet: nn.Module, n_vision: int) -> nn.Module:
    """Replace every cross-attention block of an image-guided UNet by a dual one, in place.

    The text halves start as copies of the vision halves; fill them with :func:`load_text_path`.
    """
    for _, owner, index, block in list(_attention_blocks(unet)):
        owner.attentions[index] = DualTransformer(block, copy.deepcopy(block), n_vision)
    return unet


def dual_transformers(unet: nn.Module) -> list[DualTransformer]:
    """All dual transformers of a UNet."""
    return [m for m in unet.modules() if isinstance(m, DualTransformer)]


def set_text_share(unet: nn.Module, share: float | Tensor) -> None:
    """Set the mixing share of text in every dual transformer (0.4 in the paper)."""
    for block in dual_transformers(unet):
        block.text_share = share


def load_text_path(unet: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fill the text halves from a ``text_unet`` state dict; only its ``*.attentions.*`` keys are used.

    Raises
    ------
    KeyError
        If a block's weights are missing.
    """
    for name, owner, index, _ in _attention_blocks(unet):
        prefix = f"{name}.attentions.{index}."
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        missing = sorted(set(owner.attentions[index].text.state_dict()) - set(part))
        if missing:
            raise KeyError(f"the text UNet lacks {', '.join(prefix + key for key in missing[:5])}")
        owner.attentions[index].text.load_state_dict(part, strict=True)


def _attention_blocks(unet: nn.Module) -> Iterator[tuple[str, Any, int, nn.Module]]:
    for name, module in unet.named_modules():
        if isinstance(getattr(module, "attentions", None), nn.ModuleList):
            for index, block in enumerate(module.attentions):  # type: ignore[arg-type, union-attr]
                yield name, module, index, block


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read a component folder's weights as plain tensors; errors as ``read_checkpoint``."""
    # Mapped, not read: the published text UNet has gigabytes besides its attentions.
    return read_checkpoint(weights_file(folder), mapped=True)


def weights_file(folder: Path) -> Path:
    """Give the weights of a component folder, safetensors preferred."""
    safe, binary = (folder / f"diffusion_pytorch_model.{end}" for end in ("safetensors", "bin"))
    return safe if safe.exists() else binary
