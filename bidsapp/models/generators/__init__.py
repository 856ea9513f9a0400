"""Generators of stage 2, one module each, found by their kind.

To add one: a module here, named as its kind with underscores, whose ``GENERATOR`` is a subclass of
:class:`~bidsapp.models.generators.protocol.Generator`; its kind and targets in
:data:`bidsapp.recipes.GENERATORS`; its files in ``weights/registry.toml``; and a recipe.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from bidsapp.recipes import GENERATORS

if TYPE_CHECKING:
    from bidsapp.models.generators.protocol import Generator


def generator_class(kind: str) -> type[Generator]:
    """Import the generator of a kind, a key of :data:`bidsapp.recipes.GENERATORS`.

    Raises
    ------
    KeyError
        For an unknown kind.
    """
    if kind not in GENERATORS:
        raise KeyError(f"unknown generator {kind!r}; choose from {', '.join(GENERATORS)}")
    module = import_module(f"{__name__}.{kind.replace('-', '_')}")
    found: type[Generator] = module.GENERATOR
    return found
