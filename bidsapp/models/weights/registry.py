"""Which weights a recipe needs, where they come from, and which of them are missing.

The sources are data (``registry.toml``).
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from bidsapp.errors import ExitCode, Problem
from bidsapp.models.weights.lock import user_cache
from bidsapp.recipes import Recipe

if TYPE_CHECKING:
    from bidsapp.metrics.protocols import NetworkUse

EMBEDDED = Path(__file__).parents[1] / "embedded"
REGISTRY = Path(__file__).with_name("registry.toml")
#: The environment variable that stands for ``--models-dir``.
VARIABLE = "BIDSAPP_RECON_MODELS"
#: Sub-folder of the evaluation networks, and of their CLIP.
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
    provides: str = ""


@dataclass(frozen=True)
class RequiredFile:
    """A file that a recipe needs, and the sub-folder of the models folder it belongs in."""

    part: Part
    file: WeightFile
    folder: str

    def found(self, root: Path) -> Path | None:
        """Give the first form of this file that exists, in order of preference."""
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
    """Where weights are kept if neither ``--models-dir`` nor the environment variable names a folder."""
    if given := os.environ.get(VARIABLE):
        return Path(given)
    return user_cache() / "models"


def models_root(recipe: Recipe, models_dir: Path | None) -> Path:
    """Give the folder that holds a recipe's model folders."""
    return EMBEDDED if recipe.models.location == "package" else models_dir or default_models_dir()


def generative_files(recipe: Recipe) -> list[RequiredFile]:
    """Files of the models that make images, wherever they are."""
    folders = {"vdvae": recipe.models.vdvae, recipe.diffusion.kind: recipe.models.diffusion}
    return [
        RequiredFile(p, f, folders[p.name]) for p in load_registry() if p.name in folders for f in p.files
    ]


def evaluation_files(recipe: Recipe, uses: Mapping[str, NetworkUse]) -> list[RequiredFile]:
    """Files of the evaluation networks of a published protocol, those of the generator left out."""
    names = {use.file for use in uses.values()}
    clip = not all(use.file for use in uses.values()) and not brings_clip(recipe)
    found = []
    for part in load_registry():
        if part.name == EVALUATION:
            found += [RequiredFile(part, f, EVALUATION) for f in part.files if f.names[-1] in names]
        elif part.name == CLIP_NETWORK and clip:
            found += [RequiredFile(part, f, f"{EVALUATION}/{CLIP_NETWORK}") for f in part.files]
    return found


def brings_clip(recipe: Recipe) -> bool:
    """Whether the generator's image encoder is the CLIP that the published protocols use."""
    kind = recipe.diffusion.kind
    provided = {part.provides for part in load_registry() if part.name == kind}
    return recipe.models.location != "package" and CLIP_NETWORK in provided


def files_to_fetch(recipe: Recipe, uses: Mapping[str, NetworkUse] | None = None) -> list[RequiredFile]:
    """Files that a recipe needs and the package does not have: of its models and evaluation networks."""
    own = [] if recipe.models.location == "package" else generative_files(recipe)
    return own + evaluation_files(recipe, uses or {})


def missing_models(
    recipe: Recipe,
    models_dir: Path | None,
    uses: Mapping[str, NetworkUse] | None = None,
    asked: str | None = None,
) -> list[Problem]:
    """Find weights that are missing, before any computing.

    Parameters
    ----------
    uses : mapping of str to NetworkUse, optional
        Evaluation networks of a published protocol.
    asked : str, optional
        How the user named the recipe, if not by its name.
    """
    folder = models_dir or default_models_dir()
    words = ("--recipe", quote(asked or recipe.name), "--models-dir", quote(str(folder)))
    command = " ".join(("bidsapp-recon", "fetch-models", *words))
    fix = f"run: {command} (or give the folder that holds them with --models-dir)"
    problems = _missing(files_to_fetch(recipe, uses), folder, fix)
    if recipe.models.location == "package":
        again = "install the package again: its embedded models are incomplete"
        problems += _missing(generative_files(recipe), EMBEDDED, again)
    return problems


def _missing(required: Sequence[RequiredFile], root: Path, fix: str) -> list[Problem]:
    """One problem for each model folder that lacks files."""
    absent: dict[str, list[str]] = {}
    for item in required:
        if item.is_missing(root):
            absent.setdefault(item.folder, []).append(item.file.names[-1])
    problems = []
    for folder, names in absent.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        what, how = f"these weights are missing: {', '.join(names[:3])}{more}", fix
        if any((root / folder / name).is_symlink() for name in names):
            what += " (links to nothing, as in a DataLad dataset whose content was not fetched)"
            how = f"run `datalad get {quote(str(root / folder))}`, or {fix}"
        problems.append(Problem(str(root / folder), what, how, ExitCode.TRY_AGAIN))
    return problems
