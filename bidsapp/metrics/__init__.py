"""Quality of reconstructions: pixel metrics, identification, statistics, named protocols.

The public names are imported when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bidsapp.metrics.identification import TwoWay, similarity, top1, two_way
    from bidsapp.metrics.pixel import pixcorr, ssim, ssim_columnwise
    from bidsapp.metrics.protocols import PublishedProtocol, published_protocols
    from bidsapp.metrics.scoring import PROTOCOLS, Scores, Summary, score
    from bidsapp.metrics.statistics import bootstrap_interval, permutation_p

__all__ = [
    "PROTOCOLS",
    "PublishedProtocol",
    "Scores",
    "Summary",
    "TwoWay",
    "bootstrap_interval",
    "permutation_p",
    "pixcorr",
    "published_protocols",
    "score",
    "similarity",
    "ssim",
    "ssim_columnwise",
    "top1",
    "two_way",
]

_HOMES = {
    "identification": ("TwoWay", "similarity", "top1", "two_way"),
    "pixel": ("pixcorr", "ssim", "ssim_columnwise"),
    "scoring": ("PROTOCOLS", "Scores", "Summary", "score"),
    "protocols": ("PublishedProtocol", "published_protocols"),
    "statistics": ("bootstrap_interval", "permutation_p"),
}


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
