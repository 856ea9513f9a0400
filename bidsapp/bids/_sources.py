"""Further datasets that masks may come from (``-d/--derivatives NAME=PATH``).

Their files may have BIDS names, or just the name of the ROI, anywhere in the subject's folder
(``sub-01/rois/hlvis.nii.gz``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bidsapp.bids._filters import Filters
from bidsapp.bids._index import Index, IndexedFile, build_index
from bidsapp.errors import AppError, ExitCode

_NIFTI = (".nii", ".nii.gz")

#: Name of a dataset -> subject label -> its masks, segmentations and noise-ceiling maps.
Files = Mapping[str, Mapping[str, list[IndexedFile]]]


def index_sources(datasets: Mapping[str, Path]) -> dict[str, Index]:
    """Index the further datasets.

    Raises
    ------
    AppError
        Exit code 66 for one that is not a folder or has no subjects.
    """
    indices = {}
    for name, root in datasets.items():
        if not root.is_dir():
            raise _missing(name, root, "is a file" if root.exists() else "does not exist")
        if not any(path.is_dir() for path in root.glob("sub-*")):
            raise _missing(name, root, "has no folders sub-*")
        indices[name] = build_index(root)
    return indices


def masks_of(indices: Mapping[str, Index], filters: Filters) -> Files:
    """Masks and segmentations of the further datasets, by name and subject."""
    found: dict[str, dict[str, list[IndexedFile]]] = {}
    for name, index in indices.items():
        by_subject = found.setdefault(name, {})
        for file in filters.select(index, "mask"):
            by_subject.setdefault(file.get("subject"), []).append(file)
        for file in index.files:
            plain = _plainly_named(file, index.root)
            if plain is not None:
                by_subject.setdefault(plain.get("subject"), []).append(plain)
    return found


def _plainly_named(file: IndexedFile, root: Path) -> IndexedFile | None:
    """Give a mask that is named after its ROI alone the entities that its folder and name imply."""
    folder = file.path.relative_to(root.absolute()).parts[0]  # the index has absolute paths
    if file.path.name.startswith("sub-") or not folder.startswith("sub-"):
        return None
    extension = next((e for e in reversed(_NIFTI) if file.path.name.endswith(e)), "")
    label = file.path.name.removesuffix(extension)
    if not extension or not label:
        return None
    entities = {"subject": folder.removeprefix("sub-"), "label": label, "suffix": "mask"}
    return IndexedFile(file.path, {**entities, "extension": extension})


def _missing(name: str, root: Path, what: str) -> AppError:
    message = f"--derivatives {name}={root}: {root} {what}. Give the folder that holds sub-* of that dataset."
    return AppError(message, exit_code=ExitCode.NO_INPUT, path=root)
