"""bidsapp-recon: reconstruct the images a person saw from their fMRI responses, as a BIDS App.

The public names are imported when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bidsapp.cli import main
    from bidsapp.config import load_recipe
    from bidsapp.decoding.model_file import RidgeModel
    from bidsapp.decoding.model_file import load as load_model
    from bidsapp.decoding.ridge import Ridge, RidgeCV
    from bidsapp.metrics.protocols import published_protocols
    from bidsapp.metrics.scoring import Scores, Summary, score
    from bidsapp.models.judges.protocol_networks import load_protocol_networks
    from bidsapp.recipes import Recipe

__version__ = "0.1.0"

__all__ = [
    "Recipe",
    "Ridge",
    "RidgeCV",
    "RidgeModel",
    "Scores",
    "Summary",
    "__version__",
    "load_model",
    "load_protocol_networks",
    "load_recipe",
    "main",
    "published_protocols",
    "score",
]

#: Public name -> the module that has it, and its name there.
_HOMES = {
    "Recipe": ("bidsapp.recipes", "Recipe"),
    "Ridge": ("bidsapp.decoding.ridge", "Ridge"),
    "RidgeCV": ("bidsapp.decoding.ridge", "RidgeCV"),
    "RidgeModel": ("bidsapp.decoding.model_file", "RidgeModel"),
    "Scores": ("bidsapp.metrics.scoring", "Scores"),
    "Summary": ("bidsapp.metrics.scoring", "Summary"),
    "load_model": ("bidsapp.decoding.model_file", "load"),
    "load_protocol_networks": ("bidsapp.models.judges.protocol_networks", "load_protocol_networks"),
    "load_recipe": ("bidsapp.config", "load_recipe"),
    "main": ("bidsapp.cli", "main"),
    "published_protocols": ("bidsapp.metrics.protocols", "published_protocols"),
    "score": ("bidsapp.metrics.scoring", "score"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
