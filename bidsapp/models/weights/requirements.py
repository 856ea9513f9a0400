"""Which weights a recipe needs, and which of them are not there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from bidsapp.config import Recipe
from bidsapp.errors import Problem
from bidsapp.models.judges.protocol_networks import CLIP, NetworkUse
from bidsapp.models.weights import registry as weights
from bidsapp.models.weights.registry import EMBEDDED


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
