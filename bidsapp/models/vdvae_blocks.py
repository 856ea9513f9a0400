"""The parts of the very deep VAE (Child 2021, arXiv 2011.10650): configuration, encoder, decoder.

Module names are those of the published checkpoints (openai/vdvae).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bidsapp.errors import AppError, ExitCode
from bidsapp.models.weights.configurations import read_configuration

_IMAGENET64 = Path(__file__).with_name("imagenet64.json")
#: Largest values of the published configurations; pixels are shifted and scaled by grey levels.
_LIMITS = {"image_size": 64, "width": 512, "shift": 255, "scale": 255}
#: Most blocks of a path and largest number of a block string, a little above the published 75.
_MOST_BLOCKS = 100
_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "str": (str,), "float": (int, float)}


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
        If an item is none of these, or has a number below one.
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
            raise ValueError(f"the numbers of a block string should be at least 1, got {item!r}")
        if mark == "x":
            specs += [_BlockSpec(left)] * right
        elif mark == "d":
            specs.append(_BlockSpec(left, down_rate=right))
        else:
            specs.append(_BlockSpec(left, mixin=right))
    return specs


def latent_sizes(config: VDVAEConfig) -> list[int]:
    """Count the latent values of each top-down block."""
    return [config.zdim * block.resolution**2 for block in parse_blocks(config.dec_blocks)]


def read_config(folder: Path) -> VDVAEConfig:
    """Read the configuration next to the weights, or the published one of ImageNet 64 x 64 if there is none.

    Raises
    ------
    AppError
        Exit code 65 if it is not a VDVAE's.
    """
    own = folder / "config.json"
    path = own if own.exists() else _IMAGENET64
    content = read_configuration(path, _LIMITS)
    try:
        config = VDVAEConfig(**content)
        for field in fields(config):
            value: Any = getattr(config, field.name)
            if not isinstance(value, _TYPES[str(field.type)]) or isinstance(value, bool):
                raise TypeError(f"{field.name} is {value!r}")
            number = 1.0 if isinstance(value, str) else float(value)  # type: ignore[arg-type]
            if number < 0 or (number == 0 and field.name != "shift"):
                raise ValueError(f"{field.name} is {value}")
        for name, text in (("enc_blocks", config.enc_blocks), ("dec_blocks", config.dec_blocks)):
            numbers = [int(number) for number in re.findall("[0-9]+", text)]
            if max(numbers, default=0) > _MOST_BLOCKS or len(parse_blocks(text)) > _MOST_BLOCKS:
                raise ValueError(f"{name}: more than {_MOST_BLOCKS} blocks or pixels")
    except (ValueError, TypeError) as error:
        raise AppError(
            f"{path}: not a VDVAE's configuration ({error}). Fetch it again.", exit_code=ExitCode.BAD_DATA
        ) from error
    return config


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
        # The stream stays float32 where the convolutions run in half precision: sums lose most there.
        x = self.in_conv(x)
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
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
