"""The models of one recipe, found, checked and loaded when first used."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from bidsapp.config import Recipe
from bidsapp.errors import AppError, ExitCode, Problem
from bidsapp.models import canaries, costs, weights
from bidsapp.models.batching import Batches
from bidsapp.models.clip import ClipTokens
from bidsapp.models.devices import choose_dtype, numerics
from bidsapp.models.evalnets import FeatureNetwork, load_networks
from bidsapp.models.ip_adapter import IPAdapterDiffusion
from bidsapp.models.latent_diffusion import DiffusionSettings
from bidsapp.models.protocol_networks import CLIP, NetworkUse, load_protocol_networks
from bidsapp.models.vdvae import VDVAE
from bidsapp.models.vdvae_files import load_vdvae
from bidsapp.models.verification import hash_files, unpublished, verify
from bidsapp.models.versatile_diffusion import VersatileDiffusion
from bidsapp.models.weights import EMBEDDED, models_root
from bidsapp.models.weights_lock import Lock
from bidsapp.seeds import seed_for

__all__ = ["EMBEDDED", "Models", "missing_models", "models_root", "resize"]

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
        folder = self.root / self.recipe.models.vdvae
        model = load_vdvae(folder, self.device, self.dtype)
        n_layers = min(4, model.n_blocks)
        picture = canaries.image(model.config.image_size)
        shape = (1, sum(model.layer_sizes(n_layers)))
        self._try("VDVAE", folder, lambda: model.encode_latents(picture, n_layers), shape)
        return model

    @cached_property
    def clip(self) -> ClipTokens:
        """The CLIP whose tokens guide Versatile Diffusion."""
        folder = self.root / self.recipe.models.diffusion
        clip = ClipTokens.load(folder, self.device, self.numerics.transformers)
        picture = canaries.image(clip.image_size)
        self._try("image encoder", folder, lambda: clip.vision_tokens(picture), (1, *clip.vision_shape))
        self._try("text encoder", folder, lambda: clip.text_tokens([canaries.CAPTION]), (1, *clip.text_shape))
        return clip

    @cached_property
    def diffusion(self) -> VersatileDiffusion:
        """The dual-guided latent diffusion of stage 2."""
        folder = self.root / self.recipe.models.diffusion
        model = VersatileDiffusion.load(
            folder, self.clip.vision_shape[0], self.device, self.numerics.transformers
        )
        seen, read = (canaries.tokens((1, *s)) for s in (self.clip.vision_shape, self.clip.text_shape))
        side = model.image_size

        def answer() -> np.ndarray:
            start, nothing = canaries.image(side), (np.zeros_like(seen), np.zeros_like(read))
            return model.image_to_image(start, seen, read, nothing, canaries.generators(), canaries.SETTINGS)

        self._try("diffusion", folder, answer, (1, side, side, 3))
        return model

    @cached_property
    def adapter(self) -> IPAdapterDiffusion:
        """Stable Diffusion with IP-Adapter, the other generator of stage 2."""
        folder = self.root / self.recipe.models.diffusion
        model = IPAdapterDiffusion.load(folder, self.device, self.numerics.transformers)
        side, embedding = model.image_size, canaries.tokens((1, model.embedding_size))

        def answer() -> np.ndarray:
            return model.image_to_image(
                canaries.image(side), embedding, canaries.generators(), canaries.SETTINGS
            )

        self._try("diffusion", folder, answer, (1, side, side, 3))
        return model

    @cached_property
    def networks(self) -> dict[str, FeatureNetwork]:
        """The judging networks: the protocol's, or those that are installed."""
        if not self.uses:
            return load_networks(self.recipe.metrics.networks, self.clip, self.device, self.batches)
        clip = self._judging_clip() if any(use.architecture == CLIP for use in self.uses.values()) else None
        networks = load_protocol_networks(
            self.uses, self.evaluation, clip_vision=clip, device=self.device, batches=self.batches
        )
        picture = canaries.image(64)
        for name, network in networks.items():
            features = network(picture)
            where = self.evaluation / self.uses[name].file
            self._try(name, where, lambda f=features: f, (1, features.shape[1]))  # type: ignore[misc]
        return networks

    def _judging_clip(self) -> nn.Module:
        """CLIP ViT-L/14's image encoder: the generator's own, or one beside the other networks."""
        if weights.brings_clip(self.recipe):
            model, where = self.clip.vision, self.root / self.recipe.models.diffusion / "image_encoder"
        else:
            from transformers import CLIPVisionModelWithProjection

            from bidsapp.models.checkpoints import load_component

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
        return model  # type: ignore[no-any-return]

    def _try(self, what: str, where: Path, answer: Callable[[], np.ndarray], shape: tuple[int, ...]) -> None:
        """Run a model's canary; weights of the package have no lock to compare with."""
        owned = where.is_relative_to(EMBEDDED)
        lock = None if owned else self._lock(where)
        folder = where.name if owned or lock is None else where.relative_to(lock.root).parts[0]
        canaries.check(f"{folder}#{what}", where, answer, shape, self.device, lock, self.dtype)

    def _lock(self, where: Path) -> Lock:
        return Lock.read(self.evaluation.parent if where.is_relative_to(self.evaluation) else self.root)

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
        judges = judging_files(self.recipe, self.uses)
        hashes = self._hashes | verify(judges, self.evaluation.parent)
        self.unpublished = unpublished(weights.generative_files(self.recipe) + judges, hashes)
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
        makers = {"versatile-diffusion": self._by_tokens, "ip-adapter": self._by_embedding}
        run = makers[section.kind](initial, conditions, generators, settings)
        model = self.diffusion if section.kind == "versatile-diffusion" else self.adapter
        return self.batches.run(
            "stage 2, diffusion",
            len(initial),
            run,
            cost=model.cost(),
            most=section.batch,
            generators=generators,
            show=True,
        )

    def _by_tokens(
        self,
        initial: np.ndarray,
        conditions: Mapping[str, np.ndarray],
        generators: Any,
        settings: DiffusionSettings,
    ) -> Callable[[slice], np.ndarray]:
        nothing = (self.clip.unconditional_vision(), self.clip.unconditional_text())
        seen = conditions["clip_vision"].reshape(len(initial), *self.clip.vision_shape)
        read = conditions["clip_text"].reshape(len(initial), *self.clip.text_shape)
        return lambda rows: self.diffusion.image_to_image(
            initial[rows], seen[rows], read[rows], nothing, generators[rows], settings
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


def judging_files(recipe: Recipe, uses: Mapping[str, NetworkUse]) -> list[weights.Needed]:
    """Weights of the networks of a published protocol."""
    files = sorted({use.file for use in uses.values() if use.file})
    clip = any(use.architecture == CLIP for use in uses.values())
    return weights.evaluation_files(recipe, files, clip)


def needed_weights(recipe: Recipe, uses: Mapping[str, NetworkUse] | None = None) -> list[weights.Needed]:
    """Weights to be fetched for a recipe: those of its models, unless in the package, and its judges'."""
    judges = judging_files(recipe, uses or {})
    return judges if recipe.models.location == "package" else weights.generative_files(recipe) + judges


def missing_models(
    recipe: Recipe,
    models_dir: Path | None,
    uses: Mapping[str, NetworkUse] | None = None,
    asked: str | None = None,
) -> list[Problem]:
    """Weights that are not there; looked for before any computing.

    Parameters
    ----------
    recipe : Recipe
    models_dir : Path or None
    uses : mapping of str to NetworkUse, optional
        Judging networks of a published protocol.
    asked : str, optional
        How the user named the recipe, if not by its name.
    """
    folder = models_dir or weights.default_models_dir()
    words = ("--recipe", quote(asked or recipe.name), "--models-dir", quote(str(folder)))
    command = " ".join(("bidsapp-recon", "fetch-models", *words))
    mend = f"run: {command} (or give the folder that holds them with --models-dir)"
    problems = weights.missing(needed_weights(recipe, uses), folder, mend)
    if recipe.models.location == "package":
        again = "install the package again: its embedded models are incomplete"
        problems += weights.missing(weights.generative_files(recipe), EMBEDDED, again)
    return problems
