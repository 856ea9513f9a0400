"""An index of a dataset's files: their BIDS entities, and their metadata by inheritance."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.text import read_json

#: Name of an entity (as pybids and BIDS filter files have it) -> its key in file names.
ENTITY_KEYS = {
    "session": "ses",
    "task": "task",
    "acquisition": "acq",
    "reconstruction": "rec",
    "direction": "dir",
    "run": "run",
    "echo": "echo",
    "part": "part",
    "space": "space",
    "res": "res",
    "den": "den",
    "hemi": "hemi",
    "stat": "stat",
    "segmentation": "seg",
    "label": "label",
    "desc": "desc",
}

_NAMES = {key: name for name, key in ENTITY_KEYS.items()} | {"sub": "subject"}
_VALUE = re.compile("[a-zA-Z0-9+]+")
#: BIDS labels hold letters and digits; LAION-fMRI's ROIs have hyphens in theirs (label-FFA-1).
_LABEL = re.compile("[a-zA-Z0-9+-]+")
_DATATYPES = ("anat", "func", "dwi", "fmap", "perf", "meg", "eeg", "pet")


@dataclass(frozen=True)
class IndexedFile:
    """A file and its entities, by their long names, with ``suffix``, ``extension`` and ``datatype``."""

    path: Path
    entities: Mapping[str, str]

    def get(self, entity: str) -> str:
        """Value of an entity, "" if the name has none."""
        return self.entities.get(entity, "")


class Index:
    """Files of one dataset, sorted by path; see :func:`build_index`."""

    def __init__(self, root: Path, files: Iterable[IndexedFile]) -> None:
        self.root = root
        self.files = tuple(sorted(files, key=lambda f: natural_key(str(f.path))))
        # By folder as well: a file's ancestors are few, the sidecars of a large dataset are not.
        self._sidecars: dict[tuple[str, str], list[IndexedFile]] = {}
        for file in self.files:
            if file.get("extension") == ".json":
                self._sidecars.setdefault((file.get("suffix"), str(file.path.parent)), []).append(file)

    def metadata(self, file: IndexedFile) -> dict[str, Any]:
        """Metadata of a file by the inheritance principle: deeper and more specific sidecars win.

        Raises
        ------
        AppError
            If a sidecar that applies is not a JSON object.
        """
        applies = []
        for folder in file.path.parents:
            for sidecar in self._sidecars.get((file.get("suffix"), str(folder)), []):
                wanted = {k: v for k, v in sidecar.entities.items() if k not in ("extension", "datatype")}
                if all(file.get(k) == v for k, v in wanted.items()):
                    applies.append((len(folder.parts), len(wanted), sidecar.path))
        merged: dict[str, Any] = {}
        for _, _, path in sorted(applies):
            merged.update(read_json(path))
        return merged


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key under which ``ses-2`` comes before ``ses-10``."""
    parts = re.split(r"(\d+)", text)
    return [(1, int(p), p) if p.isdecimal() else (0, 0, p) for p in parts]


def build_index(root: Path) -> Index:
    """Index the subject folders of a dataset, and the loose files at its root.

    Folders named ``figures``, hidden files and folders, and names that are not UTF-8 are left out.

    Parameters
    ----------
    root : Path
        Folder that holds ``sub-*``.

    Raises
    ------
    AppError
        Exit code 74 if a folder cannot be read, 16 if ``dataset_description.json`` exists and cannot be read.
    """
    description = root / "dataset_description.json"
    if os.path.lexists(description):
        try:
            read_json(description)
        except AppError as error:
            raise AppError(str(error), exit_code=ExitCode.INVALID_BIDS, path=description) from error
    try:
        return Index(root, [IndexedFile(path, entities_of(path)) for path in _files(root.absolute())])
    except OSError as error:
        where = error.filename or root
        message = f"{root}: {where} cannot be read ({error.strerror}). Check the permissions."
        raise AppError(message, exit_code=ExitCode.IO_ERROR) from error


def entities_of(path: Path) -> dict[str, str]:
    """Read the entities in a file's name: ``sub-01_task-x_bold.nii.gz``.

    Only entities that the app knows and whose values are valid labels are given; the first of each counts.
    """
    stem, dot, extension = path.name.partition(".")
    *pairs, suffix = stem.split("_")
    found = {"extension": dot + extension} if stem and extension else {}
    if extension and _VALUE.fullmatch(suffix):
        found["suffix"] = suffix
    if path.parent.name in _DATATYPES:
        found["datatype"] = path.parent.name
    for pair in pairs:
        key, _, value = pair.partition("-")
        name = _NAMES.get(key, "")
        if name and (_LABEL if name == "label" else _VALUE).fullmatch(value):
            found.setdefault(name, value)
    return found


def _files(root: Path) -> Iterator[Path]:
    """Find the files, each folder once: links that lead back into the dataset would never end."""
    top = os.path.realpath(root)
    seen: set[str] = set()
    pending = [str(root)]
    while pending:
        folder = pending.pop()
        for entry in os.scandir(folder):
            if entry.name.startswith(".") or not _is_utf8(entry.name):
                continue
            if not _is_folder(entry):
                yield Path(entry.path)
            elif entry.name != "figures" and (folder != str(root) or entry.name.startswith("sub-")):
                real = os.path.realpath(entry.path)
                if real not in seen and not Path(top).is_relative_to(real):
                    seen.add(real)
                    pending.append(entry.path)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or a chain of them
        return False
