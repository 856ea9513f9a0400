"""The models of one recipe, found, checked and loaded when first used."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from bidsapp.config import Recipe
from bidsapp.errors import AppError, ExitCode
from bidsapp.models import costs
from bidsapp.models.batching import Batches, fitting
from bidsapp.models.clip import ClipTokens, token_shapes
from bidsapp.models.devices import choose_dtype, numerics
from bidsapp.models.generators.ip_adapter import IPAdapterDiffusion
from bidsapp.models.generators.latent_diffusion import DiffusionSettings
from bidsapp.models.generators.versatile_diffusion import VersatileDiffusion
from bidsapp.models.judges.evalnets import FeatureNetwork, load_networks
from bidsapp.models.judges.protocol_networks import CLIP, NetworkUse, load_protocol_networks
from bidsapp.models.vdvae import VDVAE
from bidsapp.models.vdvae_files import load_vdvae
from bidsapp.models.weights import registry as weights
from bidsapp.models.weights.registry import EMBEDDED, models_root
from bidsapp.models.weights.requirements import judging_files
from bidsapp.models.weights.verification import hash_files, unpublished, verify
from bidsapp.seeds import seed_for

__all__ = ["EMBEDDED", "Models", "models_root", "resize"]

LOG = logging.getLogger("bidsapp")
#: What tells CLIP ViT-L/14 in a configuration, which the published protocols judge with.
_VIT_L14 = {"hidden_size": 1024, "patch_size": 14, "image_size": 224, "projection_dim": 768}


class Models:
    """VDVAE, CLIP tokens, latent diffusion and judging networks of a recipe.

    Parameters
    ----------
    recipe : Recipe
    models_dir : Path or None
        Where downloaded weights are; not used by recipes whose weights are in the package.
    device : str
        As :func:`bidsapp.models.devices.choose_device` returns it.
    uses : mapping of str to NetworkUse, optional
        Judging networks of a published protocol, by name; without it those of ``metrics.networks``
        that come with the package.
    dtype : str
        Number format of the networks, as :func:`bidsapp.models.devices.choose_dtype` takes it.
    memory : int, optional
        Bytes that the run is to stay under (``--mem``); batches are made to fit.

    Attributes
    ----------
    unpublished : list of str
        Files that are not the published ones, where those are known; found by :meth:`verify`.
    """

    def __init__(
        self,
        recipe: Recipe,
        models_dir: Path | None,
        device: str,
        uses: Mapping[str, NetworkUse] | None = None,
        dtype: str = "auto",
        memory: int | None = None,
    ) -> None:
        self.recipe, self.device, self.uses = recipe, device, dict(uses or {})
        self.unpublished: list[str] = []
        self.dtype = choose_dtype(dtype, device)
        self.numerics = numerics(device, self.dtype)
        self.batches = Batches(device, memory)
        self.root = models_root(recipe, models_dir)
        self.evaluation = (models_dir or weights.default_models_dir()) / weights.EVALUATION

    @cached_property
    def vdvae(self) -> VDVAE:
        """The VDVAE of stage 1."""
        return self.load_vdvae()

    @cached_property
    def clip(self) -> ClipTokens:
        """The CLIP whose tokens guide Versatile Diffusion."""
        return self.load_clip()

    @cached_property
    def diffusion(self) -> VersatileDiffusion:
        """The dual-guided latent diffusion of stage 2."""
        return self.load_diffusion()

    @cached_property
    def adapter(self) -> IPAdapterDiffusion:
        """Stable Diffusion with IP-Adapter, the other generator of stage 2."""
        return self.load_adapter()

    @cached_property
    def networks(self) -> dict[str, FeatureNetwork]:
        """The judging networks: the protocol's, or those that are installed."""
        if not self.uses:
            names = self.recipe.metrics.networks
            clip_here = self.clip if "small_clip" in names else None
            return load_networks(names, clip_here, self.device, self.batches)
        return self.judges(self.uses)

    def judges(self, uses: Mapping[str, NetworkUse]) -> dict[str, FeatureNetwork]:
        """Load judging networks of a published protocol; those whose weights are not here are left out."""
        clip = self._judging_clip if any(use.architecture == CLIP for use in uses.values()) else None
        with fitting("the judging networks", self.device):
            return load_protocol_networks(
                uses, self.evaluation, clip_vision=clip, device=self.device, batches=self.batches
            )

    @cached_property
    def _judging_clip(self) -> nn.Module:
        return self.judging_clip(self.clip.vision if weights.brings_clip(self.recipe) else None)

    def load_vdvae(self) -> VDVAE:
        """Load the VDVAE; :attr:`vdvae` keeps it.

        Raises
        ------
        AppError
            Exit code 65 if it has fewer blocks than the recipe has layers.
        """
        folder, layers = self.root / self.recipe.models.vdvae, self.recipe.vdvae.layers
        with fitting("the VDVAE", self.device):
            model = load_vdvae(folder, self.device, self.dtype)
        if layers > model.n_blocks:
            raise AppError(
                f"{folder}: this VDVAE has {model.n_blocks} blocks, and the recipe predicts the latents of "
                f"{layers}. Give the weights that the recipe is for, or lower vdvae.layers in it.",
                exit_code=ExitCode.BAD_DATA,
            )
        return model

    def load_clip(self) -> ClipTokens:
        """Load the CLIP that guides; :attr:`clip` keeps it."""
        with fitting("CLIP", self.device):
            return ClipTokens.load(
                self.root / self.recipe.models.diffusion, self.device, self.numerics.transformers
            )

    def load_diffusion(self) -> VersatileDiffusion:
        """Load Versatile Diffusion; :attr:`diffusion` keeps it."""
        folder = self.root / self.recipe.models.diffusion
        (n_vision, _), _ = token_shapes(folder)
        with fitting("Versatile Diffusion", self.device):
            return VersatileDiffusion.load(folder, n_vision, self.device, self.numerics.transformers)

    def load_adapter(self) -> IPAdapterDiffusion:
        """Load Stable Diffusion with IP-Adapter; :attr:`adapter` keeps it."""
        with fitting("Stable Diffusion", self.device):
            return IPAdapterDiffusion.load(
                self.root / self.recipe.models.diffusion, self.device, self.numerics.transformers
            )

    def judging_clip(self, own: nn.Module | None = None) -> nn.Module:
        """Give CLIP ViT-L/14's image encoder: the generator's own, or one beside the other networks.

        Parameters
        ----------
        own : transformers CLIPVisionModelWithProjection, optional
            The generator's, where that is the one that judges.

        Raises
        ------
        AppError
            Exit code 65 if it is another CLIP.
        """
        if own is not None:
            model: Any = own
            where = self.root / self.recipe.models.diffusion / "image_encoder"
        else:
            from transformers import CLIPVisionModelWithProjection

            from bidsapp.models.weights.checkpoints import load_component

            where = self.evaluation / weights.CLIP_NETWORK
            model = load_component(CLIPVisionModelWithProjection, where, dtype=self.numerics.transformers)
        other = {k: v for k, v in _VIT_L14.items() if getattr(model.config, k) != v}
        if other:
            raise AppError(
                f"{where}: the protocol {self.recipe.metrics.protocol!r} judges with CLIP ViT-L/14, and this "
                f"is another (not {', '.join(f'{k} {v}' for k, v in other.items())}). Leave 'clip' out of "
                "metrics.networks, or fetch the published weights.",
                exit_code=ExitCode.BAD_DATA,
            )
        vision: nn.Module = model
        return vision

    @cached_property
    def digest(self) -> str:
        """Hash of all weights and configurations of the generative models.

        Raises
        ------
        AppError
            Exit code 65 if a file is not the one that was fetched.
        """
        total = hashlib.sha256()
        for name in sorted(self._hashes):
            total.update(name.encode())
            total.update(bytes.fromhex(self._hashes[name]))
        return total.hexdigest()

    def digest_of(self, place: str) -> str:
        """Hash of the weights and configurations in a folder of the models, or of one file.

        Parameters
        ----------
        place : str
            Path in the models folder.

        Raises
        ------
        ValueError
            If there is nothing.
        """
        hashes = self._hashes | self._judges
        there = sorted(name for name in hashes if name == place or name.startswith(f"{place}/"))
        if not there:
            raise ValueError(f"no weights of {place} were hashed")
        return hashlib.sha256("".join(n + hashes[n] for n in there).encode()).hexdigest()

    @cached_property
    def _judges(self) -> dict[str, str]:
        return verify(judging_files(self.recipe, self.uses), self.evaluation.parent)

    @cached_property
    def _hashes(self) -> dict[str, str]:
        needed = weights.generative_files(self.recipe)
        return hash_files(needed, self.root) if self.root == EMBEDDED else verify(needed, self.root)

    def verify(self) -> None:
        """Compare all weights with what is recorded, before anything is computed.

        Raises
        ------
        AppError
            Exit code 65, naming the files that differ.
        """
        files = weights.generative_files(self.recipe) + judging_files(self.recipe, self.uses)
        self.unpublished = unpublished(files, self._hashes | self._judges)
        for name in self.unpublished:
            LOG.warning("%s is not the published file", self.evaluation.parent / name)

    def targets(self, images: np.ndarray, captions: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
        """Compute what the ridge models predict: latents of the VDVAE, and what guides stage 2.

        Parameters
        ----------
        images : ndarray of uint8, shape (n, H, W, 3)
        captions : sequence of n sequences of str

        Returns
        -------
        dict of ndarray of float32, shapes (n, dims)
        """
        section, n = self.recipe.vdvae, len(images)
        small = resize(images, self.vdvae.config.image_size)
        generators = _generators_of(small)
        encode = partial(self.vdvae.encode_latents, n_layers=section.layers, sample=section.sample_latents)

        def run(what: str, call: Callable[[slice], np.ndarray], cost: int, **options: Any) -> np.ndarray:
            return self.batches.run(what, n, call, cost=cost, most=section.batch, **options)

        made = {
            "vdvae": run(
                "VDVAE encode",
                lambda rows: encode(small[rows], generator=generators[rows]),
                costs.vdvae(self.vdvae.config),
                generators=generators,
            )
        }
        if self.recipe.diffusion.kind == "ip-adapter":
            encoder = self.adapter.pipeline.image_encoder
            cost = costs.clip_vision(encoder.config, encoder.dtype.itemsize)
            made["clip_image"] = run(
                "CLIP-Vision", lambda rows: self.adapter.image_embeddings(images[rows]), cost
            )
            return made
        clip = self.clip
        cost = costs.clip_vision(clip.vision.config, clip.vision.dtype.itemsize)
        made["clip_vision"] = run("CLIP-Vision", lambda rows: clip.vision_tokens(images[rows]), cost)
        cost = costs.clip_text(clip.text.config, clip.text.dtype.itemsize) * max(map(len, captions))
        made["clip_text"] = run("CLIP-Text", lambda rows: clip.mean_text_tokens(captions[rows]), cost)
        return {name: rows.reshape(n, -1) for name, rows in made.items()}

    def first_stage(self, latents: np.ndarray, generators: Sequence[torch.Generator]) -> np.ndarray:
        """Stage 1: VDVAE images of predicted latents, uint8 (n, S, S, 3)."""
        section = self.recipe.vdvae

        def decode(rows: slice) -> np.ndarray:
            return self.vdvae.decode_latents(
                latents[rows],
                generators[rows],
                sample=section.sample_pixels,
                temperature=section.temperature,
            )

        return self.batches.run(
            "stage 1, VDVAE decode",
            len(latents),
            decode,
            cost=costs.vdvae(self.vdvae.config),
            most=section.batch,
            generators=generators,
            show=True,
        )

    def second_stage(
        self,
        initial: np.ndarray,
        conditions: Mapping[str, np.ndarray],
        generators: Sequence[torch.Generator],
        at_once: int | None = None,
    ) -> np.ndarray:
        """Stage 2: latent diffusion from first-stage images under predicted conditions, uint8 (n, S, S, 3).

        ``conditions`` are the predicted targets beside the VDVAE's, (n, dims) by target name; ``at_once``
        images go through the networks together, by default as many as :meth:`second_stage_at_once` says.
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
        makers = {"versatile-diffusion": self._by_tokens, "ip-adapter": self._by_embedding}
        run = makers[section.kind](initial, conditions, generators, settings)
        return self.batches.run(
            "stage 2, diffusion",
            len(initial),
            run,
            cost=self._generator.cost(),
            most=section.batch,
            size=at_once,
            generators=generators,
        )

    @property
    def _generator(self) -> VersatileDiffusion | IPAdapterDiffusion:
        return self.diffusion if self.recipe.diffusion.kind == "versatile-diffusion" else self.adapter

    def second_stage_at_once(self) -> int:
        """Choose how many images go through stage 2 together, by the memory that is free now."""
        return self.batches.size(self._generator.cost(), self.recipe.diffusion.batch)

    @cached_property
    def _nothing(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of no image and no caption, which guidance leads away from."""
        return self.clip.unconditional_vision(), self.clip.unconditional_text()

    def _by_tokens(
        self,
        initial: np.ndarray,
        conditions: Mapping[str, np.ndarray],
        generators: Any,
        settings: DiffusionSettings,
    ) -> Callable[[slice], np.ndarray]:
        seen = conditions["clip_vision"].reshape(len(initial), *self.clip.vision_shape)
        read = conditions["clip_text"].reshape(len(initial), *self.clip.text_shape)
        return lambda rows: self.diffusion.image_to_image(
            initial[rows], seen[rows], read[rows], self._nothing, generators[rows], settings
        )

    def _by_embedding(
        self,
        initial: np.ndarray,
        conditions: Mapping[str, np.ndarray],
        generators: Any,
        settings: DiffusionSettings,
    ) -> Callable[[slice], np.ndarray]:
        embeddings = np.array(conditions["clip_image"])  # its own: the stages keep theirs read-only
        return lambda rows: self.adapter.image_to_image(
            initial[rows], embeddings[rows], generators[rows], settings
        )


def _generators_of(images: np.ndarray) -> list[torch.Generator]:
    """Give each image a generator made of its pixels, so that its latents depend on nothing else."""
    digests = (hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest() for image in images)
    return [torch.Generator().manual_seed(seed_for(0, "posterior", digest)) for digest in digests]


def resize(images: np.ndarray, side: int) -> np.ndarray:
    """PIL bilinear to a square, as the paper's code does for the VDVAE; uint8 (n, side, side, 3)."""
    rows = [np.asarray(Image.fromarray(im).resize((side, side), Image.Resampling.BILINEAR)) for im in images]
    return np.stack(rows)
