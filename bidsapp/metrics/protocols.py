"""The published protocols as records, read from ``protocols.toml``."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Resizing:
    """How images are resized.

    Attributes
    ----------
    sizes : tuple of int
        Sides in pixels of the squares they are resized to, one after the other.
    resample : {"bilinear", "bicubic"}
    precision : {"uint8", "float"}
        ``uint8`` rounds after each step, as PIL does with 8-bit images; ``float`` keeps values in
        [0, 1] unrounded. Both are antialiased.
    """

    sizes: tuple[int, ...]
    resample: str
    precision: str


@dataclass(frozen=True)
class NetworkUse:
    """One evaluation network of a protocol: its checkpoint, layer, input and score.

    Attributes
    ----------
    architecture, layer : str
    score : {"two_way", "distance"}
    mean_std : {"imagenet", "clip"}
        Normalization of the input.
    file : str
        Name of the published checkpoint; empty for CLIP, which is a folder.
    """

    architecture: str
    layer: str
    score: str
    mean_std: str
    file: str
    resizing: Resizing


@dataclass(frozen=True)
class PublishedProtocol:
    """Metrics of a published protocol.

    Attributes
    ----------
    pixels : Resizing
        Of both images, before the pixel metrics.
    pixel_metrics : tuple of str
        Names of functions of :mod:`bidsapp.metrics.pixel`.
    """

    name: str
    title: str
    pixels: Resizing
    pixel_metrics: tuple[str, ...]
    networks: dict[str, NetworkUse]

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics in the order of the published tables; those of networks as ``<score>_<network>``."""
        return (*self.pixel_metrics, *(f"{use.score}_{name}" for name, use in self.networks.items()))


@cache
def published_protocols() -> dict[str, PublishedProtocol]:
    """Read the published protocols, by name."""
    text = resources.files("bidsapp.metrics").joinpath("protocols.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    protocols = {}
    for name, row in table["protocols"].items():
        uses = {}
        for network, use in row["networks"].items():
            common = table["networks"][network]
            uses[network] = NetworkUse(
                **(common | {"file": use.get("file", common["file"])}), resizing=_resizing(use)
            )
        pixels, metrics = _resizing(row["pixels"]), tuple(row["pixel_metrics"])
        protocols[name] = PublishedProtocol(name, row["title"], pixels, metrics, uses)
    return protocols


def _resizing(row: dict[str, Any]) -> Resizing:
    return Resizing(tuple(row["sizes"]), row["resample"], row["precision"])
