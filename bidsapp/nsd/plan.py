"""What of NSD is there, what is missing, what can be converted: headers and tables only, nothing written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bidsapp.errors import AppError, ExitCode, InputProblems, Problem
from bidsapp.nsd import layout, sources
from bidsapp.nsd.design import Design, read_design
from bidsapp.nsd.layout import Missing, Nsd
from bidsapp.nsd.sources import Betas, Findings
from bidsapp.nsd.stimuli import StimulusInfo, check_agreement, read_stimulus_info
from bidsapp.storage.nifti import Header


@dataclass(frozen=True)
class SessionPlan:
    """A session to convert: its number (from 1), its betas, and how many trials it has."""

    number: int
    source: Path
    extension: str
    n_trials: int

    @property
    def label(self) -> str:
        """BIDS label, as in NSD's raw data."""
        return f"nsd{self.number:02d}"


@dataclass(frozen=True)
class SubjectPlan:
    """What is converted of one subject.

    Attributes
    ----------
    number : int
        From 1.
    sessions : tuple of SessionPlan
    shape : tuple of int
        (x, y, z) of the betas.
    grid : Header or None
        Of the betas; None where all are HDF5, which has no affine.
    mask, ncsnr : Path or None
        None where they are not there, or only in the dataset already.
    segmentations : dict of str to (Path, Path)
        Volume of labels and table of their names, by NSD's name.
    """

    number: int
    sessions: tuple[SessionPlan, ...]
    shape: tuple[int, ...]
    grid: Header | None
    mask: Path | None
    segmentations: Mapping[str, tuple[Path, Path]]
    ncsnr: Path | None

    @property
    def label(self) -> str:
        """BIDS label."""
        return f"{self.number:02d}"

    @property
    def n_trials(self) -> int:
        """Number of trials of all its sessions."""
        return sum(s.n_trials for s in self.sessions)

    def describe(self) -> str:
        """Say in a line what there is."""
        parts = [f"{len(self.sessions)} sessions, {self.n_trials} trials"]
        parts += [layout.MASK] if self.mask else []
        parts += [f"{len(self.segmentations)} segmentations"] if self.segmentations else []
        parts += ["noise ceiling"] if self.ncsnr else []
        return f"sub-{self.label}: {', '.join(parts)}"


@dataclass(frozen=True)
class Plan:
    """All that will be converted, and all that can't be."""

    nsd: Nsd
    design: Design
    info: StimulusInfo
    subjects: tuple[SubjectPlan, ...]
    brick: Path | None
    captions: tuple[Path, ...]
    missing: tuple[Missing, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def make_plan(nsd: Nsd, bids_dir: Path, participants: Sequence[str], captions: Sequence[Path]) -> Plan:
    """Look at everything that is needed.

    Parameters
    ----------
    nsd : Nsd
    bids_dir : Path
        The dataset; what it holds already need not be in NSD's folder any more.
    participants : sequence of str
        Labels (``01``, ``1``, ``sub-01``, ``subj01``); empty for all that have betas.
    captions : sequence of Path
        COCO's caption files; empty to look for them in NSD's folder.

    Returns
    -------
    Plan

    Raises
    ------
    AppError
        Exit code 66 without the folder, the design or the table of images, or without any betas; 65 where
        design or table are damaged or contradict each other; 18 for a participant that NSD does not have.
    """
    if not nsd.root.is_dir():
        mend = "Give the folder that holds nsddata and nsddata_betas; in a container, check the mounts."
        raise AppError(f"NSD_DIR {nsd.root} is no folder. {mend}", exit_code=ExitCode.NO_INPUT)
    design, info = _read_tables(nsd)
    numbers = _choose_subjects(nsd, participants)
    found = Findings()
    if not info.shown_on:
        found.notes.append(
            f"{nsd.root / layout.STIMULUS_INFO} has no columns subject1_rep0 ...: which image each trial "
            "showed is the design's word alone, and could not be compared."
        )
    betas = {n: sources.find_betas(nsd, bids_dir, n, found) for n in numbers}
    design = _divide(design, [b for sessions, _ in betas.values() for b in sessions.values()], nsd)
    subjects = [_subject(nsd, bids_dir, n, *betas[n], design, found) for n in numbers]
    kept = tuple(s for s in subjects if s.sessions)
    if not kept:
        raise InputProblems([*found.problems, *map(as_problem, found.missing)])
    brick = sources.find_brick(nsd, bids_dir, info, found)
    files = sources.find_captions(nsd, bids_dir, info, captions, found)
    rest = tuple(found.missing), tuple(found.problems), tuple(found.notes)
    return Plan(nsd, design, info, kept, brick, files, *rest)


def as_problem(missing: Missing) -> Problem:
    """Put a missing file as a problem with its way to be mended."""
    return Problem(
        str(missing.path), f"Missing: {missing.what}.", f"Download {missing.origin}", ExitCode.NO_INPUT
    )


def _read_tables(nsd: Nsd) -> tuple[Design, StimulusInfo]:
    needed = {
        layout.DESIGN: "the design, which image was shown on which trial",
        layout.STIMULUS_INFO: "the table of all images, with their COCO IDs",
    }
    missing = [nsd.missing(path, what) for path, what in needed.items() if nsd.find(path) is None]
    if missing:
        raise InputProblems([as_problem(m) for m in missing])
    design_file, table = nsd.root / layout.DESIGN, nsd.root / layout.STIMULUS_INFO
    design, info = read_design(design_file), read_stimulus_info(table)
    check_agreement(info, design, table, design_file)
    if design.n_subjects < len(layout.SESSIONS):
        what = f"subjectim has a row for {design.n_subjects} of NSD's {len(layout.SESSIONS)} subjects"
        raise AppError(f"{design_file}: {what}. Download it again.", exit_code=ExitCode.BAD_DATA)
    return design, info


def _choose_subjects(nsd: Nsd, asked: Sequence[str]) -> list[int]:
    """Give subject numbers; without any asked for, those whose folder of betas has a session."""
    most = len(layout.SESSIONS)
    if not asked:
        folders = {n: nsd.root / nsd.betas_folder(n) for n in range(1, most + 1)}
        numbers = [n for n, folder in folders.items() if any(folder.glob("betas_session*"))]
        if not numbers:
            what = "betas of any subject (check --betas and --space)"
            raise InputProblems([as_problem(nsd.missing(f"{nsd.session(1, 1)}.nii.gz", what))])
        return numbers
    numbers = []
    for label in asked:
        match = re.fullmatch(r"(?:sub-|subj)?0*([1-9]\d?)", label)
        if not match or int(match[1]) > most:
            message = f"NSD has no participant {label!r}; it has 01 to {most:02d}."
            raise AppError(message, exit_code=ExitCode.NOTHING_MATCHED)
        numbers.append(int(match[1]))
    return sorted(set(numbers))


def _divide(design: Design, betas: Sequence[Betas], nsd: Nsd) -> Design:
    """Where the design does not tell how long sessions are, take the length that most files have."""
    if design.runs or not betas:
        return design if design.runs else design.divided(design.order.size)
    lengths = Counter(b.shape[3] for b in betas)
    for length, _ in lengths.most_common():
        if design.order.size % length == 0:
            return design.divided(length)
    message = (
        f"{nsd.root / layout.DESIGN}: its {design.order.size} trials do not divide into sessions as long as "
        f"those of the betas ({', '.join(map(str, sorted(lengths)))} volumes). Take both from one release."
    )
    raise AppError(message, exit_code=ExitCode.BAD_DATA)


def _subject(
    nsd: Nsd,
    bids_dir: Path,
    number: int,
    betas: Mapping[int, Betas],
    absent: Sequence[int],
    design: Design,
    found: Findings,
) -> SubjectPlan:
    most = min(layout.SESSIONS[number - 1], design.n_sessions)
    sources.name_missing_sessions(nsd, number, absent, most, found)
    sessions, shape, grid = _check_sessions(betas, design, found)
    if not sessions:
        return SubjectPlan(number, (), shape, grid, None, {}, None)
    of_hdf5 = [s.number for s in sessions if s.extension == ".hdf5"]
    if of_hdf5:
        found.notes.append(
            f"sub-{number:02d}: betas are there as .hdf5 only, and taken as such, of {len(of_hdf5)} of "
            f"{len(sessions)} sessions."
        )
    pairs = {n: sources.find_segmentation(nsd, bids_dir, number, n, found) for n in layout.SEGMENTATIONS}
    return SubjectPlan(
        number,
        sessions,
        shape,
        grid,
        sources.find_mask(nsd, bids_dir, number, found),
        {name: pair for name, pair in pairs.items() if pair},
        sources.find_ncsnr(nsd, bids_dir, number, found),
    )


def _check_sessions(
    betas: Mapping[int, Betas], design: Design, found: Findings
) -> tuple[tuple[SessionPlan, ...], tuple[int, ...], Header | None]:
    """Keep the sessions that have as many volumes as the design has trials, and one shape."""
    sessions: list[SessionPlan] = []
    shape: tuple[int, ...] = ()
    grid: Header | None = None
    for session, own in sorted(betas.items()):
        expected = design.n_trials(session) if session <= design.n_sessions else 0
        if own.shape[3] != expected:
            what = f"holds {own.shape[3]} volumes, but session {session} has {expected} trials in the design"
        elif shape and own.shape[:3] != shape:
            what = f"has volumes of the shape {own.shape[:3]}, the sessions before have {shape}"
        else:
            shape, grid = own.shape[:3], grid or own.header
            sessions.append(SessionPlan(session, own.path, own.extension, expected))
            continue
        found.damaged(AppError(f"{own.path}: {what}.", exit_code=ExitCode.BAD_DATA), own.path)
    return tuple(sessions), shape, grid
