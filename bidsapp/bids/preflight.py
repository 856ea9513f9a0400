"""Checks of the input before anything is computed; they report everything that is wrong at once.

Only headers, tables and the small 3-D masks are read, never the betas.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bidsapp.bids.inputs import Dataset
from bidsapp.bids.outputs import stimulus_labels
from bidsapp.bids.voxels import choose_voxels
from bidsapp.errors import AppError, ExitCode, Problem
from bidsapp.records import Session, Split, SubjectInputs
from bidsapp.storage.hdf5 import REVERSED_AXES, REVERSED_AXES_FIX, open_array
from bidsapp.storage.hdf5 import SUFFIXES as HDF5_SUFFIXES
from bidsapp.storage.nifti import TOLERANCE, displacement, load_volume, read_header


class Stimuli(Protocol):
    """The part of a :class:`~bidsapp.data.stimuli.StimulusSet` that is checked."""

    @property
    def table(self) -> Path:
        """The table of stimuli."""

    @property
    def captions_path(self) -> Path | None:
        """Where captions come from."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Stimulus ids without ``stim-``."""

    def captions(self, stimulus: str) -> tuple[str, ...]:
        """Captions of one stimulus."""

    def files_missing(self, ids: Sequence[str] | None = None) -> list[str]:
        """Missing image files."""


def find_problems(
    dataset: Dataset,
    stimuli: Stimuli | None,
    split: Split | Mapping[str, Split] | None,
    *,
    captions: bool = True,
    min_noise_ceiling: float | None = None,
) -> list[Problem]:
    """Check a dataset; each problem is listed once, those that indexing found first.

    Parameters
    ----------
    stimuli, split : StimulusSet and Split (or mapping of subject label to Split), or None
        None if reading or making them has already given problems of its own.
    captions : bool
        Whether stimuli need captions.
    min_noise_ceiling : float, optional
        Percent; every subject then needs a noise-ceiling map, and voxels that reach this.
    """
    problems = list(dataset.problems)
    for subject in dataset.subjects:
        own = _check_subject(dataset, subject)
        if min_noise_ceiling is not None:
            own += _check_reliability(dataset, subject, min_noise_ceiling, own)
        problems += [replace(p, subject=subject.label) for p in own]
    if stimuli is not None:
        splits = _splits_of(dataset, split)
        problems += _check_stimuli(dataset.subjects, stimuli, splits, captions)
        for name in dict.fromkeys(splits.values()):
            problems += _check_split(name)
    return list(dict.fromkeys(problems))


def _splits_of(dataset: Dataset, split: Split | Mapping[str, Split] | None) -> dict[str, Split]:
    if split is None:
        return {}
    if isinstance(split, Split):
        return {subject.label: split for subject in dataset.subjects}
    return dict(split)


def _check_subject(dataset: Dataset, subject: SubjectInputs) -> list[Problem]:
    problems: list[Problem] = []
    headers: list[tuple[Path, _Grid]] = []
    for session in subject.sessions:
        header = _grid(session.betas, problems)
        if header is not None:
            found, header = _check_betas(session, header)
            problems += found
            headers.append((session.betas, header))
    # HDF5 betas have no affine; the first image that has one is then the reference.
    reference = next((h for h in headers if h[1].affine is not None), headers[0] if headers else None)
    for path, header in headers:
        problems += _compare(path, header, reference, "betas of all sessions")
    inside = False
    for name, roi in dataset.rois.get(subject.label, {}).items():
        try:
            volume = load_volume(roi.path)
        except AppError as error:
            problems.append(Problem.of(error, roi.path, "Give a 3-D image in the betas' space."))
            inside = True  # reported already; not also as empty
            continue
        grid = _Grid(volume.data.shape, volume.affine)
        problems += _compare(roi.path, grid, reference, f"ROI {name}")
        if reference is not None and reference[1].affine is None:
            reference = (roi.path, _Grid(reference[1].shape, volume.affine))
        inside = inside or bool(roi.inside(volume).any())
    rois = dataset.rois.get(subject.label, {})
    if rois and not inside:
        what = f"No voxel of sub-{subject.label} is in the ROI {' or '.join(rois)} (no value above 0)."
        first = next(iter(rois.values())).path
        problems.append(Problem(str(first), what, "Choose another ROI, or correct the mask."))
    if subject.noise_ceiling is not None:
        ceiling = _grid(subject.noise_ceiling, problems)
        if ceiling is not None:
            problems += _compare(subject.noise_ceiling, ceiling, reference, "noise ceiling")
    return problems


def _check_reliability(
    dataset: Dataset, subject: SubjectInputs, minimum: float, known: Sequence[Problem]
) -> list[Problem]:
    """Check that voxels reach the minimum noise ceiling, unless the images have other problems."""
    if subject.noise_ceiling is not None and (known or not dataset.rois[subject.label]):
        return []
    fix = (
        "Add or correct the map (percent; --bids-filter-file, key 'noiseceiling', chooses one), "
        "or leave out --min-noise-ceiling."
    )
    try:
        mask = choose_voxels(dataset, subject.label, minimum)
    except AppError as error:
        return [Problem.of(error, dataset.root / f"sub-{subject.label}", fix)]
    if mask.n_voxels:
        return []
    what = f"None of the {mask.n_roi} voxels of the ROI has a noise ceiling of at least {minimum:g}%."
    fix = "Choose a lower --min-noise-ceiling, or another ROI."
    return [Problem(str(subject.noise_ceiling), what, fix)]


@dataclass(frozen=True)
class _Grid:
    """Shape of an image, x first, and its affine, (4, 4) in mm, None if the file has none."""

    shape: tuple[int, ...]
    affine: NDArray[np.float64] | None


def _grid(path: Path, problems: list[Problem]) -> _Grid | None:
    try:
        if path.suffix in HDF5_SUFFIXES:
            with open_array(path) as array:
                return _Grid(array.shape[::-1], None)
        header = read_header(path)
        return _Grid((*header.shape, header.n_volumes), header.affine)
    except AppError as error:
        problems.append(Problem.of(error, path, "Copy or download the file again."))
        return None


def _check_betas(session: Session, header: _Grid) -> tuple[list[Problem], _Grid]:
    """Compare the number of volumes with the trials; return the grid, in the right order of axes."""
    volumes, trials = header.shape[3], len(session.stimulus_ids)
    if volumes == trials:
        return [], header
    if session.betas.suffix in HDF5_SUFFIXES and header.shape[0] == trials:
        reversed_axes = _Grid(header.shape[::-1], None)
        return [Problem(str(session.betas), REVERSED_AXES, REVERSED_AXES_FIX)], reversed_axes
    plural = "s" if volumes != 1 else ""
    what = f"Holds {volumes} volume{plural}, but {session.trials} lists {trials} trials."
    fix = "The table needs one row per volume. Add the missing trials, or use files of the same version."
    return [Problem(str(session.betas), what, fix)], header


def _compare(path: Path, header: _Grid, reference: tuple[Path, _Grid] | None, what: str) -> list[Problem]:
    if reference is None:
        return []
    other, expected = reference
    if header.shape[:3] != expected.shape[:3]:
        text = f"{what}: the volume's shape is {header.shape[:3]}, that of {other} is {expected.shape[:3]}."
        return [Problem(str(path), text, "All images of a subject must be in the same space and grid.")]
    if expected.affine is None or header.affine is None:
        return []
    distance = displacement(expected.affine, header.affine, expected.shape)
    if distance > TOLERANCE:
        text = f"{what}: its affine differs from that of {other}, by up to {distance:.2f} voxels."
        return [Problem(str(path), text, "Resample the image onto the betas' grid, or correct its affine.")]
    return []


def _check_stimuli(
    subjects: Iterable[SubjectInputs], stimuli: Stimuli, splits: Mapping[str, Split], captions: bool
) -> list[Problem]:
    table = str(stimuli.table)
    known = set(stimuli.ids)
    problems = []
    seen: dict[str, None] = {}
    for subject in subjects:
        for session in subject.sessions:
            shown = dict.fromkeys(s for s in session.stimulus_ids if s)
            unknown = [s for s in shown if s not in known]
            if unknown:
                what = f"{_count(unknown, 'stimulus', 'stimuli')} not listed in {table}: {_some(unknown)}"
                fix = "List every stimulus that was shown, spelled as in the trials table."
                problems.append(Problem(str(session.trials), what, fix, subject=subject.label))
            seen |= {s: None for s in shown if s in known}
    used = {s for split in splits.values() for s in (*split.train, *split.test)} if splits else set(seen)
    needed = [s for s in seen if s in used]
    missing = stimuli.files_missing(needed)
    if missing:
        what = f"{_count(missing, 'image file is', 'image files are')} missing: {_some(missing)}"
        fix = "Put the images into the stimuli folder, or correct the column 'file'."
        if stimuli.table.suffix == ".csv":
            fix = "Download LAION-fMRI's images with its own command: laion-fmri download-stimuli."
        problems.append(Problem(table, what, fix, ExitCode.NO_INPUT))
    silent = [s for s in needed if not stimuli.captions(s)] if captions else []
    if silent:
        what = f"{_count(silent, 'stimulus has', 'stimuli have')} no caption: {_some(silent)}"
        fix = "Give each at least one row (stimulus_id, caption)."
        path = stimuli.captions_path or stimuli.table.with_name("captions.tsv")
        if stimuli.captions_path is None:
            what += " This recipe predicts the captions' CLIP tokens."
            fix = "Write this table (stimulus_id, caption), or give one with --captions FILE."
        problems.append(Problem(str(path), what, fix))
    tested = {s for split in splits.values() for s in split.test} if splits else set(needed)
    try:
        stimulus_labels(sorted(tested))
    except AppError as error:
        problems.append(Problem(table, str(error), "Rename one of them.", error.exit_code))
    return problems


def _count(items: Sequence[str], one: str, many: str) -> str:
    return f"{len(items)} {one if len(items) == 1 else many}"


def _some(items: Sequence[str], most: int = 5) -> str:
    return ", ".join(items[:most]) + (" ..." if len(items) > most else ".")


def _check_split(split: Split) -> list[Problem]:
    where = str(split.file or split.name)
    problems = []
    for kind, ids in (("training", split.train), ("test", split.test)):
        if not ids:
            what = f"The {kind} set is empty."
            problems.append(Problem(where, what, "Check the split and the sessions chosen."))
        elif len(ids) < 2:
            # Ridge needs differences between images; identification compares with other images.
            what = f"The {kind} set has one stimulus."
            problems.append(
                Problem(where, what, "Two at least are needed: check the split and the sessions.")
            )
    both = sorted(set(split.train) & set(split.test))
    if both:
        what = f"{_count(both, 'stimulus is', 'stimuli are')} in both the training and the test set: "
        problems.append(Problem(where, what + _some(both), "Put each stimulus into one set."))
    return problems
