"""An index of a dataset's files and their BIDS entities, made by pybids.

pybids knows neither ``statmap`` nor ``trials`` files nor the ``stat`` entity, so it is given patterns
of its own. They look at the file's name alone: pybids' stock patterns search the whole path, and a
folder called ``ses-x`` above the dataset would then give its label to every file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.text import read_json

#: Entity name in pybids (and in BIDS filter files) -> its key in file names.
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

_IN_NAME = r"(?=[^/\\]*$)"
#: A label of BIDS holds letters and digits; LAION-fMRI's ROIs have hyphens in theirs (label-FFA-1).
_VALUES = {"label": "[a-zA-Z0-9+-]+"}
_ENTITIES = [
    {"name": "subject", "pattern": rf"[/\\]sub-([a-zA-Z0-9+]+)_{_IN_NAME}"},
    *(
        {"name": name, "pattern": rf"[_/\\]{key}-({_VALUES.get(name, '[a-zA-Z0-9+]+')})_{_IN_NAME}"}
        for name, key in ENTITY_KEYS.items()
    ),
    {"name": "suffix", "pattern": r"[_/\\]([a-zA-Z0-9]+)\.[^/\\]+$"},
    {"name": "datatype", "pattern": r"[/\\](anat|func|dwi|fmap|perf|meg|eeg|pet)[/\\][^/\\]+$"},
    {"name": "extension", "pattern": r"[^./\\](\.[^/\\]+)$"},
]
_CONFIG = {"name": "bidsapp-recon", "entities": _ENTITIES}

#: At the root only subject folders and loose files count: never stimuli/, logs/, derivatives/ ...
_IGNORE = (
    re.compile(r"^/(?!sub-)[^/.]+(/|$)"),
    re.compile(r"^/(?!sub-)[^/]+/"),
    re.compile(r"/figures(/|$)"),
    re.compile("[\udc80-\udcff]"),  # bytes of a name that are no UTF-8: pybids' database can't hold them
)


@dataclass(frozen=True)
class IndexedFile:
    """A file and the entities of its name, under pybids' names and with ``suffix``, ``extension``."""

    path: Path
    entities: Mapping[str, str]

    def get(self, entity: str) -> str:
        """Value of an entity, "" where the name has none."""
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
            Where a sidecar that applies is not a JSON object.
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
    """Index the subject folders of a dataset with pybids.

    Parameters
    ----------
    root : Path
        Folder that holds ``sub-*``.

    Returns
    -------
    Index

    Raises
    ------
    AppError
        Exit code 74 where a folder can't be read, 16 where pybids refuses the dataset.
    """
    # Here, not at the top: it takes most of a second, and --help must not wait for it.
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    description = root / "dataset_description.json"
    if os.path.lexists(description):  # pybids reads it too, whatever it is
        try:
            read_json(description)
        except AppError as error:
            raise AppError(str(error), exit_code=ExitCode.INVALID_BIDS, path=description) from error
    loops = [re.compile("^" + re.escape("/" + rel) + "(/|$)") for rel in _looping_links(root)]
    indexer = BIDSLayoutIndexer(
        validate=False,
        index_metadata=False,
        ignore=[*_IGNORE, *loops],
        # A name that no dataset has: a layout_config.json in the data must not change our patterns.
        config_filename=".bidsapp-no-layout-config.json",
    )
    try:
        layout = BIDSLayout(root, validate=False, config=[_CONFIG], indexer=indexer)
    except OSError as error:
        where = error.filename or root
        message = f"{root}: {where} cannot be read ({error.strerror}). Check the permissions."
        raise AppError(message, exit_code=ExitCode.IO_ERROR) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{root}: cannot be indexed ({error}). Check dataset_description.json."
        raise AppError(message, exit_code=ExitCode.INVALID_BIDS) from error
    try:
        found = [
            IndexedFile(Path(file.path), {str(k): str(v) for k, v in file.entities.items()})
            for file in layout.get(return_type="object", invalid_filters="allow")
        ]
    finally:
        layout.session.close()
    return Index(root, found)


def _looping_links(root: Path) -> Iterator[str]:
    """Links to folders that lead back into the dataset: indexed, they would never end."""
    top = os.path.realpath(root)
    pending = [path for path in _folders(root) if os.path.basename(path).startswith("sub-")]  # noqa: PTH119
    seen = {top}
    while pending:
        folder = pending.pop()
        real = os.path.realpath(folder)
        if real in seen or top.startswith(real + os.sep):
            yield os.path.relpath(folder, root)
            continue
        seen.add(real)
        pending += _folders(folder)


def _folders(folder: str | Path) -> list[str]:
    """Folders in a folder, and links to folders; none that are hidden, or can't be asked."""
    found = []
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return []  # pybids will say what is wrong with it
    for entry in entries:
        try:
            if not entry.name.startswith(".") and entry.is_dir():
                found.append(entry.path)
        except OSError:
            continue  # a link to itself, or a chain of them: no folder, whatever else is in here
    return found
