"""CLIP tokens with Versatile Diffusion's normalisations: the conditioning targets of stage 2.

CLIP: Radford et al. 2021 (arXiv 2103.00020). Normalisations: Versatile Diffusion
(Xu et al. 2023, arXiv 2211.08332), as used by Brain-Diffuser (arXiv 2303.05334).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bidsapp.errors import AppError, ExitCode
from bidsapp.models.preprocessing import MEAN_STD
from bidsapp.models.weights.checkpoints import load_component, load_tokenizer
from bidsapp.models.weights.configurations import TEXT_L14, VIT_L14, Limits, read_configuration

#: CLIP's own normalisation (openai/CLIP), of RGB in [0, 1]
CLIP_MEAN, CLIP_STD = MEAN_STD["clip"]


class ClipTokens:
    """CLIPVisionModelWithProjection and CLIPTextModelWithProjection, whose tokens guide stage 2."""

    def __init__(self, vision: Any, text: Any, tokenizer: Any) -> None:
        self.vision, self.text, self.tokenizer = vision, text, tokenizer

    @classmethod
    def load(cls, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> ClipTokens:
        """Load from a local folder in the hub's layout (image_encoder, text_encoder, tokenizer).

        Nothing is fetched; weights are read as safetensors or, with ``weights_only``, as torch files.

        Raises
        ------
        AppError
            Exit code 65 if a file is damaged or of another model.
        """
        from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

        vision = load_component(CLIPVisionModelWithProjection, folder / "image_encoder", VIT_L14, dtype=dtype)
        text = load_component(CLIPTextModelWithProjection, folder / "text_encoder", TEXT_L14, dtype=dtype)
        tokenizer = load_tokenizer(folder / "tokenizer")
        return cls(vision.to(device).eval(), text.to(device).eval(), tokenizer)

    @property
    def image_size(self) -> int:
        """Side of the image the vision encoder takes."""
        return int(self.vision.config.image_size)

    @property
    def vision_shape(self) -> tuple[int, int]:
        """Tokens per image, values per token."""
        c = self.vision.config
        return (c.image_size // c.patch_size) ** 2 + 1, int(c.projection_dim)

    @property
    def text_shape(self) -> tuple[int, int]:
        """Tokens per caption, values per token."""
        return int(self.text.config.max_position_embeddings), int(self.text.config.projection_dim)

    def pixels(self, images: np.ndarray) -> Tensor:
        """Preprocess uint8 images as CLIP does: bicubic, centre crop, normalise.

        Only uint8 is accepted: a float image could be rescaled by 1/255 a second time, after which the
        encoder sees an almost black image.

        Returns
        -------
        Tensor of float32, shape (n, 3, S, S)

        Raises
        ------
        TypeError
            If the images are not uint8.
        """
        if images.dtype != np.uint8:
            raise TypeError(f"CLIP takes uint8 images, got {images.dtype}")
        side = self.image_size
        rows = [np.asarray(_resize_and_crop(Image.fromarray(im), side)) for im in images]
        x = torch.from_numpy(np.stack(rows)).float() / 255
        x = (x - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
        return x.permute(0, 3, 1, 2).contiguous()

    @torch.no_grad()
    def vision_tokens(self, images: np.ndarray) -> np.ndarray:
        """Projected tokens of images, divided by the norm of their CLS token.

        last_hidden_state -> post_layernorm on all tokens -> visual_projection -> / ||CLS||;
        uint8 (n, H, W, 3) to float32 (n, tokens, dims).
        """
        return self._vision_tokens(self.pixels(images)).float().cpu().numpy()

    def _vision_tokens(self, pixels: Tensor) -> Tensor:
        model = self.vision.vision_model
        hidden = self.vision.vision_model(pixels.to(self.vision.device, self.vision.dtype)).last_hidden_state
        tokens = self.vision.visual_projection(model.post_layernorm(hidden))
        scaled: Tensor = tokens / tokens[:, :1].norm(dim=-1, keepdim=True)
        return scaled

    @torch.no_grad()
    def text_tokens(self, captions: Sequence[str]) -> np.ndarray:
        """Projected tokens of captions, divided by the norm of their end-of-text token, float32."""
        return self._text_tokens(self.token_ids(captions)).float().cpu().numpy()

    def token_ids(self, captions: Sequence[str]) -> Tensor:
        """Token ids, padded or cut to the encoder's length, shape (n, tokens)."""
        batch = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=self.text_shape[0],
            return_tensors="pt",
        )
        ids: Tensor = batch["input_ids"]
        return ids

    def _text_tokens(self, ids: Tensor) -> Tensor:
        output = self.text(ids.to(self.text.device))
        tokens = self.text.text_projection(output.last_hidden_state)
        # text_embeds is the projected end-of-text token
        scaled: Tensor = tokens / output.text_embeds[:, None].norm(dim=-1, keepdim=True)
        return scaled

    def mean_text_tokens(self, captions: Sequence[Sequence[str]]) -> np.ndarray:
        """Tokens averaged over each image's captions, shape (n_images, tokens, dims).

        Raises
        ------
        ValueError
            If an image does not have captions: their mean would not be a number.
        """
        bare = [index for index, image in enumerate(captions) if not image]
        if bare:
            raise ValueError(f"images without a caption, at {bare[:10]} of {len(captions)}")
        flat = [caption for image in captions for caption in image]
        tokens = self.text_tokens(flat)
        ends = np.cumsum([len(image) for image in captions])
        return np.stack([part.mean(0) for part in np.split(tokens, ends[:-1])])

    @torch.no_grad()
    def image_embeddings(self, images: np.ndarray) -> np.ndarray:
        """CLIP's image embedding (the projected CLS token, not normalised), float32 (n, dims)."""
        pixels = self.pixels(images).to(self.vision.device, self.vision.dtype)
        embeds: np.ndarray = self.vision(pixels).image_embeds.float().cpu().numpy()
        return embeds

    @torch.no_grad()
    def text_embeddings(self, captions: Sequence[str]) -> np.ndarray:
        """Projected end-of-text tokens of captions, divided by their norms, float32 (n, dims)."""
        embeds = self.text(self.token_ids(captions).to(self.text.device)).text_embeds.float()
        unit: np.ndarray = (embeds / embeds.norm(dim=-1, keepdim=True)).cpu().numpy()
        return unit

    def unconditional_vision(self) -> np.ndarray:
        """Image tokens of a 0.5 grey image, the guidance's reference, shape (1, tokens, dims).

        The public code gives CLIP's preprocessing zeros in [-1, 1], which are 0.5 in [0, 1].
        """
        with torch.no_grad():
            grey = torch.full((1, 3, self.image_size, self.image_size), 0.5)
            mean, std = (torch.tensor(t).view(1, 3, 1, 1) for t in (CLIP_MEAN, CLIP_STD))
            return self._vision_tokens((grey - mean) / std).float().cpu().numpy()

    def unconditional_text(self) -> np.ndarray:
        """Text tokens of the empty caption, shape (1, tokens, dims)."""
        return self.text_tokens([""])


#: Sizes that transformers' CLIP has where a configuration does not name them.
_VISION = {"image_size": 224, "patch_size": 32, "projection_dim": 512}
_TEXT = {"max_position_embeddings": 77, "projection_dim": 512}


def vision_shape(folder: Path, limits: Limits = VIT_L14) -> tuple[int, int]:
    """Tokens per image and values per token, from an image encoder's configuration alone.

    Raises
    ------
    AppError
        Exit code 65 if the configuration is damaged, 66 if it is missing.
    """
    side, patch, width = _numbers(folder, _VISION, limits)
    return (side // patch) ** 2 + 1, width


def token_shapes(folder: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of an image's and a caption's tokens; errors as :func:`vision_shape`."""
    length, width = _numbers(folder / "text_encoder", _TEXT, TEXT_L14)
    return vision_shape(folder / "image_encoder"), (length, width)


def _numbers(folder: Path, defaults: Mapping[str, int], limits: Limits) -> list[int]:
    """Read sizes from a configuration."""
    file = folder / "config.json"
    content = read_configuration(file, limits)
    values = [content.get(key, default) for key, default in defaults.items()]
    if not all(isinstance(value, int) and value > 0 for value in values):
        raise AppError(
            f"{file}: {', '.join(defaults)} should be integers above 0. The file may be damaged: delete "
            "it and fetch it again.",
            exit_code=ExitCode.BAD_DATA,
        )
    return values


def _resize_and_crop(image: Image.Image, side: int) -> Image.Image:
    """Shortest side to ``side`` (bicubic), then the centre."""
    width, height = image.size
    if (width, height) == (side, side):
        return image
    # multiplied first, as in CLIP's own: the other way, a float may fall short of a whole number
    short = min(width, height)
    new = (int(side * width / short), int(side * height / short))
    image = image.resize(new, Image.Resampling.BICUBIC)
    left, top = (new[0] - side) // 2, (new[1] - side) // 2
    return image.crop((left, top, left + side, top + side))
