"""What the generators of stage 2 share: AutoKL, the DDIM schedule, guided denoising.

Latent diffusion: Rombach et al. 2022 (arXiv 2112.10752). DDIM: Song et al. 2021 (arXiv 2010.02502).
Image-to-image as Brain-Diffuser runs it (arXiv 2303.05334): the stage-1 image is encoded, noised part of
the way and denoised under guidance. The condition that guides is each generator's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bidsapp.errors import AppError
from bidsapp.models.costs import latent_diffusion
from bidsapp.models.devices import fuses_attention, other_format
from bidsapp.models.weights.checkpoints import LOCAL, load_component, quiet_libraries, readable
from bidsapp.models.weights.configurations import (
    AUTOKL,
    SCHEDULE,
    UNET,
    check_folder,
    read_configuration,
)

#: Schedulers of diffusers whose files hold a schedule that DDIM can use.
_SCHEDULERS = ("DDIMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler")


@dataclass(frozen=True)
class DiffusionSettings:
    """Numbers of the image-to-image loop; each recipe names their source."""

    #: steps of the whole DDIM schedule, and the share of it that is run
    steps: int = 50
    strength: float = 0.75
    #: classifier-free guidance scale
    guidance: float = 7.5
    #: share of text against image in every cross-attention
    text_share: float = 0.4
    #: noise to the timestep before the first that is denoised, as the original code does
    noise_one_step_higher: bool = True
    #: draw the initial image's latent from AutoKL's posterior; take its mean otherwise
    sample_posterior: bool = True


class LatentDiffusion:
    """AutoKL, a UNet2DConditionModel and a DDIMScheduler of diffusers."""

    def __init__(self, vae: Any, unet: Any, scheduler: Any) -> None:
        self.vae, self.unet, self.scheduler = vae, unet, scheduler

    @property
    def image_size(self) -> int:
        """Side of the reconstructions in pixels."""
        doublings = len(self.vae.config.block_out_channels) - 1
        return int(self.unet.config.sample_size * 2**doublings)

    def cost(self) -> int:
        """Bytes of one image, not counting the weights; see :mod:`bidsapp.models.costs`."""
        fused = fuses_attention(self.unet.device.type)
        return latent_diffusion(self.unet.config, self.vae.config, self.unet.dtype.itemsize, fused=fused)

    @torch.no_grad()
    def encode(self, images: np.ndarray, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Encode uint8 images (n, H, W, 3), resized to the model's size with PIL bicubic.

        With generators, one per image, latents are drawn from the posterior; otherwise they are its mean.

        Returns
        -------
        Tensor of float32, shape (n, 4, h, w), times AutoKL's scaling factor
        """
        if images.dtype != np.uint8:
            raise TypeError(f"stage-1 images should be uint8, got {images.dtype}")
        side = self.image_size
        rows = [
            np.asarray(Image.fromarray(im).resize((side, side), Image.Resampling.BICUBIC)) for im in images
        ]
        x = torch.from_numpy(np.stack(rows)).float().permute(0, 3, 1, 2) / 127.5 - 1
        posterior = self.vae.encode(x.to(self.vae.device, self.vae.dtype)).latent_dist
        latents = posterior.mean
        if generators is not None:
            latents = latents + posterior.std * noise_like(latents, generators)
        # float32 from here on: the schedule's sums lose precision in half
        scaled: Tensor = latents.float() * self.vae.config.scaling_factor
        return scaled

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Decode latents to uint8 images (n, H, W, 3).

        Raises
        ------
        AppError
            If AutoKL overflows; its pixels would be black or white.
        """
        x = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        x = _check_finite(x, "pixels", self.vae)
        x = ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        pixels: np.ndarray = x.permute(0, 2, 3, 1).cpu().numpy()
        return pixels

    def schedule(self, settings: DiffusionSettings) -> tuple[Tensor, Tensor]:
        """Timesteps to denoise, high to low, and the timestep to noise to, shape (1,).

        With 50 steps and strength 0.75 Versatile Diffusion's own code noises to t = 741 and denoises
        from t = 721.
        """
        self.scheduler.set_timesteps(settings.steps)
        n_run = int(settings.steps * settings.strength)
        first = settings.steps - n_run
        timesteps = self.scheduler.timesteps
        noised_to = timesteps[max(first - 1, 0)] if settings.noise_one_step_higher else timesteps[first]
        return timesteps[first:], noised_to.reshape(1)

    @torch.no_grad()
    def guided_latents(
        self,
        initial: np.ndarray,
        generators: Sequence[torch.Generator],
        settings: DiffusionSettings,
        condition: Mapping[str, Any],
    ) -> Tensor:
        """Encode, noise and denoise images under classifier-free guidance.

        Parameters
        ----------
        initial : ndarray of uint8, shape (n, H, W, 3)
            Stage-1 images; a TypeError otherwise.
        generators : sequence of n torch.Generator
            One per image, on the CPU: for the draw from AutoKL's posterior, then the noise.
        condition : mapping of str to tensors
            What the UNet takes besides latents and timestep, 2n rows: the unguided condition's first,
            the wanted one's second.

        Returns
        -------
        Tensor of float32, shape (n, 4, h, w)

        Raises
        ------
        AppError
            If a latent is not finite.
        ValueError
            If there are not as many generators as images.
        """
        latents = self.encode(initial, generators if settings.sample_posterior else None)
        timesteps, noised_to = self.schedule(settings)
        latents = self.scheduler.add_noise(latents, noise_like(latents, generators), noised_to)
        for t in timesteps:
            both = torch.cat([latents, latents]).to(self.unet.dtype)
            noise = self.unet(both, t, return_dict=False, **condition)[0]
            nothing, wanted = noise.float().chunk(2)
            guided = nothing + settings.guidance * (wanted - nothing)
            latents = self.scheduler.step(guided, t, latents, eta=0.0).prev_sample
        return _check_finite(latents, "latents", self.unet)


def load_unet_and_vae(folder: Path, unet: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load the UNet of a sub-folder and AutoKL; errors as ``load_component``."""
    with quiet_libraries():
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    vae = load_component(AutoencoderKL, folder / "vae", AUTOKL, torch_dtype=dtype)
    return load_component(UNet2DConditionModel, folder / unet, UNET, torch_dtype=dtype), vae


def load_ddim(folder: Path, **numbers: Any) -> Any:
    """Load a DDIM schedule from a folder's scheduler_config.json; ``numbers`` override the file's.

    Raises
    ------
    AppError
        Exit code 65 if the file is not a scheduler's, 66 if it is missing.
    """
    file = folder / "scheduler_config.json"
    check_folder(folder)
    read_configuration(file, SCHEDULE, {"_class_name": _SCHEDULERS})
    with readable(file, "this schedule"), quiet_libraries():
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        return DDIMScheduler.from_pretrained(folder, **LOCAL, **numbers)


def noise_like(x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw normal noise of x's shape, device and type, each row with its own generator (else ValueError)."""
    if len(generators) != len(x):
        raise ValueError(f"{len(x)} images need as many generators, got {len(generators)}")
    rows = [torch.randn(x.shape[1:], generator=g, dtype=torch.float32) for g in generators]
    return torch.stack(rows).to(x)


def _check_finite(x: Tensor, what: str, model: Any) -> Tensor:
    if not torch.isfinite(x).all():
        raise AppError(
            f"Stage 2 produced {what} that are not finite in {model.dtype} on {model.device}. "
            f"{other_format(model.dtype, model.device.type)}"
        )
    return x
