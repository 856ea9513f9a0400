"""Which weights a recipe needs, where they come from, and which of them are missing.

The sources are data (``registry.toml``).
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bidsapp.config import Recipe
from bidsapp.errors import ExitCode, Problem
from bidsapp.models.weights.lock import user_cache

EMBEDDED = Path(__file__).parents[1] / "embedded"
REGISTRY = Path(__file__).with_name("registry.toml")
#: The environment variable that stands for ``--models-dir``.
VARIABLE = "BIDSAPP_RECON_MODELS"
#: Sub-folder of the networks that judge, and of their CLIP.
EVALUATION = "evaluation"
CLIP_NETWORK = "clip-vit-large-patch14"


@dataclass(frozen=True)
class WeightFile:
    """One file of a part; see ``registry.toml``."""

    names: tuple[str, ...]
    url: str = ""
    packaged: str = ""
    sha256: str = ""
    sha256_start: str = ""
    gigabytes: float = 0.0
    optional: bool = False
    unless: str = ""


@dataclass(frozen=True)
class Part:
    """Files of one source."""

    name: str
    title: str
    licence: str
    homepage: str
    files: tuple[WeightFile, ...]
    repository: str = ""
    revision: str = ""


@dataclass(frozen=True)
class Needed:
    """A file that a recipe needs, and the sub-folder of the models folder it belongs in."""

    part: Part
    file: WeightFile
    folder: str

    def found(self, root: Path) -> Path | None:
        """Give the form of this file that is there, the preferred one first."""
        paths = (root / self.folder / name for name in self.file.names)
        return next((path for path in paths if path.is_file()), None)

    def is_missing(self, root: Path) -> bool:
        """Whether a run would miss this file."""
        spared = bool(self.file.unless) and (root / self.folder / self.file.unless).is_file()
        return not (self.file.optional or spared) and self.found(root) is None


def load_registry(path: Path = REGISTRY) -> tuple[Part, ...]:
    """Read the sources of published weights."""
    rows = tomllib.loads(path.read_text(encoding="utf-8"))["part"]
    return tuple(_part(row) for row in rows)


def _part(row: Mapping[str, Any]) -> Part:
    files = tuple(WeightFile(**{**file, "names": tuple(file["names"])}) for file in row["file"])
    return Part(**{key: value for key, value in row.items() if key != "file"}, files=files)


def default_models_dir() -> Path:
    """Where weights are kept when neither ``--models-dir`` nor the environment variable says so."""
    if given := os.environ.get(VARIABLE):
        return Path(given)
    return user_cache() / "models"


def models_root(recipe: Recipe, models_dir: Path | None) -> Path:
    """Give the folder that holds a recipe's model folders."""
    return EMBEDDED if recipe.models.location == "package" else models_dir or default_models_dir()


def generative_files(recipe: Recipe, registry: Sequence[Part] | None = None) -> list[Needed]:
    """Files of the models that make images, wherever they are."""
    folders = {"vdvae": recipe.models.vdvae, recipe.diffusion.kind: recipe.models.diffusion}
    parts = load_registry() if registry is None else registry
    return [Needed(p, f, folders[p.name]) for p in parts if p.name in folders for f in p.files]


def evaluation_files(
    recipe: Recipe, files: Sequence[str], clip: bool, registry: Sequence[Part] | None = None
) -> list[Needed]:
    """Files of the networks that judge by a published protocol.

    Parameters
    ----------
    recipe : Recipe
    files : sequence of str
        Published names of the networks' checkpoints.
    clip : bool
        Whether CLIP ViT-L/14 judges too; Versatile Diffusion brings it along.
    """
    parts = load_registry() if registry is None else registry
    found = []
    for part in parts:
        if part.name == EVALUATION:
            found += [Needed(part, f, EVALUATION) for f in part.files if f.names[-1] in files]
        elif part.name == CLIP_NETWORK and clip and not brings_clip(recipe):
            found += [Needed(part, f, f"{EVALUATION}/{CLIP_NETWORK}") for f in part.files]
    return found


def brings_clip(recipe: Recipe) -> bool:
    """Whether the generator's image encoder is the CLIP that the published protocols judge with."""
    return recipe.models.location != "package" and recipe.diffusion.kind == "versatile-diffusion"


def missing(needed: Sequence[Needed], root: Path, command: str) -> list[Problem]:
    """One problem for each model folder that lacks files.

    Parameters
    ----------
    needed : sequence of Needed
    root : Path
    command : str
        What to run to get them.
    """
    absent: dict[str, list[str]] = {}
    for item in needed:
        if item.is_missing(root):
            absent.setdefault(item.folder, []).append(item.file.names[-1])
    problems = []
    for folder, names in absent.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        what = f"these weights are not there: {', '.join(names[:3])}{more}"
        problems.append(Problem(str(root / folder), what, command, ExitCode.TRY_AGAIN))
    return problems
