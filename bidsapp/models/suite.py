"""The models of one recipe, found, checked and loaded when first used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bidsapp.config import Recipe
from bidsapp.errors import ExitCode, Problem
from bidsapp.models.clip import ClipTokens
from bidsapp.models.evalnets import FeatureNetwork, load_networks
from bidsapp.models.vdvae import VDVAE, VDVAEConfig
from bidsapp.models.versatile_diffusion import DiffusionSettings, VersatileDiffusion
from bidsapp.progress import track

EMBEDDED = Path(__file__).parent / "embedded"
#: Folders of a Versatile Diffusion in the hub's layout that are read.
_PARTS = ("image_encoder", "text_encoder", "tokenizer", "vae", "image_unet", "text_unet", "scheduler")


class Models:
    """VDVAE, CLIP tokens, latent diffusion and judging networks of a recipe.

    Parameters
    ----------
    recipe : Recipe
    models_dir : Path or None
        Where downloaded weights are; not used by recipes whose weights are in the package.
    device : str
        As :func:`bidsapp.models.devices.choose_device` returns it.
    """

    def __init__(self, recipe: Recipe, models_dir: Path | None, device: str) -> None:
        self.recipe, self.device = recipe, device
        self.root = models_root(recipe, models_dir)

    @cached_property
    def vdvae(self) -> VDVAE:
        """The VDVAE of stage 1."""
        from safetensors.torch import load_file

        folder = self.root / self.recipe.models.vdvae
        config = VDVAEConfig(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
        with torch.device("meta"):
            model = VDVAE(config)
        state = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
        model.load_state_dict(state, strict=True, assign=True)
        return model.to(self.device).eval()

    @cached_property
    def clip(self) -> ClipTokens:
        """The CLIP whose tokens guide stage 2."""
        return ClipTokens.load(self.root / self.recipe.models.diffusion, self.device)

    @cached_property
    def diffusion(self) -> VersatileDiffusion:
        """The dual-guided latent diffusion of stage 2."""
        folder = self.root / self.recipe.models.diffusion
        return VersatileDiffusion.load(folder, self.clip.vision_shape[0], self.device)

    @cached_property
    def networks(self) -> dict[str, FeatureNetwork]:
        """The judging networks that are installed."""
        return load_networks(self.recipe.metrics.networks, self.clip, self.device)

    @cached_property
    def digest(self) -> str:
        """Hash of all weights and configurations of the generative models."""
        total = hashlib.sha256()
        parts = [self.root / self.recipe.models.vdvae, self.root / self.recipe.models.diffusion]
        for path in sorted(p for part in parts for p in part.rglob("*") if p.is_file()):
            total.update(path.relative_to(self.root).as_posix().encode())
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()

    def targets(self, images: np.ndarray, captions: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
        """Compute what the ridge models predict: latents of the VDVAE, tokens of CLIP.

        Parameters
        ----------
        images : ndarray of uint8, shape (n, H, W, 3)
        captions : sequence of n sequences of str

        Returns
        -------
        dict of ndarray of float32, shapes (n, dims)
        """
        small = resize(images, self.vdvae.config.image_size)
        section = self.recipe.vdvae
        rng = torch.Generator().manual_seed(0)  # used only where the recipe samples the posterior
        latents = self.vdvae.encode_latents(
            small, section.layers, sample=section.sample_latents, generator=rng
        )
        return {
            "vdvae": latents,
            "clip_vision": self.clip.vision_tokens(images).reshape(len(images), -1),
            "clip_text": self.clip.mean_text_tokens(captions).reshape(len(images), -1),
        }

    def first_stage(self, latents: np.ndarray, generators: Sequence[torch.Generator]) -> np.ndarray:
        """Stage 1: VDVAE images of predicted latents, uint8 (n, S, S, 3)."""
        section = self.recipe.vdvae
        parts = []
        for start in track(range(0, len(latents), section.batch), "stage 1, VDVAE decode (batches)"):
            rows = slice(start, start + section.batch)
            parts.append(
                self.vdvae.decode_latents(
                    latents[rows],
                    generators[rows],
                    sample=section.sample_pixels,
                    temperature=section.temperature,
                )
            )
        return np.concatenate(parts)

    def second_stage(
        self,
        initial: np.ndarray,
        conditions: Mapping[str, np.ndarray],
        generators: Sequence[torch.Generator],
    ) -> np.ndarray:
        """Stage 2: latent diffusion from first-stage images under predicted conditions, uint8 (n, S, S, 3).

        ``conditions`` are the predicted targets beside the VDVAE's, (n, dims) by target name.
        """
        section = self.recipe.diffusion
        settings = DiffusionSettings(
            steps=section.steps,
            strength=section.strength,
            guidance=section.guidance,
            text_share=section.text_share,
            noise_one_step_higher=section.noise_one_step_higher,
            sample_posterior=section.sample_posterior,
        )
        nothing = (self.clip.unconditional_vision(), self.clip.unconditional_text())
        seen = conditions["clip_vision"].reshape(len(initial), *self.clip.vision_shape)
        read = conditions["clip_text"].reshape(len(initial), *self.clip.text_shape)
        parts = []
        for start in track(range(0, len(initial), section.batch), "stage 2, diffusion (batches)"):
            rows = slice(start, start + section.batch)
            parts.append(
                self.diffusion.image_to_image(
                    initial[rows], seen[rows], read[rows], nothing, generators[rows], settings
                )
            )
        return np.concatenate(parts)


def resize(images: np.ndarray, side: int) -> np.ndarray:
    """PIL bilinear to a square, as the paper's code does for the VDVAE; uint8 (n, side, side, 3)."""
    rows = [np.asarray(Image.fromarray(im).resize((side, side), Image.Resampling.BILINEAR)) for im in images]
    return np.stack(rows)


def models_root(recipe: Recipe, models_dir: Path | None) -> Path:
    """Give the folder that holds a recipe's model folders."""
    if recipe.models.location == "package":
        return EMBEDDED
    return models_dir if models_dir is not None else Path("models")


def missing_models(recipe: Recipe, models_dir: Path | None) -> list[Problem]:
    """Model folders that are not there; looked for before any computing."""
    root = models_root(recipe, models_dir)
    wanted = [root / recipe.models.vdvae, *(root / recipe.models.diffusion / part for part in _PARTS)]
    return [
        Problem(
            str(folder),
            f"the recipe {recipe.name!r} needs this model folder and it is not there",
            "give the folder that holds the weights with --models-dir, or use --recipe embedded",
            ExitCode.TRY_AGAIN,
        )
        for folder in wanted
        if not folder.is_dir()
    ]
