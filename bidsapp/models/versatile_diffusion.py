"""Stage 2: dual-guided latent diffusion from an initial image and predicted CLIP tokens.

Versatile Diffusion (Xu et al. 2023, arXiv 2211.08332) as Brain-Diffuser uses it (arXiv 2303.05334,
"Versatile Diffusion for final reconstruction"): the first-stage image is encoded, noised part of the
way, and denoised under guidance of the predicted vision and text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bidsapp.errors import AppError
from bidsapp.models.checkpoints import load_component
from bidsapp.models.dual_attention import (
    add_text_path,
    dual_transformers,
    load_text_path,
    read_weights,
    set_text_share,
)

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


@dataclass(frozen=True)
class DiffusionSettings:
    """Numbers of the image-to-image loop; each recipe file names their source.

    Attributes
    ----------
    steps : int
        Steps of the whole DDIM schedule.
    strength : float
        Share of the schedule that is run.
    guidance : float
        Classifier-free guidance scale.
    text_share : float
        Share of text against vision in every cross-attention.
    noise_one_step_higher : bool
        As the original code: noise to the timestep before the first that is denoised.
    sample_posterior : bool
        Draw the initial image's latent from AutoKL's posterior; its mean otherwise.
    """

    steps: int = 50
    strength: float = 0.75
    guidance: float = 7.5
    text_share: float = 0.4
    noise_one_step_higher: bool = True
    sample_posterior: bool = True


class VersatileDiffusion:
    """AutoKL, a dual-guided UNet and a DDIM schedule.

    Parameters
    ----------
    vae : diffusers AutoencoderKL
    unet : diffusers UNet2DConditionModel with dual transformers
    scheduler : diffusers DDIMScheduler
    """

    def __init__(self, vae: Any, unet: Any, scheduler: Any) -> None:
        self.vae, self.unet, self.scheduler = vae, unet, scheduler

    @classmethod
    def load(
        cls, folder: Path, n_vision: int, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> VersatileDiffusion:
        """Load the components one by one from a local folder in the hub's layout.

        Reads ``vae``, ``image_unet``, the attentions of ``text_unet``, and ``scheduler``.

        Parameters
        ----------
        folder : Path
        n_vision : int
            Number of vision tokens (257 for CLIP ViT-L/14).
        """
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.utils import logging as diffusers_logging

        diffusers_logging.disable_progress_bar()
        vae = load_component(AutoencoderKL, folder / "vae", torch_dtype=dtype)
        unet = load_component(UNet2DConditionModel, folder / "image_unet", torch_dtype=dtype)
        add_text_path(unet, n_vision)
        load_text_path(unet, read_weights(folder / "text_unet"))
        # a file that leaves some of these out must not get the library's own defaults
        scheduler = DDIMScheduler.from_pretrained(folder / "scheduler", local_files_only=True, **SCHEDULE)
        return cls(vae.to(device).eval(), unet.to(device).eval(), scheduler)

    @property
    def image_size(self) -> int:
        """Side of the images that come out, in pixels."""
        doublings = len(self.vae.config.block_out_channels) - 1
        return int(self.unet.config.sample_size * 2**doublings)

    @torch.no_grad()
    def encode(self, images: np.ndarray, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Latents of images.

        Parameters
        ----------
        images : ndarray of uint8, shape (n, H, W, 3)
            Resized to the model's size with PIL bicubic.
        generators : sequence of n torch.Generator, optional
            Draw from the posterior with these; its mean otherwise.

        Returns
        -------
        Tensor, shape (n, 4, h, w), times AutoKL's scaling factor
        """
        side = self.image_size
        rows = [
            np.asarray(Image.fromarray(im).resize((side, side), Image.Resampling.BICUBIC)) for im in images
        ]
        x = torch.from_numpy(np.stack(rows)).float().permute(0, 3, 1, 2) / 127.5 - 1
        posterior = self.vae.encode(x.to(self.vae.device, self.vae.dtype)).latent_dist
        latents = posterior.mean
        if generators is not None:
            latents = latents + posterior.std * _noise_like(latents, generators)
        # float32 from here on: the schedule's sums lose precision in half
        scaled: Tensor = latents.float() * self.vae.config.scaling_factor
        return scaled

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """uint8 images (n, H, W, 3) of latents.

        Raises
        ------
        AppError
            If AutoKL overflows; its pixels would be black or white.
        """
        x = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        _check_finite(x, "pixels", self.vae)
        x = ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        pixels: np.ndarray = x.permute(0, 2, 3, 1).cpu().numpy()
        return pixels

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
        """Reconstruct images from first-stage images and predicted tokens.

        Parameters
        ----------
        initial : ndarray of uint8, shape (n, H, W, 3)
            First-stage images.
        vision : ndarray of float32, shape (n, tokens, dims)
        text : ndarray of float32, shape (n, tokens, dims)
        unconditional : pair of ndarray, shapes (1, tokens, dims)
            Vision and text tokens of "nothing".
        generators : sequence of n torch.Generator
            One an image, on the CPU.
        settings : DiffusionSettings

        Returns
        -------
        ndarray of uint8, shape (n, S, S, 3)

        Raises
        ------
        AppError
            If a latent or a decoded pixel is not finite.
        ValueError
            If the numbers of tokens or of generators do not fit.
        """
        condition = self._condition(vision, text, unconditional)
        set_text_share(self.unet, settings.text_share)
        latents = self.encode(initial, generators if settings.sample_posterior else None)
        timesteps, noise_level = self._schedule(settings)
        latents = self.scheduler.add_noise(latents, _noise_like(latents, generators), noise_level)
        for t in timesteps:
            guided = self._guided_noise(latents, t, condition, settings.guidance)
            latents = self.scheduler.step(guided, t, latents, eta=0.0).prev_sample
        _check_finite(latents, "latents", self.unet)
        return self.decode(latents)

    def _condition(
        self, vision: np.ndarray, text: np.ndarray, unconditional: tuple[np.ndarray, np.ndarray]
    ) -> Tensor:
        """Tokens of the unconditional and the conditional half, shape (2n, tokens, dims)."""
        n_vision = dual_transformers(self.unet)[0].n_vision
        if vision.shape[1] != n_vision:
            raise ValueError(f"the UNet takes {n_vision} vision tokens an image, got {vision.shape[1]}")
        for name, given, nothing in zip(("vision", "text"), (vision, text), unconditional, strict=True):
            if given.shape[1:] != nothing.shape[1:]:
                raise ValueError(
                    f"{name} tokens of shape {given.shape[1:]}, but unconditional ones of {nothing.shape[1:]}"
                )
        wanted = np.concatenate([vision, text], axis=1)
        unguided = np.concatenate(unconditional, axis=1)
        both = np.concatenate([np.repeat(unguided, len(wanted), axis=0), wanted])
        return torch.from_numpy(both.astype(np.float32)).to(self.unet.device, self.unet.dtype)

    def _schedule(self, settings: DiffusionSettings) -> tuple[Tensor, Tensor]:
        """Timesteps to denoise, high to low, and the timestep to noise to.

        With 50 steps and strength 0.75 the original noises to t = 741 and denoises from t = 721.
        """
        self.scheduler.set_timesteps(settings.steps)
        n_run = int(settings.steps * settings.strength)
        first = settings.steps - n_run
        timesteps = self.scheduler.timesteps
        noised_to = timesteps[max(first - 1, 0)] if settings.noise_one_step_higher else timesteps[first]
        return timesteps[first:], noised_to.reshape(1)

    def _guided_noise(self, latents: Tensor, t: Tensor, condition: Tensor, guidance: float) -> Tensor:
        """Classifier-free guidance over one batch that holds both halves."""
        both = torch.cat([latents, latents]).to(self.unet.dtype)
        predicted = self.unet(both, t, encoder_hidden_states=condition, return_dict=False)[0]
        nothing, wanted = predicted.float().chunk(2)
        guided: Tensor = nothing + guidance * (wanted - nothing)
        return guided


def _check_finite(x: Tensor, what: str, model: Any) -> None:
    if not torch.isfinite(x).all():
        raise AppError(
            f"Stage 2 produced {what} that are not finite in {model.dtype} on {model.device}. "
            "Half precision overflows on some devices: run again in float32, which --device cpu takes."
        )


def _noise_like(x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    if len(generators) != len(x):
        raise ValueError(f"{len(x)} images need as many generators, got {len(generators)}")
    rows = [torch.randn(x.shape[1:], generator=g, dtype=torch.float32) for g in generators]
    return torch.stack(rows).to(x)
