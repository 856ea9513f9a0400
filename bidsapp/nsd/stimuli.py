"""NSD's 73,000 images: their table, the HDF5 brick with their pixels, and COCO's captions."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bidsapp.errors import AppError, ExitCode
from bidsapp.nsd.design import Design
from bidsapp.nsd.layout import COCO_SPLITS
from bidsapp.storage.hdf5 import open_array
from bidsapp.storage.text import read_json

#: The brick's array, uint8 (images, H, W, 3); row = 73k ID - 1.
BRICK_KEY = "imgBrick"
#: Name of the brick in the dataset.
BRICK_NAME = "nsd_stimuli.hdf5"
_COLUMNS = ("nsdId", "cocoId", "cocoSplit", "shared1000")


def label(image: int) -> str:
    """Label of an image from its 1-based 73k ID, as NSD names its shared images: ``nsd02951``."""
    return f"nsd{image:05d}"


@dataclass(frozen=True)
class StimulusInfo:
    """``nsd_stim_info_merged.csv``; row i is the image with the 73k ID i + 1.

    Attributes
    ----------
    coco_split : tuple of str
        ``train2017`` or ``val2017``.
    crop_box : tuple of str
        Part of the COCO image that was cut off: "(top, bottom, left, right)", as fractions of its size.
    shared : ndarray of bool, (images,)
    shown_on : mapping of (int, int) to int
        (subject, trial), both from 1, to the 73k ID that the table plans there.
    """

    coco_id: tuple[int, ...]
    coco_split: tuple[str, ...]
    crop_box: tuple[str, ...]
    shared: NDArray[np.bool_]
    shown_on: Mapping[tuple[int, int], int]

    def __len__(self) -> int:
        return len(self.coco_id)


def read_stimulus_info(path: Path) -> StimulusInfo:
    """Read NSD's table of images.

    Raises
    ------
    AppError
        Exit code 65 if it is not such a table; the message has the line.
    """
    rows: dict[int, dict[str, str]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            lacking = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if lacking:
                raise _bad(path, f"lacks the column {' and the column '.join(lacking)}")
            for line, row in enumerate(reader, start=2):
                nsd_id = _whole(path, line, "nsdId", row["nsdId"])
                if nsd_id in rows:
                    raise _bad(path, f"line {line}: the image {nsd_id} is listed twice")
                _whole(path, line, "cocoId", row["cocoId"])
                if (row["cocoSplit"] or "").strip() not in COCO_SPLITS:
                    raise _bad(path, f"line {line}: cocoSplit must be {' or '.join(COCO_SPLITS)}")
                rows[nsd_id] = row
    except (csv.Error, UnicodeDecodeError) as error:
        raise _bad(path, f"is not a readable CSV table ({error})") from error
    if sorted(rows) != list(range(len(rows))) or not rows:
        raise _bad(path, "must list every image once, numbered from 0 in nsdId")
    ordered = [rows[i] for i in range(len(rows))]
    shared = [(row["shared1000"] or "").strip().lower() in ("true", "1", "1.0") for row in ordered]
    return StimulusInfo(
        coco_id=tuple(int(row["cocoId"]) for row in ordered),
        coco_split=tuple(row["cocoSplit"].strip() for row in ordered),
        crop_box=tuple((row.get("cropBox") or "").strip() for row in ordered),
        shared=np.array(shared),
        shown_on=_planned(path, ordered),
    )


def _planned(path: Path, rows: Sequence[Mapping[str, str]]) -> dict[tuple[int, int], int]:
    """Read the columns ``subject1_rep0`` ...: the trial (from 1) of each repeat, 0 for none."""
    names = [name for name in rows[0] if name and name.startswith("subject") and "_rep" in name]
    planned = {}
    for name in names:
        subject = name.removeprefix("subject").partition("_")[0]
        if not subject.isdecimal():
            continue
        for image, row in enumerate(rows, start=1):
            text = row[name]
            if text and text not in ("0", "0.0"):
                planned[int(subject), _whole(path, image + 1, name, text)] = image
    return planned


def _whole(path: Path, line: int, column: str, text: str | None) -> int:
    try:
        value = float(text or "")
        if value >= 0 and value.is_integer() and value < 1e12:
            return int(value)
    except ValueError:
        pass
    raise _bad(path, f"line {line}: {column} is {text!r}, which is not a whole number")


def check_agreement(info: StimulusInfo, design: Design, table: Path, design_file: Path) -> None:
    """Compare the table with the design; one counts from 0, the other from 1.

    Raises
    ------
    AppError
        Exit code 65 if the table lacks an image of the design, or if the two disagree on the image of a
        trial or on the shared images, as shifted indices would.
    """
    if design.images.max() > len(info):
        what = f"lists {len(info)} images, but {design_file} has the 73k ID {design.images.max()}"
        raise _bad(table, what)
    shared = np.flatnonzero(info.shared) + 1
    if not np.array_equal(shared, np.sort(design.shared)):
        what = f"marks {shared.size} images as shared1000"
        raise _bad(table, f"{what}, which differ from the {design.n_shared} in {design_file}")
    for (subject, trial), image in info.shown_on.items():
        if subject <= design.n_subjects and trial <= design.order.size:
            expected = int(design.images[subject - 1, design.order[trial - 1] - 1])
            if expected != image:
                where = f"trial {trial} of subject {subject}"
                raise _bad(table, f"has the 73k ID {image} on {where}, but {design_file} has {expected}")


@contextmanager
def open_brick(path: Path) -> Iterator[Any]:
    """Open the brick of all images, of which a subset may be stored; yields an ``h5py.Dataset``.

    Raises
    ------
    AppError
        Exit code 65 if the file is damaged, lacks such an array, or stores it in other files.
    """
    with open_array(path, BRICK_KEY, sparse=True) as brick:
        if brick.dtype != np.uint8 or brick.shape[3] != 3:
            raise _bad(path, f"must hold {BRICK_KEY}, a uint8 array of shape (images, H, W, 3)")
        yield brick


def png_name(image: int) -> str:
    """File name of an image, from its 1-based 73k ID."""
    return f"stim-{label(image)}_image.png"


def read_captions(paths: Sequence[Path]) -> dict[int, list[str]]:
    """Read COCO's caption files.

    Returns captions by COCO ID, in the order of the annotation ids.

    Raises
    ------
    AppError
        Exit code 65 if a file does not have COCO's form.
    """
    found: dict[int, dict[int, str]] = {}
    for path in paths:
        annotations = read_json(path, most=1 << 28).get("annotations")
        if not isinstance(annotations, list):
            what = f"{path}: lacks the list 'annotations'. Give COCO's captions_*.json."
            raise AppError(what, exit_code=ExitCode.BAD_DATA)
        for number, entry in enumerate(annotations):
            try:
                image, key, text = entry["image_id"], entry["id"], entry["caption"]
            except (TypeError, KeyError) as error:
                raise _bad_annotation(path, number) from error
            if not (isinstance(image, int) and isinstance(key, int) and isinstance(text, str)):
                raise _bad_annotation(path, number)
            if any("\ud800" <= c <= "\udfff" for c in text):  # half of a surrogate pair: not UTF-8
                what = f"{path}: annotation {number} (from 0) has a caption that is not valid Unicode."
                raise AppError(what, exit_code=ExitCode.BAD_DATA, path=path)
            found.setdefault(image, {})[key] = " ".join(text.split())
    return {image: [texts[key] for key in sorted(texts)] for image, texts in found.items()}


def _bad_annotation(path: Path, number: int) -> AppError:
    what = f"{path}: annotation {number} (from 0) lacks image_id, id or caption. Give COCO's captions_*.json."
    return AppError(what, exit_code=ExitCode.BAD_DATA)


def _bad(path: Path, what: str) -> AppError:
    return AppError(f"{path}: {what}. Download it again.", exit_code=ExitCode.BAD_DATA)
