"""The images that were shown: ids, split, pixels and captions.

A dataset has ``stimuli/stimuli.tsv`` and either one image file a stimulus or an HDF5 brick
(N, H, W, 3) of uint8, of which the table names the row.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bidsapp.data._pixels import Bricks, decode, require
from bidsapp.data.captions import ID_COLUMNS, read_captions
from bidsapp.errors import AppError, ExitCode, InputProblems, Problem
from bidsapp.io import read_tsv

_FILE_COLUMNS = ("file", "filename", "stim_file")
_ROW_COLUMNS = ("row", "hdf5_index", "index")
_BRICK_SUFFIXES = (".hdf5", ".h5")
_NONE = ("", "n/a")

#: Called with an iterable and a text, gives the iterable back (a progress bar).
Show = Callable[[Sequence[str], str], Any]


@dataclass(frozen=True)
class _Place:
    """Where a stimulus' pixels are: a file, or a row of a brick."""

    path: Path
    row: int | None = None


@dataclass(frozen=True)
class StimulusSet:
    """The stimuli of a dataset. Make one with :meth:`open`; pixels are read when asked for.

    Attributes
    ----------
    folder : Path
        The ``stimuli`` folder.
    ids : tuple of str
        Ids without ``stim-``, in the table's order. Stimuli whose column ``present`` is 0, false or
        no are left out.
    split_column : dict of str to str
        ``train`` or ``test`` of each id that has one.
    columns : dict of str to tuple of str
        The table's other columns (NSD_id, COCO_id, ...), in the order of ``ids``.
    captions_path : Path or None
        Where the captions come from; None where the dataset has none.
    """

    folder: Path
    ids: tuple[str, ...]
    split_column: dict[str, str]
    columns: dict[str, tuple[str, ...]]
    captions_path: Path | None
    _places: Mapping[str, _Place] = field(repr=False)
    _captions: Mapping[str, tuple[str, ...]] = field(repr=False)

    @classmethod
    def open(cls, bids_dir: str | os.PathLike[str]) -> StimulusSet:
        """Read the tables of ``bids_dir/stimuli``, or of the dataset that a derivative lies in.

        Parameters
        ----------
        bids_dir : path
            A dataset, or a ``derivatives/<name>`` folder of one.

        Raises
        ------
        AppError
            Exit code 66 without a stimuli table, 65 where it or the captions can't be read.
        InputProblems
            Ids that are missing or listed twice, and files outside of the dataset: all at once.
        """
        folder = _find_folder(Path(bids_dir))
        table_path = folder / "stimuli.tsv"
        table = read_tsv(table_path)
        ids, kept = _read_ids(table_path, table)
        places = _read_places(table_path, table, ids, kept)
        captions_path = folder / "captions.tsv"
        used = {*ID_COLUMNS, *_FILE_COLUMNS, *_ROW_COLUMNS, "split", "present"}
        return cls(
            folder=folder,
            ids=ids,
            split_column=_read_split(table_path, table, ids, kept),
            columns={k: tuple(v[i] for i in kept) for k, v in table.items() if k not in used},
            captions_path=captions_path if captions_path.is_file() else None,
            _places=places,
            _captions=read_captions(captions_path) if captions_path.is_file() else {},
        )

    def captions(self, stimulus: str) -> tuple[str, ...]:
        """Captions of one stimulus, () where it has none."""
        return self._captions.get(stimulus, ())

    def path(self, stimulus: str) -> Path:
        """File that holds the pixels of one stimulus (the whole brick's file where it is in one)."""
        return self._place(stimulus).path

    def images(
        self, ids: Sequence[str], size: int | None = None, show: Show | None = None
    ) -> NDArray[np.uint8]:
        """Read images.

        Parameters
        ----------
        ids : sequence of str
        size : int, optional
            Side in pixels to which every image is resized (bilinear as PIL does it, to a square); by
            default the images stay as they are and must all have one size.
        show : callable, optional
            ``show(ids, "text")`` gives the ids back one by one and may draw a progress bar.

        Returns
        -------
        ndarray of uint8, shape (n, H, W, 3)
            RGB, 0 to 255, in the order of ``ids``.

        Raises
        ------
        AppError
            Exit code 66 for a missing file, 65 for one that is no image, is too large to be decoded
            safely, or whose size differs from the others'.
        """
        order = list(ids)
        iterable = show(order, "Reading stimuli") if show is not None else order
        result: NDArray[np.uint8] | None = None
        with Bricks() as bricks:
            for index, stimulus in enumerate(iterable):
                pixels = self._pixels(stimulus, bricks)
                if size is not None and pixels.shape[:2] != (size, size):
                    resized = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)
                    pixels = np.asarray(resized)
                if result is None:
                    result = np.empty((len(order), *pixels.shape), np.uint8)
                if pixels.shape != result.shape[1:]:
                    raise _bad(
                        self.path(stimulus),
                        f"stimulus {stimulus} has {pixels.shape[1]} x {pixels.shape[0]} pixels, others "
                        f"have {result.shape[2]} x {result.shape[1]}; give all one size",
                    )
                result[index] = pixels
        if result is None:
            return np.empty((0, size or 0, size or 0, 3), np.uint8)
        return result

    def digest(self, stimulus: str) -> str:
        """Hexadecimal SHA-256 over a stimulus' stored bytes and its captions.

        The bytes are those of its file, or of its row of the brick.
        """
        place = self._place(stimulus)
        digest = hashlib.sha256()
        if place.row is None:
            require(place.path)
            digest.update(place.path.read_bytes())
        else:
            with Bricks() as bricks:
                digest.update(bricks.row(place.path, place.row).tobytes())
        for caption in self.captions(stimulus):
            digest.update(b"\0" + caption.encode())
        return digest.hexdigest()

    def files_missing(self, ids: Sequence[str] | None = None) -> list[str]:
        """Paths of image files that are not there, of all stimuli or of some; each once, sorted."""
        paths = {self._place(stimulus).path for stimulus in (self.ids if ids is None else ids)}
        return sorted(str(path) for path in paths if not path.is_file())

    def _place(self, stimulus: str) -> _Place:
        try:
            return self._places[stimulus]
        except KeyError:
            raise _bad(self.folder / "stimuli.tsv", f"has no stimulus {stimulus!r}") from None

    def _pixels(self, stimulus: str, bricks: Bricks) -> NDArray[np.uint8]:
        place = self._place(stimulus)
        if place.row is not None:
            return bricks.row(place.path, place.row)
        return decode(place.path)


def _find_folder(base: Path) -> Path:
    candidates = [base]
    if base.absolute().parent.name == "derivatives":
        candidates.append(base.absolute().parent.parent)
    for candidate in candidates:
        if (candidate / "stimuli" / "stimuli.tsv").is_file():
            return candidate / "stimuli"
    message = (
        f"{base / 'stimuli' / 'stimuli.tsv'} is missing, so the images that were shown are unknown. "
        "Write a table with the columns stimulus_id, file and split."
    )
    raise AppError(message, exit_code=ExitCode.NO_INPUT)


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
    if not kept:
        raise _bad(path, "lists no stimuli")
    by_row = {row: stimulus for stimulus, row in seen.items()}
    return tuple(by_row[row] for row in kept), kept


def _read_places(
    path: Path, table: dict[str, list[str]], ids: tuple[str, ...], kept: list[int]
) -> dict[str, _Place]:
    files = next((table[name] for name in _FILE_COLUMNS if name in table), None)
    rows = next((table[name] for name in _ROW_COLUMNS if name in table), None)
    dataset = Path(os.path.realpath(path.parent.parent))
    find = _DefaultFile(path.parent)
    inside: dict[str, bool] = {}
    named: dict[str, Path] = {}
    places, problems = {}, []
    for stimulus, row in zip(ids, kept, strict=True):
        name = files[row].strip() if files is not None else ""
        if name not in _NONE and name not in named:
            named[name] = path.parent / name
        file = named[name] if name in named else find(stimulus)
        if name not in _NONE and not _is_plain(name):
            what = f"Line {row + 2}: the file {name!r} lies outside of the dataset."
            problems.append(Problem(str(path), what, "Name files by their path inside the stimuli folder."))
            continue
        where = str(file.parent)
        if where not in inside:
            inside[where] = _leads_into(file.parent, dataset)
        if not inside[where]:
            what = f"Line {row + 2}: the folder of {name!r} is a link that leads out of the dataset."
            problems.append(Problem(str(path), what, "Put the images themselves into the dataset."))
            continue
        number = None
        if file.suffix.lower() in _BRICK_SUFFIXES:
            text = rows[row].strip() if rows is not None else ""
            if not re.fullmatch(r"\d{1,12}", text):
                what = f"Line {row + 2}: {name} is a brick of images, but {text!r} is no row of it."
                problems.append(Problem(str(path), what, "Give the row, from 0, in a column 'row'."))
                continue
            number = int(text)
        places[stimulus] = _Place(file, number)
    if problems:
        raise InputProblems(problems)
    return places


def _is_plain(name: str) -> bool:
    """Whether a path from the table is relative and climbs nowhere, on any operating system."""
    if re.fullmatch(r"\w[\w.-]*", name):
        return True  # a bare file name; said first because tables have tens of thousands of them
    if "\0" in name or "://" in name:
        return False
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    absolute = PurePosixPath(name).is_absolute() or bool(PureWindowsPath(name).anchor)
    return not absolute and ".." not in parts


def _leads_into(folder: Path, dataset: Path) -> bool:
    """Whether a folder, with its links followed, is the dataset's.

    Links of single files may lead out (DataLad and a linking converter make such); what they point
    to is only ever read as an image.
    """
    return Path(os.path.realpath(folder)).is_relative_to(dataset)


class _DefaultFile:
    """Where an image lies whose row names no file: ``stim-<id>_image.png``, or ``images/<id>``."""

    def __init__(self, folder: Path) -> None:
        images = folder / "images"
        # One listing instead of a question a stimulus: on a network disk 73,000 of them take minutes.
        self._images = images if images.is_dir() else None
        self._names = {entry.name for entry in os.scandir(images)} if images.is_dir() else set()
        self._folder = folder

    def __call__(self, stimulus: str) -> Path:
        if self._images is not None and stimulus in self._names:
            return self._images / stimulus
        safe = stimulus.replace("/", "_").replace("\\", "_")
        return self._folder / f"stim-{safe}_image.png"


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
    return AppError(f"{path}: {what}.", exit_code=ExitCode.BAD_DATA)
