"""Regions of interest: mask files, labels of a segmentation, or a path pattern."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bidsapp.bids._index import IndexedFile
from bidsapp.errors import AppError, ExitCode, did_you_mean
from bidsapp.storage.nifti import Volume
from bidsapp.storage.text import read_tsv


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

    def inside(self, volume: Volume) -> NDArray[np.bool_]:
        """Find the ROI's voxels in its image: its labels in a segmentation, else where it is above 0.

        Above 0, not other than 0: NSD's volumes hold -1 outside of the ROI, and NaN is not above 0.
        """
        return np.isin(volume.data, self.indices) if self.indices else np.asarray(volume.data > 0)


def is_pattern(name: str) -> bool:
    """Whether a ROI is given as a path (with ``{subject}`` for the label) rather than a name."""
    return "/" in name or name.endswith((".nii", ".nii.gz"))


def find_roi(
    name: str,
    subject: str,
    files: Iterable[IndexedFile],
    base: Path,
    others: Mapping[str, Iterable[IndexedFile]] | None = None,
    fits: Callable[[Path], bool] | None = None,
) -> Roi:
    """Find one ROI of one subject.

    ``name`` may be the ``label`` (or ``desc``) of a mask, a ``seg`` (all its labels above 0), the name of a
    segmentation's label in its TSV, the same without the ``v`` and ``d`` of ventral and dorsal parts (``V1``
    joins ``V1v`` and ``V1d``), ``seg:name`` if several segmentations have that name, or a path in which
    ``{subject}`` stands for the label and ``*`` for anything. If no spelling matches exactly, case and
    hyphens are ignored.

    Parameters
    ----------
    files : iterable of IndexedFile
        The subject's masks and segmentations that pass the filters.
    base : Path
        Where relative paths start.
    others : mapping of str to iterable of IndexedFile, optional
        Those of further datasets, by the datasets' names: used if ``files`` has none, or if ``name`` is
        ``dataset:roi``.
    fits : callable, optional
        Whether an image is on the betas' grid, to choose among several.

    Raises
    ------
    AppError
        If there is none, or several; the message lists what there is.
    """
    own, further = list(files), {k: list(v) for k, v in (others or {}).items()}
    dataset, _, rest = name.partition(":")
    if is_pattern(name):
        found = [Roi(path) for path in _matching_paths(name.replace("{subject}", subject), base)]
    elif dataset in further:
        found = _matching(rest, further[dataset])
    else:
        found = _matching(name, own) or [roi for each in further.values() for roi in _matching(name, each)]
    if len(found) > 1 and fits is not None:
        found = [roi for roi in found if fits(roi.path)] or found
    if len(found) == 1:
        return found[0]
    if found:
        listed = "\n      ".join(str(r.path) for r in found)
        raise _error(
            f"ROI {name!r} is in several files:\n      {listed}\n    Choose one by the 'mask' "
            "entry of a filter file, by seg:name for a segmentation, or by dataset:name for --derivatives",
            ExitCode.USAGE,
        )
    if is_pattern(name):
        path = base / name.replace("{subject}", subject)
        raise _error(f"ROI {name!r}: there is no file {path}", ExitCode.NO_INPUT)
    there = _names(own) + [f"{k}:{n}" for k, each in further.items() for n in _names(each)]
    listed = ", ".join(there[:_MOST]) + (f" and {len(there) - _MOST} more" if len(there) > _MOST else "")
    hint = did_you_mean(name, there)
    raise _error(f"there is no ROI {name!r}.{hint} Found: {listed or 'none'}", ExitCode.NO_INPUT)


#: Names of ROIs that a message lists; LAION-fMRI has about 50.
_MOST = 80


def _matching_paths(pattern: str, base: Path) -> list[Path]:
    if not set("*?") & set(pattern):
        return [base / pattern] if (base / pattern).is_file() else []
    anchor = Path(pattern).anchor
    plain = pattern.removeprefix(anchor).replace("[", "[[]")  # only * and ? are wildcards
    found = (Path(anchor) if anchor else base).glob(plain)
    return sorted(path for path in found if path.is_file())


def _matching(name: str, files: list[IndexedFile]) -> list[Roi]:
    """ROIs of a name among some files, by the strictest spelling that matches any."""
    masks = [f for f in files if f.get("suffix") == "mask"]
    segmentations = [f for f in files if f.get("suffix") == "dseg"]
    for spelled in (str, str.lower, _letters):
        wanted = spelled(name)
        found = [Roi(f.path) for f in masks if spelled(f.get("label")) == wanted]
        unlabelled = (f for f in masks if not f.get("label"))
        found = found or [Roi(f.path) for f in unlabelled if spelled(f.get("desc")) == wanted]
        found = found or [Roi(f.path) for f in segmentations if spelled(f.get("segmentation")) == wanted]
        if found and wanted:
            return found
    found = []
    seg, _, part = name.rpartition(":")
    for file in segmentations:
        if not seg or file.get("segmentation").lower() == seg.lower():
            indices = matching_indices(read_labels(file.path), part)
            if indices:
                found.append(Roi(file.path, indices))
    return found


def _letters(text: str) -> str:
    """Letters and digits in lower case: LAION-fMRI's own package calls FFA-1 FFA1."""
    return "".join(c for c in text.lower() if c.isalnum())


def _names(files: Iterable[IndexedFile]) -> list[str]:
    names = set()
    for file in files:
        names.add(file.get("label") or file.get("segmentation") or file.get("desc"))
        if file.get("suffix") == "dseg":
            try:
                names |= {name for name in read_labels(file.path) if name}
            except AppError:
                continue  # reported when that segmentation is requested
    return sorted(n for n in names if n)


def read_labels(segmentation: Path) -> dict[str, tuple[int, ...]]:
    """Read a segmentation's label table (``index`` and ``name``), the TSV of the same name.

    Gives the sorted values above 0 of each name; empty if there is no table.
    """
    path = segmentation.with_name(segmentation.name.removesuffix(".gz").removesuffix(".nii") + ".tsv")
    if not path.is_file():
        return {}
    table = read_tsv(path)
    if "index" not in table or "name" not in table:
        raise _error(f"{path}: the columns index and name are needed", ExitCode.BAD_DATA, path)
    labels: dict[str, list[int]] = {}
    for line, (index, name) in enumerate(zip(table["index"], table["name"], strict=True), start=2):
        try:
            value = int(index)
        except ValueError as error:
            what = f"{path}, line {line}: index {index!r} is not a number"
            raise _error(what, ExitCode.BAD_DATA, path) from error
        if value > 0:  # NSD marks voxels outside by -1 and 0
            labels.setdefault(name.strip(), []).append(value)
    return {name: tuple(sorted(set(values))) for name, values in labels.items()}


def matching_indices(labels: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...]:
    """Values of a label, or of its ventral and dorsal parts."""
    wanted = name.lower()
    for options in ({wanted}, {wanted + "v", wanted + "d"}):
        values = [v for label, vs in labels.items() if label.lower() in options for v in vs]
        if values:
            return tuple(sorted(set(values)))
    return ()


def _error(message: str, code: ExitCode, path: Path | None = None) -> AppError:
    return AppError(message + ".", exit_code=code, path=path)
