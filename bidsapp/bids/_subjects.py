"""Collect a subject's sessions, regions of interest and noise ceiling from the index."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from bidsapp.bids import _rois
from bidsapp.bids._filters import Filters
from bidsapp.bids._index import Index, IndexedFile, natural_key
from bidsapp.bids._sources import Files
from bidsapp.bids._trials import read_trials
from bidsapp.errors import AppError, ExitCode, Problem
from bidsapp.records import Session, SubjectInputs
from bidsapp.storage.hdf5 import SUFFIXES as HDF5_SUFFIXES
from bidsapp.storage.hdf5 import open_array
from bidsapp.storage.nifti import TOLERANCE, displacement, read_header

#: Sidecar key of the betas: stored values divided by it are percent signal change (NSD: 300).
SCALE_KEY = "ScaleFactor"


@dataclass(frozen=True)
class InputSelection:
    """What is used of a dataset.

    Attributes
    ----------
    participants, sessions : sequence of str
        Labels, with or without ``sub-`` and ``ses-``; by default all that have betas.
    max_sessions : int, optional
        Only the first so many of each subject's sessions, in natural order.
    task, space : str, optional
        Required if the betas have several.
    roi : sequence of str
        ROIs whose union of voxels is used: names of masks or of a segmentation's labels, or path patterns
        with ``{subject}`` (relative ones start at the dataset's folder).
    filters : path, optional
        BIDS filter file with the keys ``betas``, ``trials``, ``mask``, ``noiseceiling``.
    derivatives : mapping of str to Path
        Further datasets, by names that the caller chooses, whose masks and segmentations may be ROIs.
    """

    participants: Sequence[str] = ()
    sessions: Sequence[str] = ()
    max_sessions: int | None = None
    task: str | None = None
    space: str | None = None
    roi: Sequence[str] = ("nsdgeneral",)
    filters: str | os.PathLike[str] | None = None
    derivatives: Mapping[str, Path] = field(default_factory=dict)


class Finder:
    """Collects each subject's files, and the problems found on the way."""

    def __init__(
        self,
        index: Index,
        base: Path,
        filters: Filters,
        betas: list[IndexedFile],
        selection: InputSelection,
        others: Files,
    ) -> None:
        self._index, self._base, self._roi = index, base, selection.roi
        self._task, self._space = selection.task or "", selection.space or ""
        self._betas = _by_subject(betas)
        self._trials = _by_subject(filters.select(index, "trials"))
        self._masks, self._others = _by_subject(filters.select(index, "mask")), others
        self._ceilings = _by_subject(filters.select(index, "noiseceiling"))
        self.problems: list[Problem] = []
        self.rois: dict[str, dict[str, _rois.Roi]] = {}
        self.units: dict[str, str] = {}
        self.region_files: dict[str, dict[str, list[IndexedFile]]] = {}
        self._label = ""

    def subject(self, label: str) -> SubjectInputs:
        self._label = label
        betas = self._betas.get(label, [])
        reference = None
        sessions = []
        if not betas:
            what = f"No betas of sub-{label} for this task, space and these sessions."
            fix = "Leave the participant out, or choose a task, space or session that it has."
            self._problem(self._index.root / f"sub-{label}", what, fix, ExitCode.NOTHING_MATCHED)
        for file in _one_per_session(betas, self._problem):
            session, session_reference = self._session(file)
            reference = reference or session_reference
            if session is not None:
                sessions.append(session)
        self.rois[label] = self._find_rois(label)
        ceiling = _best_ceiling(self._fitting(self._ceilings.get(label, [])))
        return SubjectInputs(
            label=label,
            task=self._task,
            space=self._space,
            sessions=tuple(sessions),
            masks={name: roi.path for name, roi in self.rois[label].items()},
            noise_ceiling=self._ceiling(ceiling),
            spatial_reference=reference,
        )

    def _ceiling(self, file: IndexedFile | None) -> Path | None:
        if file is None:
            return None
        try:
            units = self._index.metadata(file).get("Units")
        except AppError as error:
            self._error(error, file.path, "Correct or remove that sidecar.", ExitCode.INVALID_BIDS)
            units = None
        if isinstance(units, str):
            self.units[str(file.path)] = units
        return file.path

    def _problem(self, path: Path, what: str, fix: str, code: ExitCode = ExitCode.BAD_DATA) -> None:
        self.problems.append(Problem(str(path), what, fix, code, self._label))

    def _error(self, error: AppError, path: Path, fix: str, code: ExitCode | None = None) -> None:
        problem = Problem.of(error, path, fix)
        # A sidecar above the subjects' folders is a problem of all subjects, to be listed once.
        own = f"sub-{self._label}" in Path(problem.path).parts
        subject = self._label if own else ""
        self.problems.append(replace(problem, code=code or problem.code, subject=subject))

    def _fitting(self, files: Iterable[IndexedFile]) -> list[IndexedFile]:
        """Files without a task or space other than that of the betas."""
        return [
            f
            for f in files
            if f.get("task") in ("", self._task) and (f.get("space") in ("", self._space) or not self._space)
        ]

    def _session(self, file: IndexedFile) -> tuple[Session | None, str | None]:
        label = file.get("session") + (f"run{file.get('run')}" if file.get("run") else "")
        scale, reference = self._sidecar(file)
        trials = _best_trials(file, self._trials.get(file.get("subject"), []))
        if trials is None:
            what = "No *_trials.tsv belongs to these betas, so the stimulus of each volume is unknown."
            fix = "Put a table (beta_index, stim_id) next to them, with the same session, task and run."
            self._problem(file.path, what, fix, ExitCode.NO_INPUT)
            return None, reference
        try:
            ids = read_trials(trials)
        except AppError as error:
            fix = "Correct the table: one row per volume, columns beta_index and stim_id."
            self._error(error, trials, fix)
            return None, reference
        return Session(label, file.path, trials, ids, scale), reference

    def _sidecar(self, file: IndexedFile) -> tuple[float, str | None]:
        try:
            metadata = self._index.metadata(file)
        except AppError as error:
            self._error(error, file.path, "Correct or remove that sidecar.", ExitCode.INVALID_BIDS)
            return 1.0, None
        scale = metadata.get(SCALE_KEY, 1.0)
        number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
        if not number or not 0 < scale <= sys.float_info.max:  # NaN is neither
            what = f"{SCALE_KEY} in its sidecar is {scale!r}, which is not a number above 0."
            self._problem(file.path, what, "Give the number that turns values into percent (NSD: 300).")
            scale = 1.0
        reference = metadata.get("SpatialReference")
        return float(scale), reference if isinstance(reference, str) else None

    def _find_rois(self, label: str) -> dict[str, _rois.Roi]:
        found = {}
        files = self._fitting(self._masks.get(label, []))
        others = {name: self._fitting(each.get(label, [])) for name, each in self._others.items()}
        self.region_files[label] = {"": files, **others}
        betas = self._betas.get(label, [])
        grid = partial(_same_grid, betas[0].path) if betas else None
        for name in dict.fromkeys(self._roi):
            try:
                found[name] = _rois.find_roi(name, label, files, self._base, others, grid)
            except AppError as error:
                fix = "Choose an existing one with --roi, or add the mask to the dataset."
                self._error(error, self._index.root / f"sub-{label}", fix)
        return found


def _same_grid(betas: Path, image: Path) -> bool:
    """Whether an image has the betas' voxels, as far as both headers can be read."""
    try:
        second = read_header(image)
        if betas.suffix in HDF5_SUFFIXES:  # no affine there
            with open_array(betas) as array:
                return bool(second.shape[:3] == array.shape[:0:-1])
        first = read_header(betas)
    except AppError:
        return False  # the checks report it if it matters
    same_shape = first.shape[:3] == second.shape[:3]
    return same_shape and displacement(first.affine, second.affine, first.shape) <= TOLERANCE


def _by_subject(files: Iterable[IndexedFile]) -> dict[str, list[IndexedFile]]:
    grouped: dict[str, list[IndexedFile]] = {}
    for file in files:
        grouped.setdefault(file.get("subject"), []).append(file)
    return grouped


def _one_per_session(betas: list[IndexedFile], report: Callable[[Path, str, str], None]) -> list[IndexedFile]:
    """One file per session (and run); several are a problem, unless one has desc-singletrial."""
    groups: dict[tuple[str, str], list[IndexedFile]] = {}
    for file in betas:
        groups.setdefault((file.get("session"), file.get("run")), []).append(file)
    kept = []
    for (session, _), files in sorted(groups.items(), key=lambda item: [natural_key(p) for p in item[0]]):
        named = [f for f in files if f.get("desc").lower().startswith("singletrial")]
        files = _without_twins(named if len(named) == 1 else files)
        kept.append(files[0])
        if len(files) > 1:
            listed = ", ".join(f.path.name for f in files)
            what = f"Several files could be the betas of session {session!r}: {listed}."
            report(files[0].path, what, "Choose by a filter file (--bids-filter-file), key 'betas'.")
    return kept


def _without_twins(files: list[IndexedFile]) -> list[IndexedFile]:
    """Leave out HDF5 files that also exist as NIfTI, which has an affine to check."""

    def stem(file: IndexedFile) -> str:
        return str(file.path).removesuffix(file.get("extension"))

    images = {stem(f) for f in files if f.get("extension") not in HDF5_SUFFIXES}
    return [f for f in files if f.get("extension") not in HDF5_SUFFIXES or stem(f) not in images]


def _best_trials(betas: IndexedFile, tables: Iterable[IndexedFile]) -> Path | None:
    """Choose the table whose entities the betas all share; the same ``desc`` and more entities win."""
    free = ("suffix", "extension", "desc", "stat", "datatype", "space")
    fitting = []
    for table in tables:
        own = {k: v for k, v in table.entities.items() if k not in free}
        same_space = table.get("space") in ("", betas.get("space"))
        if same_space and all(betas.get(k) == v for k, v in own.items()):
            same = table.get("desc").lower() == betas.get("desc").lower()
            fitting.append((same, len(own), table.path))
    return max(fitting, key=lambda item: item[:2])[2] if fitting else None


def _best_ceiling(maps: list[IndexedFile]) -> IndexedFile | None:
    """Choose the map over all sessions, never one session's, and plainly named before that of a selection.

    LAION-fMRI has ``Noiseceiling4rep``, ``12rep`` and ``Allrep`` for the subject, and ``Noiseceiling`` for
    each session.
    """
    whole = [f for f in maps if not f.get("session")]
    ranks = {"noiseceiling": 0, "noiseceilingallrep": 1}
    ordered = sorted(whole, key=lambda f: (ranks.get(f.get("desc").lower(), 2), str(f.path)))
    return ordered[0] if ordered else None
