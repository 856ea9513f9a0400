"""Stage 2: dual-guided latent diffusion from an initial image and predicted CLIP tokens.

Versatile Diffusion (Xu et al. 2023, arXiv 2211.08332) as Brain-Diffuser uses it (arXiv 2303.05334,
"Versatile Diffusion for final reconstruction"): the first-stage image is encoded, noised part of the
way, and denoised under guidance of the predicted vision and text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bidsapp.models.generators.dual_attention import (
    add_text_path,
    dual_transformers,
    load_text_path,
    read_weights,
    set_text_share,
    weights_file,
)
from bidsapp.models.generators.latent_diffusion import DiffusionSettings, LatentDiffusion, load_ddim
from bidsapp.models.weights.checkpoints import load_component, quiet_libraries, readable

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
    """AutoKL, a dual-guided UNet and a DDIM schedule.

    Parameters
    ----------
    vae : diffusers AutoencoderKL
    unet : diffusers UNet2DConditionModel with dual transformers
    scheduler : diffusers DDIMScheduler
    """

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
        device : str
        dtype : torch.dtype
            Of the weights of AutoKL and UNet.

        Raises
        ------
        AppError
            Exit code 65 if a file is damaged or of another model, 75 if one is not there.
        """
        with quiet_libraries():
            from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
            from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        vae = load_component(AutoencoderKL, folder / "vae", torch_dtype=dtype)
        unet = load_component(UNet2DConditionModel, folder / "image_unet", torch_dtype=dtype)
        add_text_path(unet, n_vision)
        text = folder / "text_unet"
        with readable(weights_file(text)):
            load_text_path(unet, read_weights(text))
        # a file that leaves some of these out must not get the library's own defaults
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

        def predict(both: Tensor, t: Tensor) -> Tensor:
            noise: Tensor = self.unet(both, t, encoder_hidden_states=condition, return_dict=False)[0]
            return noise

        return self.decode(self.guided_latents(initial, generators, settings, predict))

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
