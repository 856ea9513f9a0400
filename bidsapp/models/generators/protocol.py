"""What a generator of stage 2 provides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import torch

from bidsapp.models import costs
from bidsapp.models.batching import Batches, Workload
from bidsapp.models.canaries import Ask
from bidsapp.models.clip import ClipTokens
from bidsapp.models.generators.latent_diffusion import DiffusionSettings
from bidsapp.models.weights.configurations import AUTOKL, UNET, read_configuration

#: Images or captions embedded at once where memory is not the limit.
EMBEDDED_AT_ONCE = 32


class Generator(ABC):
    """Computes the targets that guide it, and refines stage-1 images under their predictions.

    An instance loads each of its networks when it is first used.

    Parameters
    ----------
    folder : Path
        Holds the generator's files, in the layout of its repositories.
    batches : Batches
        Knows the device, and decides how many images go through a network at once.
    dtype : torch.dtype
        Of the weights.
    """

    #: The name of the generator in messages.
    title: ClassVar[str]
    #: Target whose first token is a stimulus's image embedding, and what reports call that embedding.
    embedding_target: ClassVar[str]
    embedding_title: ClassVar[str]
    #: Target that stimuli are clustered by, averaged over its tokens.
    semantic_target: ClassVar[str]
    #: Sub-folders of the UNet and of the image encoder.
    unet_folder: ClassVar[str] = "unet"
    encoder_folder: ClassVar[str] = "image_encoder"

    def __init__(self, folder: Path, batches: Batches, dtype: torch.dtype) -> None:
        self.folder, self.batches, self.dtype = folder, batches, dtype

    # ------------------------------------------------- from configuration files alone

    @classmethod
    @abstractmethod
    def target_shapes(cls, folder: Path) -> dict[str, tuple[int, int]]:
        """Tokens and values per token of each target other than the VDVAE's.

        Raises
        ------
        AppError
            Exit code 65 if a configuration file is damaged, 66 if it is missing.
        """

    @classmethod
    def image_side(cls, folder: Path) -> int:
        """Side of the reconstructions in pixels; errors as :meth:`target_shapes`."""
        unet, vae = cls._configurations(folder)
        return int(unet.sample_size * 2 ** (len(vae.block_out_channels) - 1))

    @classmethod
    def image_cost(cls, folder: Path, itemsize: int) -> int:
        """Bytes of one image while it is refined, with ``itemsize`` bytes per value."""
        return costs.latent_diffusion(*cls._configurations(folder), itemsize)

    @classmethod
    def _configurations(cls, folder: Path) -> tuple[SimpleNamespace, SimpleNamespace]:
        unet = read_configuration(folder / cls.unet_folder / "config.json", UNET)
        vae = read_configuration(folder / "vae" / "config.json", AUTOKL)
        return SimpleNamespace(**unet), SimpleNamespace(**vae)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """:meth:`target_shapes` of this generator's folder."""
        return self.target_shapes(self.folder)

    # ------------------------------------------------- targets

    @property
    @abstractmethod
    def encoder(self) -> ClipTokens:
        """The image encoder, with the text encoder where targets come from captions too."""

    @abstractmethod
    def targets(
        self, images: np.ndarray, captions: Sequence[Sequence[str]], most: int
    ) -> dict[str, np.ndarray]:
        """Compute the targets other than the VDVAE's, float32 (n, tokens * values) by name.

        ``images`` are uint8 (n, H, W, 3), each with its captions; ``most`` of them go through a network at
        once where memory is not the limit.
        """

    @abstractmethod
    def embed(self, images: np.ndarray) -> np.ndarray:
        """Embed a batch of uint8 images as :attr:`embedding_target` does, float32 (n, dims)."""

    def image_embeddings(self, images: np.ndarray) -> np.ndarray:
        """Embed any number of images; the same values as a stimulus's :attr:`embedding_columns`."""
        work = Workload("image embeddings", self.encoder_cost(), EMBEDDED_AT_ONCE)
        return self.batches.run(work, len(images), lambda rows: self.embed(images[rows]))

    def caption_embeddings(self, captions: Sequence[Sequence[str]]) -> np.ndarray | None:
        """Embed each image's captions in the space of its image embedding, averaged, float32 (n, dims).

        None if no text encoder shares the image encoder's space.
        """
        return None

    @property
    def embedding_columns(self) -> slice:
        """Columns of :attr:`embedding_target` that hold the image embedding."""
        return slice(0, self.shapes[self.embedding_target][1])

    def encoder_cost(self) -> int:
        """Bytes of one image in the image encoder."""
        vision = self.encoder.vision
        return costs.clip_vision(vision.config, vision.dtype.itemsize)

    # ------------------------------------------------- refinement

    @abstractmethod
    def refiner(
        self,
        initial: np.ndarray,
        conditions: Mapping[str, np.ndarray],
        generators: Sequence[torch.Generator],
        settings: DiffusionSettings,
    ) -> Callable[[slice], np.ndarray]:
        """Give the function that refines a batch.

        Parameters
        ----------
        initial : ndarray of uint8, shape (n, H, W, 3)
            Stage-1 images.
        conditions : mapping of str to ndarray, shapes (n, tokens * values)
            Predicted targets.
        generators : sequence of n torch.Generator
            One per image, on the CPU.

        Returns
        -------
        callable
            Takes the rows of a batch, returns uint8 reconstructions (rows, S, S, 3).
        """

    @abstractmethod
    def cost(self) -> int:
        """Bytes of one image while it is refined, not counting the weights."""

    # ------------------------------------------------- self-test

    @abstractmethod
    def canaries(self) -> dict[str, Callable[[Ask], None]]:
        """Give the questions that are asked before a run.

        One entry per set of weights that is loaded at a time, by its name in the log. The first loads
        :attr:`encoder`.
        """
