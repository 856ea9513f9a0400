"""Regions of interest: mask files, labels of a segmentation, or a path pattern of the user's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bidsapp.bids._index import IndexedFile
from bidsapp.errors import AppError, ExitCode
from bidsapp.io import read_tsv
from bidsapp.nifti import load_volume, save_volume


@dataclass(frozen=True)
class Roi:
    """Where the voxels of one ROI are.

    Attributes
    ----------
    path : Path
        3-D image.
    indices : tuple of int
        Values of the image that belong to the ROI; empty means every voxel > 0.
    """

    path: Path
    indices: tuple[int, ...] = ()


def is_pattern(name: str) -> bool:
    """Whether a ROI's name is a path (with ``{subject}`` for the label) rather than a label."""
    return "/" in name or name.endswith((".nii", ".nii.gz"))


def find_roi(name: str, subject: str, files: Iterable[IndexedFile], base: Path) -> Roi:
    """Find one ROI of one subject.

    ``name`` may be the ``label`` (or ``desc``) of a mask, a ``seg`` (all its labels above 0), the
    name of one of a segmentation's labels as its TSV has it, the same without the ``v`` and ``d`` of
    ventral and dorsal parts (``V1`` joins ``V1v`` and ``V1d``), ``seg:name`` where several
    segmentations have that name, or a path in which ``{subject}`` stands for the label.

    Parameters
    ----------
    name, subject : str
    files : iterable of IndexedFile
        The subject's masks and segmentations that the filters let through.
    base : Path
        Where a relative path starts.

    Raises
    ------
    AppError
        Where there is none, or several; the message lists what there is.
    """
    if is_pattern(name):
        path = base / name.replace("{subject}", subject)
        if not path.is_file():
            raise _error(f"ROI {name!r}: there is no file {path}", ExitCode.NO_INPUT)
        return Roi(path)
    files = list(files)
    masks = [f for f in files if f.get("suffix") == "mask"]
    segmentations = [f for f in files if f.get("suffix") == "dseg"]
    for same in (_equal, _equal_but_case):
        found = [Roi(f.path) for f in masks if same(f.get("label"), name)]
        found = found or [Roi(f.path) for f in masks if not f.get("label") and same(f.get("desc"), name)]
        found = found or [Roi(f.path) for f in segmentations if same(f.get("segmentation"), name)]
        if found:
            break
    seg, _, part = name.rpartition(":")
    if not found:
        for file in segmentations:
            if not seg or file.get("segmentation").lower() == seg.lower():
                indices = matching_indices(read_labels(file.path), part)
                if indices:
                    found.append(Roi(file.path, indices))
    if len(found) == 1:
        return found[0]
    if found:
        listed = "\n      ".join(str(r.path) for r in found)
        raise _error(
            f"ROI {name!r} is in several files:\n      {listed}\n    A filter file's 'mask' entry, or "
            "seg:name for a segmentation, chooses one",
            ExitCode.USAGE,
        )
    raise _error(f"there is no ROI {name!r}. Found: {', '.join(_names(files)) or 'none'}", ExitCode.NO_INPUT)


def _equal(a: str, b: str) -> bool:
    return a == b


def _equal_but_case(a: str, b: str) -> bool:
    return a.lower() == b.lower()


def _names(files: Iterable[IndexedFile]) -> list[str]:
    names = set()
    for file in files:
        names.add(file.get("label") or file.get("segmentation") or file.get("desc"))
        if file.get("suffix") == "dseg":
            try:
                names |= {name for name in read_labels(file.path) if name}
            except AppError:
                continue  # said when that segmentation is asked for
    return sorted(n for n in names if n)


def read_labels(segmentation: Path) -> dict[str, tuple[int, ...]]:
    """Read a segmentation's label table (``index`` and ``name``), the TSV of the same name.

    Returns
    -------
    dict of str to tuple of int
        Values above 0 of each name, sorted; empty where there is no table.
    """
    path = segmentation.with_name(segmentation.name.removesuffix(".gz").removesuffix(".nii") + ".tsv")
    if not path.is_file():
        return {}
    table = read_tsv(path)
    if "index" not in table or "name" not in table:
        raise _error(f"{path}: needs the columns index and name", ExitCode.BAD_DATA)
    labels: dict[str, list[int]] = {}
    for line, (index, name) in enumerate(zip(table["index"], table["name"], strict=True), start=2):
        try:
            value = int(index)
        except ValueError as error:
            raise _error(f"{path}, line {line}: index {index!r} is no number", ExitCode.BAD_DATA) from error
        if value > 0:  # NSD marks voxels outside by -1 and 0
            labels.setdefault(name.strip(), []).append(value)
    return {name: tuple(sorted(set(values))) for name, values in labels.items()}


def matching_indices(labels: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...]:
    """Values that a name stands for: itself, or its ventral and dorsal parts."""
    wanted = name.lower()
    for options in ({wanted}, {wanted + "v", wanted + "d"}):
        values = [v for label, vs in labels.items() if label.lower() in options for v in vs]
        if values:
            return tuple(sorted(set(values)))
    return ()


def write_roi_mask(roi: Roi, path: Path) -> None:
    """Write the voxels of a ROI as a mask of 0 and 1 (uint8), for readers that know only masks."""
    save_volume(path, inside_roi(roi).astype(np.uint8), load_volume(roi.path).affine)


def inside_roi(roi: Roi) -> NDArray[np.bool_]:
    """Give the voxels of a ROI: its labels in a segmentation, else where its mask is above 0."""
    values = load_volume(roi.path)
    inside: NDArray[np.bool_] = np.isin(values.data, roi.indices) if roi.indices else values.data > 0
    return inside


def _error(message: str, code: ExitCode) -> AppError:
    return AppError(message + ".", exit_code=code)
