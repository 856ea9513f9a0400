"""The very deep VAE (Child 2021, arXiv 2011.10650): its latents and its decoder.

Own implementation of the published architecture; module names are those of the published
checkpoints (openai/vdvae), so that their state dicts load strictly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bidsapp.models._logistic import mixture_mean, mixture_sample, negative_log_likelihood


@dataclass(frozen=True)
class VDVAEConfig:
    """Shape of a VDVAE; block strings are the published ones (``64x11``, ``64d2``, ``4m1``)."""

    image_size: int
    enc_blocks: str
    dec_blocks: str
    width: int
    zdim: int
    bottleneck: float = 0.25
    n_mixtures: int = 10
    no_bias_above: int = 64
    #: input normalisation: (pixel - shift) / scale
    shift: float = 115.92961967
    scale: float = 69.37404


@dataclass(frozen=True)
class _BlockSpec:
    resolution: int
    mixin: int | None = None
    down_rate: int | None = None


def parse_blocks(text: str) -> list[_BlockSpec]:
    """Parse a block string: ``64x11`` eleven blocks at 64, ``64d2`` pool by 2, ``4m1`` mix in from 1.

    Raises
    ------
    ValueError
        If an item is none of these, or holds a number below one.
    """
    specs: list[_BlockSpec] = []
    for item in text.split(","):
        item = item.strip()
        for mark in "xdm":
            if mark in item:
                left, right = (int(part) for part in item.split(mark))
                break
        else:
            mark, left, right = "x", int(item), 1
        if left < 1 or right < 1:
            raise ValueError(f"the numbers of a block string are at least 1, got {item!r}")
        if mark == "x":
            specs += [_BlockSpec(left)] * right
        elif mark == "d":
            specs.append(_BlockSpec(left, down_rate=right))
        else:
            specs.append(_BlockSpec(left, mixin=right))
    return specs


class Block(nn.Module):
    """Bottleneck block: four convolutions after GELUs, then an optional pooling."""

    def __init__(
        self, n_in: int, n_mid: int, n_out: int, *, use_3x3: bool, residual: bool, down: int | None = None
    ):
        super().__init__()
        kernel = 3 if use_3x3 else 1
        self.residual, self.down = residual, down
        self.c1 = nn.Conv2d(n_in, n_mid, 1)
        self.c2 = nn.Conv2d(n_mid, n_mid, kernel, padding=kernel // 2)
        self.c3 = nn.Conv2d(n_mid, n_mid, kernel, padding=kernel // 2)
        self.c4 = nn.Conv2d(n_mid, n_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block on (n, n_in, H, W)."""
        y = self.c1(F.gelu(x))
        y = self.c2(F.gelu(y))
        y = self.c3(F.gelu(y))
        y = self.c4(F.gelu(y))
        if self.residual:
            y = x + y
        return F.avg_pool2d(y, self.down) if self.down else y


class Encoder(nn.Module):
    """Bottom-up path: the last activation at each resolution."""

    def __init__(self, config: VDVAEConfig) -> None:
        super().__init__()
        middle = int(config.width * config.bottleneck)
        self.in_conv = nn.Conv2d(3, config.width, 3, padding=1)
        self.enc_blocks = nn.ModuleList(
            Block(
                config.width, middle, config.width, use_3x3=s.resolution > 2, residual=True, down=s.down_rate
            )
            for s in parse_blocks(config.enc_blocks)
        )

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        """Activations by resolution, of normalised images (n, 3, H, W)."""
        x = self.in_conv(x)
        activations = {x.shape[2]: x}
        for block in self.enc_blocks:
            x = block(x)
            activations[x.shape[2]] = x
        return activations


class DecBlock(nn.Module):
    """Top-down block: posterior, prior, and the latent's way into the stream."""

    def __init__(self, config: VDVAEConfig, spec: _BlockSpec) -> None:
        super().__init__()
        width, middle, use_3x3 = config.width, int(config.width * config.bottleneck), spec.resolution > 2
        self.base, self.mixin, self.zdim = spec.resolution, spec.mixin, config.zdim
        self.enc = Block(2 * width, middle, 2 * config.zdim, use_3x3=use_3x3, residual=False)
        self.prior = Block(width, middle, 2 * config.zdim + width, use_3x3=use_3x3, residual=False)
        self.z_proj = nn.Conv2d(config.zdim, width, 1)
        self.resnet = Block(width, middle, width, use_3x3=use_3x3, residual=True)

    def enter(self, streams: dict[int, Tensor]) -> Tensor:
        """Give the stream at this block's resolution, with the coarser one mixed in."""
        x = streams[self.base]
        if self.mixin is not None:
            x = x + F.interpolate(streams[self.mixin], scale_factor=self.base // self.mixin)
        return x

    def prior_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prior mean and log sigma, and the stream with the prior's features added."""
        mean, log_sigma, features = self.prior(x).split([self.zdim, self.zdim, x.shape[1]], dim=1)
        return mean, log_sigma, x + features

    def posterior_of(self, x: Tensor, activation: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log sigma."""
        mean, log_sigma = self.enc(torch.cat([x, activation], 1)).chunk(2, dim=1)
        return mean, log_sigma

    def leave(self, x: Tensor, z: Tensor) -> Tensor:
        """Give the stream after the latent has entered."""
        left: Tensor = self.resnet(x + self.z_proj(z))
        return left


class _OutNet(nn.Module):
    def __init__(self, config: VDVAEConfig) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(config.width, 10 * config.n_mixtures, 1)


class Decoder(nn.Module):
    """Top-down path and the output layer."""

    def __init__(self, config: VDVAEConfig) -> None:
        super().__init__()
        specs = parse_blocks(config.dec_blocks)
        self.dec_blocks = nn.ModuleList(DecBlock(config, s) for s in specs)
        resolutions = sorted({s.resolution for s in specs} | {s.mixin for s in specs if s.mixin})
        self.bias_xs = nn.ParameterList(
            nn.Parameter(torch.zeros(1, config.width, r, r)) for r in resolutions if r <= config.no_bias_above
        )
        self.without_bias = [r for r in resolutions if r > config.no_bias_above]
        self.out_net = _OutNet(config)
        self.gain = nn.Parameter(torch.ones(1, config.width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, config.width, 1, 1))

    @property
    def blocks(self) -> list[DecBlock]:
        """Top-down blocks, coarse to fine."""
        return cast("list[DecBlock]", list(self.dec_blocks))

    def start(self, n: int) -> dict[int, Tensor]:
        """Give the learned initial stream of each resolution, for ``n`` images."""
        streams = {b.shape[2]: b.expand(n, -1, -1, -1) for b in self.bias_xs}
        for r in self.without_bias:
            streams[r] = self.gain.new_zeros(n, self.gain.shape[1], r, r)
        return streams

    def finish(self, streams: dict[int, Tensor], image_size: int) -> Tensor:
        """Raw parameters of the output mixture, shape (n, 10 * n_mixtures, H, W)."""
        raw: Tensor = self.out_net.out_conv(streams[image_size] * self.gain + self.bias)
        return raw


class VDVAE(nn.Module):
    """Very deep VAE with the published names of its parts.

    Parameters
    ----------
    config : VDVAEConfig
    """

    def __init__(self, config: VDVAEConfig) -> None:
        super().__init__()
        self.config = config
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
        return [self.config.zdim * b.base**2 for b in self.decoder.blocks[:n_layers]]

    def normalise(self, images: np.ndarray) -> Tensor:
        """uint8 (n, H, W, 3) at the model's size -> float32 (n, 3, H, W), normalised."""
        x = torch.from_numpy(np.array(images)).to(self.device).float()
        return ((x - self.config.shift) / self.config.scale).permute(0, 3, 1, 2)

    @torch.no_grad()
    def encode_latents(
        self,
        images: np.ndarray,
        n_layers: int,
        *,
        sample: bool = False,
        generator: torch.Generator | None = None,
    ) -> np.ndarray:
        """Latents of the first ``n_layers`` top-down blocks; later blocks are not run.

        Parameters
        ----------
        images : ndarray of uint8, shape (n, H, W, 3)
            At the model's image size.
        n_layers : int
        sample : bool
            Draw from the posterior as the public Brain-Diffuser code does; its mean otherwise.
        generator : torch.Generator, optional
            For ``sample``; on the CPU.

        Returns
        -------
        ndarray of float32, shape (n, sum(layer_sizes(n_layers)))
            Layer after layer, each flattened channels first.

        Raises
        ------
        ValueError
            If the images are not of the model's size and type, or there are fewer blocks.
        """
        self._check_images(images)
        if not 1 <= n_layers <= self.n_blocks:
            raise ValueError(f"latents of the first {n_layers} of {self.n_blocks} blocks were asked for")
        activations = self.encoder(self.normalise(images))
        streams = self.decoder.start(len(images))
        latents = []
        for block in self.decoder.blocks[:n_layers]:
            x = block.enter(streams)
            z, log_sigma = block.posterior_of(x, activations[block.base])
            if sample:
                z = z + log_sigma.exp() * _normal(z, generator)
            _, _, x = block.prior_of(x)
            streams[block.base] = block.leave(x, z)
            latents.append(z.flatten(1).float())
        return torch.cat(latents, 1).cpu().numpy()

    @torch.no_grad()
    def decode_latents(
        self,
        latents: np.ndarray,
        generators: Sequence[torch.Generator],
        *,
        sample: bool = False,
        temperature: float = 1.0,
    ) -> np.ndarray:
        """Images of given latents; the blocks beyond the given ones follow the prior.

        Parameters
        ----------
        latents : ndarray of float32, shape (n, sum(layer_sizes(k)))
            Of the first k blocks, as :meth:`encode_latents` returns them.
        generators : sequence of n torch.Generator
            One an image, so that an image does not depend on its batch. May be empty where nothing
            is drawn.
        sample : bool
            Draw each pixel from the output mixture; the mixture's mean otherwise.
        temperature : float
            Of the prior in the blocks that are not given; 0 takes the prior's mean.

        Returns
        -------
        ndarray of uint8, shape (n, H, W, 3)

        Raises
        ------
        ValueError
            If the latents' width ends inside a block or beyond the last, or generators are missing.
        """
        n_given = self._count_blocks(latents.shape[1])
        if (sample or (n_given < self.n_blocks and temperature > 0)) and len(generators) != len(latents):
            raise ValueError(f"{len(latents)} images need as many generators, got {len(generators)}")
        given = torch.from_numpy(np.array(latents, dtype=np.float32)).to(self.device)
        streams = self.decoder.start(len(given))
        values = iter(torch.split(given, self.layer_sizes(n_given), dim=1))
        for index, block in enumerate(self.decoder.blocks):
            x = block.enter(streams)
            mean, log_sigma, x = block.prior_of(x)
            if index < n_given:
                z = next(values).reshape(mean.shape).to(mean.dtype)
            elif temperature > 0:
                z = mean + temperature * log_sigma.exp() * _normal_each(mean, generators)
            else:
                z = mean
            streams[block.base] = block.leave(x, z)
        raw = self.decoder.finish(streams, self.config.image_size)
        if sample:
            rows = [
                mixture_sample(r[None], self.config.n_mixtures, g)
                for r, g in zip(raw, generators, strict=True)
            ]
            pixels = torch.cat(rows)
        else:
            pixels = mixture_mean(raw, self.config.n_mixtures)
        return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()

    def elbo_terms(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        """Distortion and rate of images, in nats a pixel and channel, each of shape (n,); for training."""
        self._check_images(images)
        activations = self.encoder(self.normalise(images))
        streams = self.decoder.start(len(images))
        rate = torch.zeros(len(images), device=self.device)
        for block in self.decoder.blocks:
            x = block.enter(streams)
            q_mean, q_log = (t.float() for t in block.posterior_of(x, activations[block.base]))
            p_mean, p_log, x = block.prior_of(x)
            p_mean, p_log = p_mean.float(), p_log.float()
            z = q_mean + q_log.exp() * torch.randn_like(q_mean)
            kl = (
                p_log
                - q_log
                - 0.5
                + 0.5 * (torch.exp(2 * q_log) + (q_mean - p_mean) ** 2) * torch.exp(-2 * p_log)
            )
            rate = rate + kl.sum(dim=(1, 2, 3))
            streams[block.base] = block.leave(x, z)
        raw = self.decoder.finish(streams, self.config.image_size)
        target = torch.from_numpy(np.ascontiguousarray(images)).to(self.device).float() / 127.5 - 1
        distortion = negative_log_likelihood(raw, target, self.config.n_mixtures)
        return distortion, rate / (3 * self.config.image_size**2)

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

    def _check_images(self, images: np.ndarray) -> None:
        side = self.config.image_size
        if images.dtype != np.uint8 or images.shape[1:] != (side, side, 3):
            raise ValueError(
                f"expected uint8 images of shape (n, {side}, {side}, 3), got {images.dtype} {images.shape}"
            )


def scale_initial_weights(model: VDVAE) -> None:
    """Scale the residual branches' last weights by sqrt(1 / depth), as the paper does before training."""
    with torch.no_grad():
        for residual in cast("list[Block]", list(model.encoder.enc_blocks)):
            residual.c4.weight *= len(model.encoder.enc_blocks) ** -0.5
        for block in model.decoder.blocks:
            block.z_proj.weight *= model.n_blocks**-0.5
            block.resnet.c4.weight *= model.n_blocks**-0.5
            block.prior.c4.weight.zero_()
            nn.init.zeros_(cast(Tensor, block.prior.c4.bias))


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like)


def _normal_each(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    rows = [torch.randn(like.shape[1:], generator=g, dtype=torch.float32) for g in generators]
    return torch.stack(rows).to(like)
