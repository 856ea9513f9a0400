"""The models of one recipe, verified, and loaded when first used."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from bidsapp.errors import AppError, ExitCode
from bidsapp.metrics.protocols import NetworkUse
from bidsapp.models import costs
from bidsapp.models.batching import Batches, Workload, fitting
from bidsapp.models.devices import choose_dtype, numerics
from bidsapp.models.generators import generator_class
from bidsapp.models.generators.latent_diffusion import DiffusionSettings
from bidsapp.models.generators.protocol import Generator
from bidsapp.models.judges.evalnets import FeatureNetwork, load_networks
from bidsapp.models.judges.protocol_networks import CLIP, load_protocol_networks
from bidsapp.models.vdvae import VDVAE, load_vdvae
from bidsapp.models.weights import registry as weights
from bidsapp.models.weights.checkpoints import load_component
from bidsapp.models.weights.configurations import VIT_L14
from bidsapp.models.weights.registry import EMBEDDED, models_root
from bidsapp.models.weights.verification import hash_files, record, unpublished, verify
from bidsapp.recipes import Recipe
from bidsapp.seeds import seed_for

__all__ = ["EMBEDDED", "Models", "models_root", "resize"]

LOG = logging.getLogger("bidsapp")
#: Marks of CLIP ViT-L/14, which the published protocols use, in a configuration.
_VIT_L14 = {"hidden_size": 1024, "patch_size": 14, "image_size": 224, "projection_dim": 768}


class Models:
    """VDVAE, generator of stage 2, and evaluation networks of a recipe.

    Parameters
    ----------
    models_dir : Path or None
        Where downloaded weights are; not used by recipes whose weights are in the package.
    device : str
        As :func:`bidsapp.models.devices.choose_device` returns it.
    uses : mapping of str to NetworkUse, optional
        Evaluation networks of a published protocol, by name; without it those of ``metrics.networks``
        that come with the package.
    dtype : str
        Number format of the networks, as :func:`bidsapp.models.devices.choose_dtype` takes it.
    memory : int, optional
        Bytes that the run should stay under (``--mem``); batches are made to fit.

    Attributes
    ----------
    unpublished : list of str
        Files that differ from the published ones, where those are known; set by :meth:`verify`.
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

    # ------------------------------------------------- loading

    @cached_property
    def vdvae(self) -> VDVAE:
        """The VDVAE of stage 1."""
        return self.load_vdvae()

    @cached_property
    def generator(self) -> Generator:
        """The generator of stage 2."""
        return self.new_generator()

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
                f"{folder}: this VDVAE has {model.n_blocks} blocks, but the recipe predicts the latents of "
                f"{layers}. Use the weights that the recipe is for, or lower vdvae.layers in it.",
                exit_code=ExitCode.BAD_DATA,
            )
        return model

    def new_generator(self) -> Generator:
        """Make the recipe's generator, none of its networks loaded; :attr:`generator` keeps it."""
        make = generator_class(self.recipe.diffusion.kind)
        return make(self.root / self.recipe.models.diffusion, self.batches, self.numerics.transformers)

    @cached_property
    def networks(self) -> dict[str, FeatureNetwork]:
        """The evaluation networks: the protocol's, or those that are installed."""
        if not self.uses:
            names = self.recipe.metrics.networks
            clip = self.generator.encoder if "small_clip" in names else None
            return load_networks(names, clip, self.device, self.batches)
        return self.judges(self.uses)

    def judges(self, uses: Mapping[str, NetworkUse]) -> dict[str, FeatureNetwork]:
        """Load evaluation networks of a published protocol, without those whose weights are missing."""
        clip = self._protocol_clip if any(use.architecture == CLIP for use in uses.values()) else None
        with fitting("the evaluation networks", self.device):
            return load_protocol_networks(
                uses, self.evaluation, clip_vision=clip, device=self.device, batches=self.batches
            )

    @cached_property
    def _protocol_clip(self) -> nn.Module:
        return self.protocol_clip(self.generator if weights.brings_clip(self.recipe) else None)

    def protocol_clip(self, generator: Generator | None = None) -> nn.Module:
        """Give CLIP ViT-L/14's image encoder: that of a generator that has it, or the evaluation folder's.

        Raises
        ------
        AppError
            Exit code 65 if it is another CLIP.
        """
        if generator is not None:
            where = generator.folder / generator.encoder_folder
            model: Any = generator.encoder.vision
        else:
            from transformers import CLIPVisionModelWithProjection

            where = self.evaluation / weights.CLIP_NETWORK
            model = load_component(
                CLIPVisionModelWithProjection, where, VIT_L14, dtype=self.numerics.transformers
            )
        other = {k: v for k, v in _VIT_L14.items() if getattr(model.config, k) != v}
        if other:
            raise AppError(
                f"{where}: the protocol {self.recipe.metrics.protocol!r} needs CLIP ViT-L/14, but this CLIP "
                f"is another (not {', '.join(f'{k} {v}' for k, v in other.items())}). Remove 'clip' from "
                "metrics.networks, or fetch the published weights.",
                exit_code=ExitCode.BAD_DATA,
            )
        vision: nn.Module = model
        return vision

    # ------------------------------------------------- verification

    @cached_property
    def digest(self) -> str:
        """Hash of all weights and configurations of the VDVAE and the generator.

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
        """Hash of the weights and configurations in a folder of the models folder, or of one file.

        Raises
        ------
        ValueError
            If nothing was hashed there.
        """
        hashes = self._hashes | self._evaluation_hashes
        found = sorted(name for name in hashes if name == place or name.startswith(f"{place}/"))
        if not found:
            raise ValueError(f"no weights of {place} were hashed")
        return hashlib.sha256("".join(n + hashes[n] for n in found).encode()).hexdigest()

    @cached_property
    def _evaluation_hashes(self) -> dict[str, str]:
        return verify(weights.evaluation_files(self.recipe, self.uses), self.evaluation.parent)

    @cached_property
    def _hashes(self) -> dict[str, str]:
        required = weights.generative_files(self.recipe)
        return hash_files(required, self.root) if self.root == EMBEDDED else verify(required, self.root)

    def verify(self) -> None:
        """Compare all weights with what is recorded, before anything is computed.

        Raises
        ------
        AppError
            Exit code 65, naming the files that differ.
        """
        files = weights.generative_files(self.recipe) + weights.evaluation_files(self.recipe, self.uses)
        self.unpublished = unpublished(files, self._hashes | self._evaluation_hashes)
        for name in self.unpublished:
            LOG.warning("%s is not the published file", self.evaluation.parent / name)

    def record_weights(self) -> None:
        """Record the hashes of weights that have no record; call this once they passed their self-test."""
        if self.root != EMBEDDED:
            record(weights.generative_files(self.recipe), self.root, self._hashes)
        required = weights.evaluation_files(self.recipe, self.uses)
        record(required, self.evaluation.parent, self._evaluation_hashes)

    # ------------------------------------------------- use

    def targets(self, images: np.ndarray, captions: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
        """Compute what the ridge models predict: latents of the VDVAE, and what guides stage 2.

        ``images`` are uint8 (n, H, W, 3), each with its captions; targets are float32 (n, dims) by name.
        """
        section = self.recipe.vdvae
        small = resize(images, self.vdvae.config.image_size)
        generators = _generators_of(small)
        encode = partial(self.vdvae.encode_latents, n_layers=section.layers, sample=section.sample_latents)
        latents = self.batches.run(
            Workload("VDVAE encode", costs.vdvae(self.vdvae.config), section.batch),
            len(images),
            lambda rows: encode(small[rows], generator=generators[rows]),
            generators=generators,
        )
        return {"vdvae": latents, **self.generator.targets(images, captions, section.batch)}

    def first_stage(self, latents: np.ndarray, generators: Sequence[torch.Generator]) -> np.ndarray:
        """Stage 1: VDVAE images of predicted latents, uint8 (n, S, S, 3)."""
        section = self.recipe.vdvae
        decode = partial(
            self.vdvae.decode_latents, sample=section.sample_pixels, temperature=section.temperature
        )
        return self.batches.run(
            Workload("stage 1, VDVAE decode", costs.vdvae(self.vdvae.config), section.batch),
            len(latents),
            lambda rows: decode(latents[rows], generators[rows]),
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
        """Stage 2: refine stage-1 images under predicted conditions, uint8 (n, S, S, 3).

        ``conditions`` are the predicted targets other than the VDVAE's, (n, dims) by name. ``at_once``
        images go through the networks together, by default as many as :meth:`second_stage_at_once` gives.
        """
        section = self.recipe.diffusion
        settings = DiffusionSettings(**section.model_dump(exclude={"kind", "batch"}))
        return self.batches.run(
            self._refinement,
            len(initial),
            self.generator.refiner(initial, conditions, generators, settings),
            size=at_once,
            generators=generators,
        )

    @property
    def _refinement(self) -> Workload:
        return Workload("stage 2, diffusion", self.generator.cost(), self.recipe.diffusion.batch)

    def second_stage_at_once(self) -> int:
        """Choose how many images go through stage 2 together, by the memory that is free now."""
        return self.batches.size(self._refinement)


def _generators_of(images: np.ndarray) -> list[torch.Generator]:
    """Seed a random generator from each image's pixels, so that its latents depend on nothing else."""
    digests = (hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest() for image in images)
    return [torch.Generator().manual_seed(seed_for(0, "posterior", digest)) for digest in digests]


def resize(images: np.ndarray, side: int) -> np.ndarray:
    """PIL bilinear to a square, as the paper's code does for the VDVAE; uint8 (n, side, side, 3)."""
    rows = [np.asarray(Image.fromarray(im).resize((side, side), Image.Resampling.BILINEAR)) for im in images]
    return np.stack(rows)
