"""Stage 2 by Stable Diffusion 1.5 with IP-Adapter: image-to-image guided by an image embedding.

IP-Adapter: Ye et al. 2023 (arXiv 2308.06721). Stable Diffusion: Rombach et al. 2022 (arXiv 2112.10752).
The model classes, the schedule and the adapter with its attention are diffusers' own, loaded from a local
folder. The loop is not: the library's pipeline mixes the embeddings of the images in a batch
(huggingface/diffusers, issue 9813) and keeps its latents in half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bidsapp.errors import AppError, ExitCode
from bidsapp.models import canaries
from bidsapp.models.batching import Workload, fitting
from bidsapp.models.canaries import Ask
from bidsapp.models.clip import CLIP_STD, ClipTokens, vision_shape
from bidsapp.models.generators.latent_diffusion import (
    DiffusionSettings,
    LatentDiffusion,
    load_ddim,
    load_unet_and_vae,
)
from bidsapp.models.generators.protocol import Generator
from bidsapp.models.weights.checkpoints import load_component, load_tokenizer, quiet_libraries, readable
from bidsapp.models.weights.configurations import TEXT_L14, VIT_H14

#: Where the adapter and its image encoder are in the hub's repository h94/IP-Adapter.
ADAPTER = "models/ip-adapter_sd15.safetensors"
IMAGE_ENCODER = "models/image_encoder"
#: Tokens that an embedding is projected to (arXiv 2308.06721, section 3.2.1).
TOKENS = 4


class IPAdapterDiffusion(LatentDiffusion):
    """Stable Diffusion image-to-image whose cross-attentions also attend to an image embedding.

    Each cross-attention adds ``scale * Attention(q, k_image, v_image)`` to its attention to the text
    (arXiv 2308.06721, equation 5). The text is the empty caption throughout. ``pipeline``, diffusers'
    StableDiffusionImg2ImgPipeline with the adapter and a DDIMScheduler, holds the parts and is never called.
    """

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline.vae, pipeline.unet, pipeline.scheduler)
        self.pipeline = pipeline
        self.encoder = ClipTokens(pipeline.image_encoder, None, None)

    @classmethod
    def load(
        cls, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> IPAdapterDiffusion:
        """Load the components one by one from a local folder; nothing is fetched.

        The folder holds two repositories of the hub in their own layouts: Stable Diffusion 1.5's ``unet``,
        ``vae``, ``text_encoder``, ``tokenizer`` and ``scheduler``, and IP-Adapter's
        ``models/ip-adapter_sd15.safetensors`` and ``models/image_encoder``.

        Raises
        ------
        AppError
            Exit code 65 if a file is damaged, or the adapter is of another kind or made for another image
            encoder or UNet; 66 or 75 if a file is missing.
        """
        with readable(folder, "these models"):  # configurations whose parts do not fit fail in many ways
            return cls(cls._assemble(folder, device, dtype))

    @staticmethod
    def _assemble(folder: Path, device: str, dtype: torch.dtype) -> Any:
        with quiet_libraries():
            from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import (
                StableDiffusionImg2ImgPipeline,
            )
            from transformers import CLIPImageProcessor, CLIPTextModel, CLIPVisionModelWithProjection

        unet, vae = load_unet_and_vae(folder, "unet", dtype)
        encoder = load_component(CLIPVisionModelWithProjection, folder / IMAGE_ENCODER, VIT_H14, dtype=dtype)
        _check_adapter(folder / ADAPTER, encoder.config.projection_dim, unet.config.cross_attention_dim)
        assemble: Any = StableDiffusionImg2ImgPipeline  # its annotations do not allow None
        pipeline = assemble(
            vae=vae,
            text_encoder=load_component(CLIPTextModel, folder / "text_encoder", TEXT_L14, dtype=dtype),
            tokenizer=load_tokenizer(folder / "tokenizer"),
            unet=unet,
            # the hub's scheduler file is PNDM's, with the same keys for the schedule
            scheduler=load_ddim(folder / "scheduler", clip_sample=False),
            safety_checker=None,
            requires_safety_checker=False,
            feature_extractor=CLIPImageProcessor(),  # never called; without it, one would be loaded
            image_encoder=encoder,
        )
        adapter = Path(ADAPTER)
        with readable(folder / adapter), quiet_libraries():
            pipeline.load_ip_adapter(
                str(folder),
                subfolder=adapter.parent.as_posix(),
                weight_name=adapter.name,
                low_cpu_mem_usage=False,  # True needs the accelerate package
                local_files_only=True,
            )
        pipeline.set_progress_bar_config(disable=True)
        for part in ("vae", "text_encoder", "unet", "image_encoder"):
            getattr(pipeline, part).to(device).eval()
        return pipeline

    @torch.no_grad()
    def image_to_image(
        self,
        initial: np.ndarray,
        embeddings: np.ndarray,
        generators: Sequence[torch.Generator],
        settings: DiffusionSettings,
    ) -> np.ndarray:
        """Refine stage-1 images under predicted image embeddings, float32 (n, values).

        Guidance is against the zero embedding, with the empty caption on both sides. The adapter's scale is
        ``1 - text_share``. Arguments and errors are otherwise those of :meth:`guided_latents`.

        Returns
        -------
        ndarray of uint8, shape (n, S, S, 3)
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
        wanted = (len(initial), self.pipeline.image_encoder.config.projection_dim)
        if embeddings.shape != wanted:
            raise ValueError(
                f"{len(initial)} images need embeddings of shape {wanted}, got {embeddings.shape}"
            )
        self.pipeline.set_ip_adapter_scale(1 - settings.text_share)
        return self.guided_latents(initial, generators, settings, self._condition(embeddings))

    def _condition(self, embeddings: np.ndarray) -> dict[str, Any]:
        """Give what the UNet attends to, for the unguided half of the batch and then the guided one."""
        unet, rows = self.unet, 2 * len(embeddings)
        text = self.pipeline.encode_prompt("", unet.device, 1, do_classifier_free_guidance=False)[0]
        wanted = torch.from_numpy(np.ascontiguousarray(embeddings, np.float32)).to(unet.device, unet.dtype)
        both = torch.cat([torch.zeros_like(wanted), wanted])
        return {
            "encoder_hidden_states": text.to(unet.dtype).expand(rows, -1, -1),
            "added_cond_kwargs": {"image_embeds": [both[:, None]]},  # one adapter, one embedding per image
        }


def _check_adapter(file: Path, embedding_size: int, token_size: int) -> None:
    """Refuse adapters that diffusers would load as another kind; only the file's header is read."""
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
            f"{file}: projects embeddings of {columns} values to {rows}, but the image encoder in the "
            f"same folder gives {embedding_size}, and the UNet takes {TOKENS} tokens of {token_size}. "
            "Use the image encoder and the Stable Diffusion that the adapter was made for.",
            exit_code=ExitCode.BAD_DATA,
        )


class AdapterGuided(Generator):
    """Stable Diffusion with IP-Adapter: guided by one image embedding."""

    title = "Stable Diffusion"
    embedding_target = semantic_target = "clip_image"
    embedding_title = "IP-Adapter's image embedding"
    encoder_folder = IMAGE_ENCODER

    @classmethod
    def target_shapes(cls, folder: Path) -> dict[str, tuple[int, int]]:
        """Shape of the image embedding, as one token."""
        return {"clip_image": (1, vision_shape(folder / IMAGE_ENCODER, VIT_H14)[1])}

    @cached_property
    def model(self) -> IPAdapterDiffusion:
        """AutoKL, UNet, adapter and image encoder."""
        with fitting(self.title, self.batches.device):
            return IPAdapterDiffusion.load(self.folder, self.batches.device, self.dtype)

    @property
    def encoder(self) -> ClipTokens:
        """The adapter's image encoder."""
        return self.model.encoder

    def targets(
        self, images: np.ndarray, captions: Sequence[Sequence[str]], most: int
    ) -> dict[str, np.ndarray]:
        """CLIP's image embeddings; captions are not used."""
        work = Workload("CLIP-Vision", self.encoder_cost(), most)
        return {"clip_image": self.batches.run(work, len(images), lambda rows: self.embed(images[rows]))}

    def embed(self, images: np.ndarray) -> np.ndarray:
        """CLIP's image embedding as IP-Adapter takes it: projected, not normalised."""
        return self.encoder.image_embeddings(images)

    def refiner(
        self,
        initial: np.ndarray,
        conditions: Mapping[str, np.ndarray],
        generators: Sequence[torch.Generator],
        settings: DiffusionSettings,
    ) -> Callable[[slice], np.ndarray]:
        """Image-to-image guided by the predicted embedding."""
        embeddings = np.array(conditions["clip_image"])  # a copy: stored stages are read-only
        return lambda rows: self.model.image_to_image(
            initial[rows], embeddings[rows], generators[rows], settings
        )

    def cost(self) -> int:
        """Bytes of one image in the UNet's pass or AutoKL's decoder."""
        return self.model.cost()

    def canaries(self) -> dict[str, Callable[[Ask], None]]:
        """Ask image encoder and diffusion together: they are loaded together."""
        return {"diffusion": self._ask}

    def _ask(self, ask: Ask) -> None:
        model = self.model
        first = canaries.first_layer(self.encoder.vision)
        canaries.ask_for_features(ask, "image encoder", self.folder, (self.embed, first, CLIP_STD))
        embedding = canaries.tokens((1, self.shapes["clip_image"][1]))
        canaries.ask_for_image(
            ask,
            model.image_size,
            lambda start, draws: model.image_to_image(start, embedding, draws, canaries.SETTINGS),
        )


GENERATOR = AdapterGuided
