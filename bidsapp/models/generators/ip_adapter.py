"""Stage 2 by Stable Diffusion 1.5 with IP-Adapter: image-to-image guided by an image embedding.

IP-Adapter: Ye et al. 2023 (arXiv 2308.06721). Stable Diffusion: Rombach et al. 2022 (arXiv 2112.10752).
The model classes, the schedule and the adapter with its attention are the diffusers library's own, loaded
from a local folder. The loop is not: the library's pipeline mixes the embeddings of a batch's images
(huggingface/diffusers, issue 9813) and keeps its latents in half precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bidsapp.errors import AppError, ExitCode
from bidsapp.models.clip import ClipTokens
from bidsapp.models.generators.latent_diffusion import DiffusionSettings, LatentDiffusion, load_ddim
from bidsapp.models.weights.checkpoints import load_component, quiet_libraries, readable

#: Where the adapter and its image encoder are in the hub's repository h94/IP-Adapter.
ADAPTER = "models/ip-adapter_sd15.safetensors"
IMAGE_ENCODER = "models/image_encoder"
#: Tokens that an embedding is projected to (arXiv 2308.06721, section 3.2.1).
TOKENS = 4


class IPAdapterDiffusion(LatentDiffusion):
    """Stable Diffusion image-to-image whose cross-attentions also look at an image embedding.

    Each cross-attention adds ``scale * Attention(q, k_image, v_image)`` to its attention to the text
    (arXiv 2308.06721, equation 5). The text is the empty caption throughout.

    Parameters
    ----------
    pipeline : diffusers StableDiffusionImg2ImgPipeline
        With an IP-Adapter loaded and a DDIMScheduler. It holds the parts and is never called.
    """

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline.vae, pipeline.unet, pipeline.scheduler)
        self.pipeline = pipeline
        self._clip = ClipTokens(pipeline.image_encoder, None, None)

    @classmethod
    def load(
        cls, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> IPAdapterDiffusion:
        """Load the components one by one from a local folder; nothing is fetched.

        Parameters
        ----------
        folder : Path
            Holds two repositories of the hub side by side, in their own layouts: Stable Diffusion
            1.5's ``unet``, ``vae``, ``text_encoder``, ``tokenizer`` and ``scheduler``, and IP-Adapter's
            ``models/ip-adapter_sd15.safetensors`` and ``models/image_encoder``.

        Raises
        ------
        AppError
            If the adapter is of another kind, or made for another image encoder or UNet.
        """
        with quiet_libraries():
            from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
            from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
            from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import (
                StableDiffusionImg2ImgPipeline,
            )
            from transformers import (
                AutoTokenizer,
                CLIPImageProcessor,
                CLIPTextModel,
                CLIPVisionModelWithProjection,
            )

        unet = load_component(UNet2DConditionModel, folder / "unet", torch_dtype=dtype)
        encoder = load_component(CLIPVisionModelWithProjection, folder / IMAGE_ENCODER, dtype=dtype)
        _check_adapter(folder / ADAPTER, encoder.config.projection_dim, unet.config.cross_attention_dim)
        # the hub's scheduler file is PNDM's; the two share the schedule's keys
        scheduler = load_ddim(folder / "scheduler", clip_sample=False)
        with readable(folder / "tokenizer", "this tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        assemble: Any = StableDiffusionImg2ImgPipeline  # its hints do not let the checker be None
        pipeline = assemble(
            vae=load_component(AutoencoderKL, folder / "vae", torch_dtype=dtype),
            text_encoder=load_component(CLIPTextModel, folder / "text_encoder", dtype=dtype),
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            requires_safety_checker=False,
            feature_extractor=CLIPImageProcessor(),  # never called; loading the adapter would make one
            image_encoder=encoder,
        )
        adapter = Path(ADAPTER)
        with readable(folder / adapter), quiet_libraries():
            pipeline.load_ip_adapter(
                str(folder),
                subfolder=adapter.parent.as_posix(),
                weight_name=adapter.name,
                low_cpu_mem_usage=False,  # the other way needs the accelerate package
                local_files_only=True,
            )
        pipeline.set_progress_bar_config(disable=True)
        for part in ("vae", "text_encoder", "unet", "image_encoder"):
            getattr(pipeline, part).to(device).eval()
        return cls(pipeline)

    @property
    def embedding_size(self) -> int:
        """Values of an image embedding (1024 with CLIP ViT-H/14)."""
        return int(self.pipeline.image_encoder.config.projection_dim)

    def image_embeddings(self, images: np.ndarray) -> np.ndarray:
        """CLIP image embeddings as IP-Adapter takes them: projected, not normalised.

        Parameters
        ----------
        images : ndarray of uint8, shape (n, H, W, 3)

        Returns
        -------
        ndarray of float32, shape (n, embedding_size)

        Raises
        ------
        TypeError
            If the images are not uint8.
        """
        return self._clip.image_embeddings(images)

    @torch.no_grad()
    def image_to_image(
        self,
        initial: np.ndarray,
        embeddings: np.ndarray,
        generators: Sequence[torch.Generator],
        settings: DiffusionSettings,
    ) -> np.ndarray:
        """Reconstruct images from first-stage images and predicted image embeddings.

        Guidance is against the zero embedding, and the empty caption on both sides.

        Parameters
        ----------
        initial : ndarray of uint8, shape (n, H, W, 3)
            First-stage images; resized to the model's size with PIL bicubic.
        embeddings : ndarray of float32, shape (n, embedding_size)
        generators : sequence of n torch.Generator
            One an image, on the CPU: the draw from AutoKL's posterior, then the noise.
        settings : DiffusionSettings
            The adapter's scale is ``1 - text_share``.

        Returns
        -------
        ndarray of uint8, shape (n, S, S, 3)

        Raises
        ------
        AppError
            If a latent or a decoded pixel is not finite.
        TypeError
            If the images are not uint8.
        ValueError
            If the numbers of images, embeddings or generators do not fit.
        """
        return self.decode(self._latents(initial, embeddings, generators, settings))

    def _latents(
        self,
        initial: np.ndarray,
        embeddings: np.ndarray,
        generators: Sequence[torch.Generator],
        settings: DiffusionSettings,
    ) -> Tensor:
        """Denoised latents, float32 (n, 4, h, w), checked to be finite."""
        n = len(initial)
        if embeddings.shape != (n, self.embedding_size):
            raise ValueError(
                f"{n} images need embeddings of shape {(n, self.embedding_size)}, got {embeddings.shape}"
            )
        if len(generators) != n:
            raise ValueError(f"{n} images need as many generators, got {len(generators)}")
        self.pipeline.set_ip_adapter_scale(1 - settings.text_share)
        condition = self._condition(embeddings)

        def predict(both: Tensor, t: Tensor) -> Tensor:
            noise: Tensor = self.unet(both, t, return_dict=False, **condition)[0]
            return noise

        return self.guided_latents(initial, generators, settings, predict)

    def _condition(self, embeddings: np.ndarray) -> dict[str, Any]:
        """Give what the UNet looks at, for the unguided half of the batch and then the guided one."""
        unet, rows = self.unet, 2 * len(embeddings)
        text = self.pipeline.encode_prompt("", unet.device, 1, do_classifier_free_guidance=False)[0]
        wanted = torch.from_numpy(np.ascontiguousarray(embeddings, np.float32)).to(unet.device, unet.dtype)
        both = torch.cat([torch.zeros_like(wanted), wanted])
        return {
            "encoder_hidden_states": text.to(unet.dtype).expand(rows, -1, -1),
            "added_cond_kwargs": {"image_embeds": [both[:, None]]},  # one adapter, one embedding an image
        }


def _check_adapter(file: Path, embedding_size: int, token_size: int) -> None:
    """Refuse adapters that diffusers would load as something else; only the file's header is read."""
    from safetensors import safe_open

    with readable(file), safe_open(file, framework="pt") as content:
        if "image_proj.proj.weight" not in content.keys():  # noqa: SIM118 - not a dict
            raise AppError(
                f"{file}: not a plain IP-Adapter (no image_proj.proj.weight; the 'plus' and 'face' "
                "variants take other inputs). Use ip-adapter_sd15.safetensors of h94/IP-Adapter.",
                exit_code=ExitCode.BAD_DATA,
            )
        rows, columns = content.get_slice("image_proj.proj.weight").get_shape()
    if columns != embedding_size or rows != TOKENS * token_size:
        raise AppError(
            f"{file}: projects embeddings of {columns} values to {rows}, but the image encoder beside it "
            f"gives {embedding_size} and the UNet takes {TOKENS} tokens of {token_size}. "
            "Use the image encoder and the Stable Diffusion that the adapter was made for.",
            exit_code=ExitCode.BAD_DATA,
        )
