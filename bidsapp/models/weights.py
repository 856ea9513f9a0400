"""Which weights a recipe needs, where they come from, and whether those here are still the same.

The sources are data (``registry.toml``). What was fetched is recorded in ``weights.lock.json`` in the
models folder: each file's SHA-256, verified at every run, and the models' canary answers.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bidsapp.config import Recipe
from bidsapp.errors import AppError, ExitCode, Problem
from bidsapp.io import locked, read_json, sha256_file, write_json

EMBEDDED = Path(__file__).parent / "embedded"
REGISTRY = Path(__file__).with_name("registry.toml")
#: The environment variable that stands for ``--models-dir``.
VARIABLE = "BIDSAPP_RECON_MODELS"
LOCK = "weights.lock.json"
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
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "bidsapp-recon" / "models"


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
        if not item.file.optional and item.found(root) is None:
            absent.setdefault(item.folder, []).append(item.file.names[-1])
    problems = []
    for folder, names in absent.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        what = f"these weights are not there: {', '.join(names[:3])}{more}"
        problems.append(Problem(str(root / folder), what, command, ExitCode.TRY_AGAIN))
    return problems


@dataclass
class Lock:
    """What ``weights.lock.json`` says of the files and models of one models folder."""

    root: Path
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    canaries: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, root: Path) -> Lock:
        """Read the lock of a models folder; empty where there is none."""
        path = root / LOCK
        content = read_json(path) if path.is_file() else {}
        parts = content.get("files", {}), content.get("canaries", {})
        if not all(isinstance(p, dict) and all(isinstance(v, dict) for v in p.values()) for p in parts):
            raise AppError(
                f"{path}: not what fetch-models writes. Delete it and run fetch-models again.",
                exit_code=ExitCode.BAD_DATA,
            )
        return cls(root, *parts)

    def record_file(self, path: Path, sha256: str, source: str, licence: str) -> None:
        """Record a file that was fetched. Its model's canary answers are forgotten."""
        name = path.relative_to(self.root).as_posix()
        with self._changing():
            self.files[name] = {"sha256": sha256, "size": path.stat().st_size, "source": source}
            self.files[name]["licence"] = licence
            kept = (k for k in self.canaries if not name.startswith(f"{k.partition('#')[0]}/"))
            self.canaries = {k: self.canaries[k] for k in kept}

    def record_canary(self, name: str, answer: Mapping[str, Any]) -> None:
        """Record what a model answered; ``name`` is its folder, ``#``, and what it is."""
        with self._changing():
            self.canaries[name] = dict(answer)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One change: read again while other processes wait, changed, written whole."""
        with locked(self.root / f".{LOCK}.held"):
            fresh = Lock.read(self.root)
            self.files, self.canaries = fresh.files, fresh.canaries
            yield
            write_json(self.root / LOCK, {"version": 1, "files": self.files, "canaries": self.canaries})

    def verify(self, path: Path) -> str:
        """SHA-256 of a file, after comparing it with the one recorded, if any.

        Raises
        ------
        AppError
            Exit code 65 if the file is not the one that was fetched.
        """
        found = sha256_file(path)
        name = path.relative_to(self.root).as_posix()
        recorded = self.files.get(name, {}).get("sha256", found)
        if found != recorded:
            raise AppError(
                f"{path}: these are not the weights that were fetched (SHA-256 {found[:12]}..., recorded "
                f"{recorded[:12]}... in {self.root / LOCK}). The file is damaged or was replaced: delete it "
                "and fetch it again; if the change was meant, delete its entry there.",
                exit_code=ExitCode.BAD_DATA,
            )
        return found
