"""The very deep VAE (Child 2021, arXiv 2011.10650): its latents and its decoder.

Own implementation of the published architecture; module names are those of the published
checkpoints (openai/vdvae), so that their state dicts load strictly.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bidsapp.errors import AppError
from bidsapp.models._logistic import mixture_mean, mixture_sample
from bidsapp.models.devices import numerics, other_format
from bidsapp.models.vdvae_blocks import (
    Decoder,
    Encoder,
    VDVAEConfig,
    latent_sizes,
    parse_blocks,
    read_config,
)
from bidsapp.models.weights.checkpoints import load_strictly

__all__ = ["VDVAE", "VDVAEConfig", "load_vdvae", "parse_blocks", "read_config"]

#: Names of the weights, by preference: converted, as published.
NAMES = ("model.safetensors", "imagenet64-iter-1600000-model-ema.th")


class VDVAE(nn.Module):
    """Very deep VAE with the published names of its parts."""

    def __init__(self, config: VDVAEConfig) -> None:
        super().__init__()
        self.config = config
        #: run convolutions in this type (autocast) with sums in float32; None: float32 throughout
        self.half_type: torch.dtype | None = None
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.gain.device

    @property
    def n_blocks(self) -> int:
        """Number of top-down blocks."""
        return len(self.decoder.dec_blocks)

    def layer_sizes(self, n_layers: int | None = None) -> list[int]:
        """Count the latent values of each of the first ``n_layers`` blocks."""
        return latent_sizes(self.config)[:n_layers]

    def normalise(self, images: np.ndarray) -> Tensor:
        """uint8 (n, H, W, 3) at the model's size -> float32 (n, 3, H, W), normalised."""
        x = torch.from_numpy(np.array(images)).to(self.device).float()
        return ((x - self.config.shift) / self.config.scale).permute(0, 3, 1, 2)

    def _precision(self) -> AbstractContextManager[object]:
        if self.half_type is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.half_type)

    @torch.no_grad()
    def encode_latents(
        self,
        images: np.ndarray,
        n_layers: int = 31,
        *,
        sample: bool = False,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> np.ndarray:
        """Latents of the first ``n_layers`` top-down blocks; later blocks are not run.

        Parameters
        ----------
        images : ndarray of uint8, shape (n, H, W, 3)
            At the model's image size.
        sample : bool
            Draw from the posterior as the public Brain-Diffuser code does; take its mean otherwise.
        generator : torch.Generator or sequence of n torch.Generator, optional
            For ``sample``; on the CPU. With one per image, latents do not depend on the batch.

        Returns
        -------
        ndarray of float32, shape (n, sum(layer_sizes(n_layers)))
            Layer after layer, each flattened channels first.

        Raises
        ------
        ValueError
            If the images do not have the model's size and type, there are fewer blocks, or not as many
            generators as images.
        AppError
            If a latent is not finite.
        """
        self.check_images(images)
        if isinstance(generator, Sequence) and len(generator) != len(images):
            raise ValueError(f"{len(images)} images need as many generators, got {len(generator)}")
        if not 1 <= n_layers <= self.n_blocks:
            raise ValueError(
                f"cannot give latents of {n_layers} layers: the model has {self.n_blocks} blocks"
            )
        latents = []
        with self._precision():
            activations = self.encoder(self.normalise(images))
            streams = self.decoder.start(len(images))
            for block in self.decoder.blocks[:n_layers]:
                x = block.enter(streams)
                z, log_sigma = block.posterior_of(x, activations[block.base])
                if sample:
                    z = z + log_sigma.exp() * _normal(z, generator)
                _, _, x = block.prior_of(x)
                streams[block.base] = block.leave(x, z)
                latents.append(z.flatten(1).float())
        return self._finite(torch.cat(latents, 1), "latents").cpu().numpy()

    @torch.no_grad()
    def decode_latents(
        self,
        latents: np.ndarray,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        *,
        sample: bool = False,
        temperature: float = 1.0,
    ) -> np.ndarray:
        """Decode latents to images; blocks without given latents follow the prior.

        Parameters
        ----------
        latents : ndarray of float32, shape (n, sum(layer_sizes(k)))
            Of the first k blocks, as :meth:`encode_latents` returns them.
        generator : torch.Generator or sequence of n torch.Generator, optional
            On the CPU. With one per image, images do not depend on the batch. Not needed if nothing is
            drawn (all blocks given or ``temperature`` 0, and not ``sample``).
        sample : bool
            Draw each pixel from the output mixture; take the mixture's mean otherwise.
        temperature : float
            Of the prior in the blocks without given latents; 0 takes the prior's mean.

        Returns
        -------
        ndarray of uint8, shape (n, H, W, 3)

        Raises
        ------
        ValueError
            If the latents' width ends inside a block or beyond the last, or there are not as many
            generators as images.
        AppError
            If a pixel is not finite.
        """
        n_given = self._count_blocks(latents.shape[1])
        draws = sample or (n_given < self.n_blocks and temperature > 0)
        if draws and not isinstance(generator, torch.Generator):
            n_generators = len(generator) if generator is not None else 0
            if n_generators != len(latents):
                raise ValueError(f"{len(latents)} images need as many generators, got {n_generators}")
        given = torch.from_numpy(np.array(latents, dtype=np.float32)).to(self.device)
        with self._precision():
            streams = self.decoder.start(len(given))
            values = iter(torch.split(given, self.layer_sizes(n_given), dim=1))
            for index, block in enumerate(self.decoder.blocks):
                x = block.enter(streams)
                mean, log_sigma, x = block.prior_of(x)
                if index < n_given:
                    z = next(values).reshape(mean.shape).to(mean.dtype)
                elif temperature > 0:
                    z = mean + temperature * log_sigma.exp() * _normal(mean, generator)
                else:
                    z = mean
                streams[block.base] = block.leave(x, z)
            raw = self.decoder.finish(streams, self.config.image_size).float()
        raw = self._finite(raw, "pixels")
        if sample and isinstance(generator, Sequence):
            rows = [
                mixture_sample(r[None], self.config.n_mixtures, g)
                for r, g in zip(raw, generator, strict=True)
            ]
            pixels = torch.cat(rows)
        elif sample:
            assert isinstance(generator, torch.Generator)  # checked above
            pixels = mixture_sample(raw, self.config.n_mixtures, generator)
        else:
            pixels = mixture_mean(raw, self.config.n_mixtures)
        return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()

    def _count_blocks(self, width: int) -> int:
        """How many blocks have ``width`` latent values together."""
        total = 0
        for count, size in enumerate([0, *self.layer_sizes()]):
            total += size
            if total == width:
                return count
        raise ValueError(
            f"{width} latent values are not those of the first blocks, of sizes {self.layer_sizes()}"
        )

    def _finite(self, x: Tensor, what: str) -> Tensor:
        if not torch.isfinite(x).all():
            raise AppError(
                f"Stage 1 produced {what} that are not finite in {self.half_type or torch.float32} on "
                f"{self.device}. {other_format(self.half_type, self.device.type)}"
            )
        return x

    def check_images(self, images: np.ndarray) -> None:
        """Raise a ValueError unless images are uint8 and of the model's size."""
        side = self.config.image_size
        if images.dtype != np.uint8 or images.shape[1:] != (side, side, 3):
            raise ValueError(
                f"expected uint8 images of shape (n, {side}, {side}, 3), got {images.dtype} {images.shape}"
            )


def load_vdvae(folder: Path, device: str = "cpu", dtype: str = "auto") -> VDVAE:
    """Load a VDVAE, strictly, with the number formats of its device.

    The model is in evaluation mode, with float32 weights.

    Parameters
    ----------
    folder : Path
        Holds weights under one of :data:`NAMES`, and their ``config.json``; without one they are the
        published weights of ImageNet 64 x 64.
    dtype : str
        As :func:`~bidsapp.models.devices.numerics` takes it.

    Raises
    ------
    AppError
        Exit code 75 if there are no weights; 65 if they are damaged or do not match the configuration.
    """
    path = next((folder / name for name in NAMES if (folder / name).is_file()), folder / NAMES[-1])
    with torch.device("meta"):  # drawing random weights would take seconds
        model = VDVAE(read_config(folder))
    model = model.to_empty(device="cpu")
    load_strictly(model, path, prefix="module.")
    formats = numerics(device, dtype)
    model = model.to(device).eval()
    if formats.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.half_type = formats.vdvae_half
    return model


def _normal(like: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
    """Draw on the CPU, so that every device is given the same numbers."""
    if isinstance(generator, Sequence):
        rows = [torch.randn(like.shape[1:], generator=g, dtype=torch.float32) for g in generator]
        return torch.stack(rows).to(like)
    return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like)
