"""Images and captions in the generator's own embedding space, for the run's checks of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from bidsapp.models.suite import Models

#: Images and captions given to a model at once.
_BATCH = 32


def image_embeddings(models: Models, images: np.ndarray) -> np.ndarray:
    """Embed images with the encoder whose tokens guide stage 2.

    Parameters
    ----------
    models : Models
    images : ndarray of uint8, shape (n, H, W, 3)

    Returns
    -------
    ndarray of float32, shape (n, dims)
        CLIP's projected CLS token, divided by its norm where the recipe's target is CLIP-Vision; the
        adapter's embedding otherwise. The same as :func:`embedding_of_target` gives for a stimulus.
    """
    parts = []
    for start in range(0, len(images), _BATCH):
        some = images[start : start + _BATCH]
        if models.recipe.diffusion.kind == "ip-adapter":
            parts.append(models.adapter.image_embeddings(some))
        else:
            parts.append(models.clip.vision_tokens(some)[:, 0])
    return np.concatenate(parts)


def embedding_columns(models: Models) -> tuple[str, slice]:
    """Name the target, and the part of it, that holds a stimulus' image embedding."""
    if models.recipe.diffusion.kind == "ip-adapter":
        return "clip_image", slice(None)
    return "clip_vision", slice(0, models.clip.vision_shape[1])


@torch.no_grad()
def caption_embeddings(models: Models, captions: Sequence[Sequence[str]]) -> np.ndarray | None:
    """Embed each image's captions in the space of its image embedding, averaged over captions.

    Returns
    -------
    ndarray of float32, shape (n, dims), or None
        None where the recipe's generator has no text encoder that shares the image encoder's space.
    """
    if models.recipe.diffusion.kind == "ip-adapter":
        return None
    clip, flat = models.clip, [caption for image in captions for caption in image]
    parts = []
    for start in range(0, len(flat), _BATCH):
        ids = clip.token_ids(flat[start : start + _BATCH])
        embeds = clip.text(ids.to(clip.text.device)).text_embeds.float()
        parts.append((embeds / embeds.norm(dim=-1, keepdim=True)).cpu().numpy())
    ends = np.cumsum([len(image) for image in captions])
    return np.stack([part.mean(0) for part in np.split(np.concatenate(parts), ends[:-1])])
