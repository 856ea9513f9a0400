"""Find single-trial betas and what belongs to them in a BIDS derivative dataset."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bidsapp.bids import _rois
from bidsapp.bids._filters import Filters, read_filters
from bidsapp.bids._index import Index, IndexedFile, build_index, natural_key
from bidsapp.bids._sources import index_sources, masks_of
from bidsapp.bids._subjects import SCALE_KEY, Finder, InputSelection
from bidsapp.errors import AppError, ExitCode, InputProblems, Problem
from bidsapp.records import SubjectInputs
from bidsapp.storage.files import datasets_around
from bidsapp.storage.text import read_json

__all__ = ["SCALE_KEY", "Dataset", "InputSelection", "open_dataset"]

_MOUNTS = (
    "In a container, check that the folder is mounted and at this path: "
    "`docker run -v /path/to/bids:/data:ro ...`, `apptainer run -B /path/to/bids:/data:ro ...`."
)


@dataclass(frozen=True)
class Dataset:
    """The inputs of the participant level.

    Attributes
    ----------
    root : Path
        Folder that holds the ``sub-*`` folders of the betas.
    name : str
        ``Name`` of its description.
    subjects : tuple of SubjectInputs
        In natural order of labels. A subject with problems is listed with the files that were found.
    problems : tuple of Problem
        Found while indexing; :func:`bidsapp.bids.preflight.find_problems` passes them on.
    generated_by : str
        Name of the first ``GeneratedBy`` entry, "" if there is none.
    rois : mapping
        Subject label -> ROI name -> where its voxels are (a segmentation's ROI has its label values;
        ``SubjectInputs.masks`` has the file alone).
    units : mapping
        Path of a noise-ceiling map -> ``Units`` of its sidecar, if given.
    region_files : mapping
        Subject label -> masks and segmentations of the betas' task and space, by further dataset's name
        ("" for this one); see :func:`bidsapp.bids.regions.region_masks`.
    links : mapping
        Names under which outputs refer to the datasets that were read (``DatasetLinks``): ``source``
        is ``root``, then the further ones, and ``input`` the folder asked for where it is not ``root``.
    """

    root: Path
    name: str
    subjects: tuple[SubjectInputs, ...]
    problems: tuple[Problem, ...] = ()
    generated_by: str = ""
    rois: Mapping[str, Mapping[str, _rois.Roi]] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    region_files: Mapping[str, Mapping[str, Sequence[IndexedFile]]] = field(default_factory=dict)
    links: Mapping[str, Path] = field(default_factory=dict)

    def subject(self, label: str) -> SubjectInputs:
        """Give the subject of a label (KeyError if there is none)."""
        for subject in self.subjects:
            if subject.label == label:
                return subject
        raise KeyError(label)


def open_dataset(bids_dir: str | os.PathLike[str], selection: InputSelection | None = None) -> Dataset:
    """Index a dataset and choose the files that the app needs; no betas are read.

    Parameters
    ----------
    bids_dir : path
        A derivative dataset with ``sub-*`` at its root, or a dataset with the betas in one of its
        ``derivatives/*``.
    selection : InputSelection, optional
        By default everything that has betas.

    Raises
    ------
    AppError
        Exit code 66 for a missing or empty folder of any of the datasets, 16 without a valid
        dataset_description.json, 18 if nothing matches or a participant is unknown, 64 for a bad filter
        file.
    InputProblems
        If there are several tasks or spaces and none was chosen.
    """
    base = Path(bids_dir)
    asked = selection or InputSelection()
    filters = read_filters(None if asked.filters is None else Path(asked.filters))
    _check_folder(base)
    index, betas = _find_betas(base, filters)
    description = _read_description(base, index.root)

    betas, misnamed = _split_misnamed(betas, index.root)
    labels = _unique(f.get("subject") for f in betas)
    if not labels:
        raise InputProblems(misnamed)
    subjects = _choose_participants(asked.participants, labels, base)
    betas = [f for f in betas if f.get("subject") in subjects]
    betas = _choose_sessions(betas, asked.sessions, base)
    betas, task, space = _choose_task_and_space(betas, asked.task, asked.space, base)
    betas = _first_sessions(betas, asked.max_sessions)
    if not asked.participants:
        # Only subjects that were named must have the chosen task and sessions.
        subjects = [label for label in subjects if any(f.get("subject") == label for f in betas)]

    others = {name: Path(path) for name, path in asked.derivatives.items()}
    masks = masks_of(index_sources(others), filters)
    chosen = replace(asked, task=task, space=space)
    finder = Finder(index, base, filters, betas, chosen, masks)
    found = tuple(finder.subject(label) for label in subjects)
    return Dataset(
        root=index.root,
        name=str(description.get("Name", "")),
        subjects=found,
        problems=(*(() if asked.participants else misnamed), *finder.problems),
        generated_by=_first_generator(description),
        rois=finder.rois,
        units=finder.units,
        region_files=finder.region_files,
        links={"source": index.root, **others, **({"input": base} if base != index.root else {})},
    )


def _check_folder(base: Path) -> None:
    if not base.is_dir():
        what = "is not a folder" if base.exists() else "does not exist"
        raise AppError(f"BIDS_DIR {base} {what}. {_MOUNTS}", exit_code=ExitCode.NO_INPUT)
    try:
        empty = not any(base.iterdir())
    except OSError as error:
        message = f"BIDS_DIR {base} cannot be read ({error.strerror}). Check its permissions."
        raise AppError(message, exit_code=ExitCode.NO_INPUT) from error
    if empty:
        raise AppError(f"BIDS_DIR {base} is empty. {_MOUNTS}", exit_code=ExitCode.NO_INPUT)


def _find_betas(base: Path, filters: Filters) -> tuple[Index, list[IndexedFile]]:
    """Find the betas of the folder itself, or of the one derivative in it that has any."""
    own = build_index(base)
    betas = filters.select(own, "betas")
    if betas:
        return own, betas
    found = []
    derivatives = base / "derivatives"
    for folder in sorted(derivatives.iterdir()) if derivatives.is_dir() else []:
        if folder.is_dir() and any(folder.glob("sub-*")):
            index = build_index(folder)
            betas = filters.select(index, "betas")
            if betas:
                found.append((index, betas))
    # A localizer's maps have stat-effect as well; single trials come with a table of trials.
    found = [f for f in found if filters.select(f[0], "trials")] or found
    if len(found) > 1:
        listed = ", ".join(str(index.root) for index, _ in found)
        message = f"{base}: several derivatives hold single-trial betas: {listed}. Give one as BIDS_DIR."
        raise AppError(message, exit_code=ExitCode.USAGE)
    if found:
        return found[0]
    if not any((p / "dataset_description.json").is_file() for p in datasets_around(base)):
        raise _no_description(base)
    by = f" under the filters of {filters.path}" if filters.path else ""
    names = "sub-*_stat-effect*_statmap.nii.gz or .hdf5"
    message = f"{base}: no single-trial betas found{by} (files named like {names})."
    fix = "Check BIDS_DIR, or describe your files in a filter file (--bids-filter-file)."
    raise AppError(f"{message} {fix} {_MOUNTS}", exit_code=ExitCode.NOTHING_MATCHED)


def _split_misnamed(betas: list[IndexedFile], root: Path) -> tuple[list[IndexedFile], list[Problem]]:
    """Separate betas whose subject or session is not that of their folder; one problem per folder."""
    good, problems = [], {}
    for file in betas:
        if not file.get("subject") and not file.path.name.startswith("sub-"):
            continue  # of another program
        labels = {f"sub-{file.get('subject')}", f"ses-{file.get('session')}"}
        inside = file.path.relative_to(root.absolute()).parents
        wrong = next(
            (p for p in inside if p.name.startswith(("sub-", "ses-")) and p.name not in labels), None
        )
        if wrong is None:
            good.append(file)
            continue
        what = f"The folder's name is not a valid label, or not the one in {file.path.name}."
        fix = "BIDS labels hold letters, digits and + only (no hyphens, underscores or spaces). Rename both."
        problems[wrong] = Problem(str(root / wrong), what, fix, ExitCode.INVALID_BIDS)
    return good, list(problems.values())


def _no_description(base: Path) -> AppError:
    message = (
        f"{base / 'dataset_description.json'} is missing, so this is not a BIDS dataset. Write one with at "
        'least {"Name": "...", "BIDSVersion": "1.11.1", "DatasetType": "derivative", '
        '"GeneratedBy": [{"Name": "..."}]}, or check that BIDS_DIR is the dataset\'s root.'
    )
    return AppError(message, exit_code=ExitCode.INVALID_BIDS)


def _read_description(base: Path, root: Path) -> dict[str, object]:
    places = (root, base, *datasets_around(root))
    path = next((p for p in places if (p / "dataset_description.json").is_file()), None)
    if path is None:
        raise _no_description(base)
    path = path / "dataset_description.json"
    try:
        description = read_json(path)
    except AppError as error:
        raise AppError(str(error), exit_code=ExitCode.INVALID_BIDS) from error
    missing = [key for key in ("Name", "BIDSVersion") if not isinstance(description.get(key), str)]
    if missing:
        message = f"{path}: lacks {' and '.join(missing)}, which BIDS requires as text."
        raise AppError(message, exit_code=ExitCode.INVALID_BIDS)
    return description


def _first_generator(description: Mapping[str, object]) -> str:
    entries = description.get("GeneratedBy")
    if isinstance(entries, list) and entries and isinstance(entries[0], dict):
        return str(entries[0].get("Name", ""))
    return ""


def _unique(values: Iterable[str]) -> list[str]:
    return sorted({v for v in values if v}, key=natural_key)


def _choose_participants(asked: Sequence[str] | None, found: list[str], base: Path) -> list[str]:
    if not asked:
        return found
    labels = list(dict.fromkeys(label.removeprefix("sub-") for label in asked))
    unknown = [label for label in labels if label not in found]
    if not unknown:
        return sorted(labels, key=natural_key)
    near = [f for f in found for u in unknown if f.lstrip("0").lower() == u.lstrip("0").lower()]
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    if any("," in label for label in labels):
        hint = f" Separate labels by spaces: {' '.join(labels).replace(',', ' ')}."
    message = (
        f"No betas of participant{'s' if len(unknown) > 1 else ''} {', '.join(unknown)} in {base}. "
        f"Participants found: {_listed(found)}.{hint} {_MOUNTS}"
    )
    raise AppError(message, exit_code=ExitCode.NOTHING_MATCHED)


def _listed(values: Sequence[str], most: int = 20) -> str:
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return (", ".join(values[:most]) or "none") + more


def _choose_sessions(betas: list[IndexedFile], asked: Sequence[str] | None, base: Path) -> list[IndexedFile]:
    if not asked:
        return betas
    labels = {label.removeprefix("ses-") for label in asked}
    found = _unique(f.get("session") for f in betas)
    unknown = sorted(labels - set(found), key=natural_key)
    if unknown:
        message = f"No betas of session {', '.join(unknown)} in {base}. Sessions found: {_listed(found, 60)}."
        raise AppError(message, exit_code=ExitCode.NOTHING_MATCHED)
    return [f for f in betas if f.get("session") in labels]


def _first_sessions(betas: list[IndexedFile], most: int | None) -> list[IndexedFile]:
    """Betas of the first ``most`` sessions of each subject, with all their runs."""
    if most is None:
        return betas
    kept = set()
    for subject in _unique(f.get("subject") for f in betas):
        labels = {f.get("session") for f in betas if f.get("subject") == subject}
        kept |= {(subject, label) for label in sorted(labels, key=natural_key)[:most]}
    return [f for f in betas if (f.get("subject"), f.get("session")) in kept]


def _choose_task_and_space(
    betas: list[IndexedFile], task: str | None, space: str | None, base: Path
) -> tuple[list[IndexedFile], str, str]:
    problems = []
    result = {}
    for entity, given in (("task", task), ("space", space)):
        asked = given.removeprefix(f"{entity}-") if given else None
        found = _unique(f.get(entity) for f in betas)
        option = "--task-label" if entity == "task" else "--space"
        if asked is not None and asked not in found:
            message = f"{base}: no betas with {entity}-{asked}. Found: {_listed(found)}."
            raise AppError(message, exit_code=ExitCode.NOTHING_MATCHED)
        if asked is None and len(found) > 1:
            what = f"The betas have several values of {entity}: {_listed(found)}."
            problems.append(Problem(str(base), what, f"Choose one with {option}.", ExitCode.USAGE))
            continue
        result[entity] = asked if asked is not None else (found[0] if found else "")
        betas = [f for f in betas if f.get(entity) == result[entity]]
    if problems:
        raise InputProblems(problems)
    return betas, result["task"], result["space"]
