"""Stage 2 by Versatile Diffusion: image-to-image guided by predicted image and text tokens.

Versatile Diffusion (Xu et al. 2023, arXiv 2211.08332) as Brain-Diffuser uses it (arXiv 2303.05334,
"Versatile Diffusion for final reconstruction").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bidsapp.models import canaries, costs
from bidsapp.models.batching import Workload, fitting
from bidsapp.models.canaries import Ask
from bidsapp.models.clip import CLIP_STD, ClipTokens, token_shapes
from bidsapp.models.generators.dual_attention import (
    add_text_path,
    dual_transformers,
    load_text_path,
    read_weights,
    set_text_share,
    weights_file,
)
from bidsapp.models.generators.latent_diffusion import (
    DiffusionSettings,
    LatentDiffusion,
    load_ddim,
    load_unet_and_vae,
)
from bidsapp.models.generators.protocol import EMBEDDED_AT_ONCE, Generator
from bidsapp.models.weights.checkpoints import readable

#: The noise schedule that Versatile Diffusion was trained with (its public code, DDIM sampler).
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "prediction_type": "epsilon",
}


class VersatileDiffusion(LatentDiffusion):
    """AutoKL, a dual-guided UNet and a DDIM schedule."""

    @classmethod
    def load(
        cls, folder: Path, n_vision: int, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> VersatileDiffusion:
        """Load the components one by one from a local folder in the hub's layout.

        Reads ``vae``, ``image_unet``, the attentions of ``text_unet``, and ``scheduler``, for ``n_vision``
        image tokens (257 for CLIP ViT-L/14) and weights of ``dtype``.

        Raises
        ------
        AppError
            Exit code 65 if a file is damaged or of another model; 66 or 75 if one is missing.
        """
        unet, vae = load_unet_and_vae(folder, "image_unet", dtype)
        text = folder / "text_unet"
        with readable(weights_file(text)):
            add_text_path(unet, n_vision)
            load_text_path(unet, read_weights(text))
        # for keys that the file leaves out, the library's own defaults would be wrong
        scheduler = load_ddim(folder / "scheduler", **SCHEDULE)
        return cls(vae.to(device).eval(), unet.to(device).eval(), scheduler)

    @torch.no_grad()
    def image_to_image(
        self,
        initial: np.ndarray,
        vision: np.ndarray,
        text: np.ndarray,
        unconditional: tuple[np.ndarray, np.ndarray],
        generators: Sequence[torch.Generator],
        settings: DiffusionSettings,
    ) -> np.ndarray:
        """Refine stage-1 images under predicted tokens.

        Arguments and errors are otherwise those of :meth:`guided_latents`.

        Parameters
        ----------
        vision, text : ndarray of float32, shape (n, tokens, dims)
            A ValueError if the number of tokens is not the UNet's.
        unconditional : pair of ndarray, shapes (1, tokens, dims)
            Image and text tokens of "nothing".

        Returns
        -------
        ndarray of uint8, shape (n, S, S, 3)
        """
        set_text_share(self.unet, settings.text_share)
        condition = {"encoder_hidden_states": self._condition(vision, text, unconditional)}
        return self.decode(self.guided_latents(initial, generators, settings, condition))

    def _condition(
        self, vision: np.ndarray, text: np.ndarray, unconditional: tuple[np.ndarray, np.ndarray]
    ) -> Tensor:
        """Tokens of the unconditional and the conditional half, shape (2n, tokens, dims)."""
        n_vision = dual_transformers(self.unet)[0].n_vision
        if vision.shape[1] != n_vision:
            raise ValueError(f"the UNet takes {n_vision} image tokens, got {vision.shape[1]}")
        for name, given, nothing in zip(("image", "text"), (vision, text), unconditional, strict=True):
            if given.shape[1:] != nothing.shape[1:]:
                raise ValueError(
                    f"{name} tokens of shape {given.shape[1:]}, but unconditional ones of {nothing.shape[1:]}"
                )
        wanted = np.concatenate([vision, text], axis=1)
        unguided = np.concatenate(unconditional, axis=1)
        both = np.concatenate([np.repeat(unguided, len(wanted), axis=0), wanted])
        return torch.from_numpy(both.astype(np.float32)).to(self.unet.device, self.unet.dtype)


class DualGuided(Generator):
    """Versatile Diffusion with its CLIP: guided by image tokens and by text tokens."""

    title = "Versatile Diffusion"
    embedding_target, embedding_title = "clip_vision", "CLIP's image embedding"
    semantic_target = "clip_text"
    unet_folder = "image_unet"

    @classmethod
    def target_shapes(cls, folder: Path) -> dict[str, tuple[int, int]]:
        """Shapes of CLIP's image and text tokens."""
        return dict(zip(("clip_vision", "clip_text"), token_shapes(folder), strict=True))

    @cached_property
    def encoder(self) -> ClipTokens:
        """CLIP, whose tokens are the targets."""
        with fitting("CLIP", self.batches.device):
            return ClipTokens.load(self.folder, self.batches.device, self.dtype)

    @cached_property
    def model(self) -> VersatileDiffusion:
        """AutoKL and the dual-guided UNet."""
        with fitting(self.title, self.batches.device):
            n_vision = self.shapes["clip_vision"][0]
            return VersatileDiffusion.load(self.folder, n_vision, self.batches.device, self.dtype)

    def targets(
        self, images: np.ndarray, captions: Sequence[Sequence[str]], most: int
    ) -> dict[str, np.ndarray]:
        """CLIP's image tokens, and its text tokens averaged over each image's captions."""
        clip, n = self.encoder, len(images)
        vision = Workload("CLIP-Vision", self.encoder_cost(), most)
        text = Workload("CLIP-Text", self._caption_cost() * max(map(len, captions)), most)
        made = {
            "clip_vision": self.batches.run(vision, n, lambda rows: clip.vision_tokens(images[rows])),
            "clip_text": self.batches.run(text, n, lambda rows: clip.mean_text_tokens(captions[rows])),
        }
        return {name: tokens.reshape(n, -1) for name, tokens in made.items()}

    def embed(self, images: np.ndarray) -> np.ndarray:
        """CLIP's projected CLS token, divided by its norm."""
        return self.encoder.vision_tokens(images)[:, 0]

    def caption_embeddings(self, captions: Sequence[Sequence[str]]) -> np.ndarray:
        """CLIP's text embeddings, each divided by its norm, averaged over captions."""
        flat = [caption for image in captions for caption in image]
        work = Workload("caption embeddings", self._caption_cost(), EMBEDDED_AT_ONCE)
        rows = self.batches.run(work, len(flat), lambda some: self.encoder.text_embeddings(flat[some]))
        ends = np.cumsum([len(image) for image in captions])
        return np.stack([part.mean(0) for part in np.split(rows, ends[:-1])])

    def _caption_cost(self) -> int:
        text = self.encoder.text
        return costs.clip_text(text.config, text.dtype.itemsize)

    @cached_property
    def _nothing(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of no image and no caption, which guidance leads away from."""
        return self.encoder.unconditional_vision(), self.encoder.unconditional_text()

    def refiner(
        self,
        initial: np.ndarray,
        conditions: Mapping[str, np.ndarray],
        generators: Sequence[torch.Generator],
        settings: DiffusionSettings,
    ) -> Callable[[slice], np.ndarray]:
        """Image-to-image guided by the predicted tokens."""
        vision, text = (conditions[name].reshape(len(initial), *shape) for name, shape in self.shapes.items())
        return lambda rows: self.model.image_to_image(
            initial[rows], vision[rows], text[rows], self._nothing, generators[rows], settings
        )

    def cost(self) -> int:
        """Bytes of one image in the UNet's pass or AutoKL's decoder."""
        return self.model.cost()

    def canaries(self) -> dict[str, Callable[[Ask], None]]:
        """CLIP, then the diffusion: they are not held together."""
        return {"CLIP": self._ask_clip, "diffusion": self._ask_diffusion}

    def _ask_clip(self, ask: Ask) -> None:
        clip = self.encoder
        fixed = canaries.image(clip.image_size)
        with canaries.given_to(canaries.first_layer(clip.vision)) as seen:
            ask("image encoder", lambda: clip.vision_tokens(fixed), (1, *clip.vision_shape))
        canaries.check_input("the image encoder", self.folder, seen, CLIP_STD)
        ask("text encoder", lambda: clip.text_tokens([canaries.CAPTION]), (1, *clip.text_shape))

    def _ask_diffusion(self, ask: Ask) -> None:
        vision, text = (canaries.tokens((1, *shape)) for shape in self.shapes.values())
        nothing = (np.zeros_like(vision), np.zeros_like(text))
        canaries.ask_for_image(
            ask,
            self.model.image_size,
            lambda start, draws: self.model.image_to_image(
                start, vision, text, nothing, draws, canaries.SETTINGS
            ),
        )


GENERATOR = DualGuided
