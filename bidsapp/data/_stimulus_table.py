"""The table of stimuli: their ids, their split, and where the pixels of each are stored.

Two forms are read: ``stimuli.tsv`` (each stimulus is a file, or a row of an HDF5 brick) and LAION-fMRI's
``task-images_metadata.csv``, whose rows are those of ``task-images_stimuli.h5``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from bidsapp.data._tables import read_table
from bidsapp.data.captions import ID_COLUMNS
from bidsapp.errors import AppError, ExitCode, InputProblems, Problem
from bidsapp.storage.files import datasets_around
from bidsapp.storage.text import normalized

#: Names of the table; the first one found is used.
TABLES = ("stimuli.tsv", "task-images_metadata.csv")
#: The brick that belongs to LAION-fMRI's table: image ``i`` is the table's row ``i``
#: (ViCCo-Group/LAION-fMRI, docs "Stimulus Set", File Organization).
_LAION_BRICK = "task-images_stimuli.h5"
_FILE_COLUMNS = ("file", "filename", "stim_file")
_ROW_COLUMNS = ("row", "hdf5_index", "index")
_BRICK_SUFFIXES = (".hdf5", ".h5")
_NONE = ("", "n/a")


class Place(NamedTuple):
    """Where a stimulus' pixels are: a file, or a row of a brick."""

    path: Path
    row: int | None = None


@dataclass(frozen=True)
class StimulusTable:
    """Content of a table of stimuli; see :class:`~bidsapp.data.stimuli.StimulusSet`."""

    path: Path
    ids: tuple[str, ...]
    split_column: dict[str, str]
    places: Mapping[str, Place]


def find_table(base: Path) -> Path:
    """Find the table of a dataset, or of the one that contains a derivative; AppError (66) if missing."""
    for dataset in datasets_around(base):
        for name in TABLES:
            if (dataset / "stimuli" / name).is_file():
                return dataset / "stimuli" / name
    message = (
        f"{base / 'stimuli' / TABLES[0]} is missing, so the images that were shown are unknown. "
        "Write a table with the columns stimulus_id, file and split. (LAION-fMRI's stimuli and their table "
        f"{TABLES[1]} are downloaded with its own command: laion-fmri download-stimuli.)"
    )
    raise AppError(message, exit_code=ExitCode.NO_INPUT)


def read_stimulus_table(path: Path) -> StimulusTable:
    """Read a table of stimuli.

    Raises
    ------
    AppError
        Exit code 65 if it cannot be read, has no column of ids, or lists nothing.
    InputProblems
        Ids that are missing or listed twice, and files outside the dataset: all at once.
    """
    table = read_table(path)
    ids, kept = _read_ids(path, table)
    return StimulusTable(
        path=path,
        ids=ids,
        split_column=_read_split(path, table, ids, kept),
        places=_read_places(path, table, ids, kept),
    )


def _read_ids(path: Path, table: dict[str, list[str]]) -> tuple[tuple[str, ...], list[int]]:
    """Ids of the stimuli that are present, and their rows in the table."""
    column = next((name for name in ID_COLUMNS if name in table), None)
    if column is None:
        raise _bad(path, f"needs a column stimulus_id; it has {', '.join(table)}")
    present = [v.strip().lower() not in ("0", "false", "no") for v in table.get("present", [])]
    seen: dict[str, int] = {}
    problems = []
    kept = []
    for row, raw in enumerate(table[column]):
        stimulus = raw.strip().removeprefix("stim-")
        if stimulus in _NONE:
            what = f"Line {row + 2} has no {column}."
            problems.append(Problem(str(path), what, "Give every stimulus an id, or delete the row."))
        elif stimulus in seen:
            what = f"Stimulus {stimulus} is listed on line {seen[stimulus] + 2} and on line {row + 2}."
            problems.append(Problem(str(path), what, "Keep one row for each stimulus."))
        else:
            seen[stimulus] = row
            if not present or present[row]:
                kept.append(row)
    if problems:
        raise InputProblems(problems)
    if seen and not kept:
        what = f"the images of all {len(seen)} stimuli are missing, according to its column 'present'"
        raise _bad(path, what)
    if not kept:
        raise _bad(path, "lists no stimuli")
    by_row = {row: stimulus for stimulus, row in seen.items()}
    return tuple(by_row[row] for row in kept), kept


def _read_places(
    path: Path, table: dict[str, list[str]], ids: tuple[str, ...], kept: list[int]
) -> dict[str, Place]:
    find = _Finder(path.parent)
    brick = path.parent / _LAION_BRICK if path.name == TABLES[1] else None
    files = rows = None
    if brick is None:
        files = next((table[name] for name in _FILE_COLUMNS if name in table), None)
        rows = next((table[name] for name in _ROW_COLUMNS if name in table), None)
    check = _FolderCheck(Path(os.path.realpath(path.parent.parent)))
    named: dict[str, tuple[Path, str, bool]] = {}
    places, problems = {}, []
    for stimulus, row in zip(ids, kept, strict=True):
        if brick is not None and not find.has_image(stimulus):
            places[stimulus] = Place(brick, row)
            continue
        name = files[row].strip() if files is not None else ""
        if name in _NONE:
            file = find(stimulus)
            wrong, is_brick = check(file), False
        else:
            if name not in named:  # a brick's name is repeated in tens of thousands of rows
                file = find.named(name)
                wrong = check(file) if _is_plain(name) else _OUTSIDE
                named[name] = file, wrong, file.suffix.lower() in _BRICK_SUFFIXES
            file, wrong, is_brick = named[name]
        if wrong:
            what = f"Line {row + 2}: the {wrong.format(name=name)}."
            fix = "Name files by their path inside the stimuli folder, and put the images themselves there."
            problems.append(Problem(str(path), what, fix))
        elif not is_brick:
            places[stimulus] = Place(file)
        elif rows is not None and re.fullmatch(r"\d{1,12}", rows[row].strip()):
            places[stimulus] = Place(file, int(rows[row]))
        else:
            text = rows[row].strip() if rows is not None else ""
            what = f"Line {row + 2}: {name} is a brick of images, but {text!r} is not a row number."
            problems.append(Problem(str(path), what, "Give the row, from 0, in a column 'row'."))
    if problems:
        raise InputProblems(problems)
    return places


_OUTSIDE = "file {name!r} is outside the dataset"
_LEADS_OUT = "folder of {name!r} is a link to a folder outside the dataset"


class _FolderCheck:
    """Checks the folder of an image file; returns what is wrong, "" if nothing is.

    After resolving links, a folder must be inside the dataset. Links of single files may lead out of it
    (DataLad and converters that link files make such links); their targets are only read as images.
    """

    def __init__(self, dataset: Path) -> None:
        self._dataset = dataset
        self._known: dict[str, str] = {}

    def __call__(self, file: Path) -> str:
        folder = os.path.dirname(file)  # noqa: PTH120 - pathlib's takes ten times as long
        if folder not in self._known:
            inside = Path(os.path.realpath(folder)).is_relative_to(self._dataset)
            self._known[folder] = "" if inside else _LEADS_OUT
        return self._known[folder]


def _is_plain(name: str) -> bool:
    """Whether a path from the table is relative and has no "..", on any operating system."""
    if re.fullmatch(r"\w[\w.-]*", name):
        return True  # a bare file name; tested first because tables have tens of thousands of them
    if "\0" in name or "://" in name:
        return False
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    absolute = PurePosixPath(name).is_absolute() or bool(PureWindowsPath(name).anchor)
    return not absolute and ".." not in parts


class _Finder:
    """Finds image files by listing each folder once: 73,000 single queries take minutes on a network disk."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._images = folder, folder / "images"
        self._own = self._names(folder)
        self._listed = self._names(self._images) if self._images.is_dir() else {}

    @staticmethod
    def _names(folder: Path) -> dict[str, str]:
        """Names in a folder, by their spelling in tables."""
        return {normalized(entry.name): entry.name for entry in os.scandir(folder)}

    def __call__(self, stimulus: str) -> Path:
        """File of a stimulus if the table names none: ``images/<id>``, ``stim-<id>_image.png``."""
        if self.has_image(stimulus):
            return self._images / self._listed[normalized(stimulus)]
        safe = stimulus.replace("/", "_").replace("\\", "_")
        name = f"stim-{safe}_image.png"
        return self._folder / self._own.get(normalized(name), name)

    def has_image(self, stimulus: str) -> bool:
        """Whether the folder ``images`` has a file with the name of the stimulus."""
        return normalized(stimulus) in self._listed

    def named(self, name: str) -> Path:
        """File that the table names: in the stimuli folder, else in its folder ``images``."""
        plain = normalized(name)
        if plain in self._listed and plain not in self._own:
            return self._images / self._listed[plain]
        return self._folder / self._own.get(plain, name)


def _read_split(
    path: Path, table: dict[str, list[str]], ids: tuple[str, ...], kept: list[int]
) -> dict[str, str]:
    result = {}
    for stimulus, row in zip(ids, kept, strict=True):
        value = table["split"][row].strip().lower() if "split" in table else ""
        if value in ("train", "test"):
            result[stimulus] = value
        elif value not in _NONE:
            raise _bad(path, f"line {row + 2}: split is {value!r}; it must be train, test or n/a")
    return result


def _bad(path: Path, what: str) -> AppError:
    return AppError(f"{path}: {what}.", exit_code=ExitCode.BAD_DATA, path=path)
