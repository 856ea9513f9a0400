"""What exists of NSD, what is missing and what can be converted. Reads headers and tables, writes nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bidsapp.errors import AppError, ExitCode, InputProblems, Problem
from bidsapp.nsd import layout
from bidsapp.nsd.design import Design, read_design
from bidsapp.nsd.layout import Missing, Nsd
from bidsapp.nsd.sources import Betas, Brick, Inventory, Sources
from bidsapp.nsd.stimuli import StimulusInfo, check_agreement, read_stimulus_info
from bidsapp.storage.hdf5 import REVERSED_AXES, REVERSED_AXES_FIX
from bidsapp.storage.nifti import Header


@dataclass(frozen=True)
class Settings:
    """What the user asked for.

    Attributes
    ----------
    betas, space : str
        Version and space of the betas.
    stimuli, link : str
        Form of the stimuli, and kind of link.
    participants : sequence of str
        Labels (``01``, ``1``, ``sub-01``, ``subj01``); empty for all that have betas.
    sessions : sequence of str
        Labels (``nsd01``, ``01``, ``1``); empty for all.
    captions : sequence of Path
        COCO's caption files; empty to look for them in NSD's folder.
    """

    betas: str = layout.BETAS[0]
    space: str = layout.SPACES[0]
    stimuli: str = layout.STIMULI[0]
    link: str = layout.LINKS[0]
    participants: Sequence[str] = ()
    sessions: Sequence[str] = ()
    captions: Sequence[Path] = ()


@dataclass(frozen=True)
class SessionPlan:
    """A session to convert, numbered from 1."""

    number: int
    source: Path
    extension: str
    n_trials: int

    @property
    def label(self) -> str:
        """BIDS label."""
        return layout.session_label(self.number)


@dataclass(frozen=True)
class SubjectPlan:
    """What is converted of one subject, numbered from 1.

    Attributes
    ----------
    shape : tuple of int
        (x, y, z) of the betas.
    grid : Header or None
        Of the betas; None if all are HDF5, which has no affine.
    mask, ncsnr : Path or None
        None if missing, or already in the dataset only.
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

    def summary(self) -> str:
        """One line about what will be converted."""
        parts = [f"{len(self.sessions)} sessions, {sum(s.n_trials for s in self.sessions)} trials"]
        parts += [layout.MASK] if self.mask else []
        parts += [f"{len(self.segmentations)} segmentations"] if self.segmentations else []
        parts += ["noise ceiling"] if self.ncsnr else []
        return f"sub-{self.label}: {', '.join(parts)}"


@dataclass(frozen=True)
class ConversionPlan:
    """What will be converted."""

    nsd: Nsd
    design: Design
    info: StimulusInfo
    subjects: tuple[SubjectPlan, ...]
    brick: Brick | None
    captions: tuple[Path, ...]


def plan_conversion(sources: Sources, settings: Settings) -> ConversionPlan:
    """Check everything that the conversion needs; the inventory takes what is missing or damaged.

    Raises
    ------
    AppError
        Exit code 66 without the folder, the design or the table of images, or without any betas; 65 if the
        design or the table is damaged or they disagree; 18 for a participant or session that does not exist.
    """
    nsd, inventory = sources.nsd, sources.inventory
    if not nsd.root.is_dir():
        fix = "Give the folder that holds nsddata and nsddata_betas; in a container, check the mounts."
        raise AppError(f"NSD_DIR {nsd.root} is not a folder. {fix}", exit_code=ExitCode.NO_INPUT)
    design, info = _read_tables(nsd)
    numbers, asked = _choose_subjects(nsd, settings.participants), _choose_sessions(settings.sessions)
    if not info.shown_on:
        inventory.notes.append(
            f"{nsd.root / layout.STIMULUS_INFO} has no columns subject1_rep0 ..., so the image of each trial "
            "comes from the design alone and could not be compared."
        )
    betas = {number: sources.betas(number, asked) for number in numbers}
    design = _divide(design, [b for sessions, _ in betas.values() for b in sessions.values()], nsd)
    subjects = [_plan_subject(sources, n, *betas[n], design) for n in numbers]
    kept = tuple(s for s in subjects if s.sessions)
    problems = [*inventory.problems, *map(_as_problem, inventory.missing)]
    if not kept and not problems:
        message = f"NSD has none of the sessions {', '.join(settings.sessions)} of these participants."
        raise AppError(message, exit_code=ExitCode.NOTHING_MATCHED)
    if not kept:
        raise InputProblems(problems)
    shown = np.unique([image for s in kept for n in s.sessions for image in design.shown(s.number, n.number)])
    files = sources.captions(info, settings.captions)
    return ConversionPlan(nsd, design, info, kept, sources.brick(info, shown), files)


def _as_problem(missing: Missing) -> Problem:
    what, fix = f"Missing: {missing.what}.", f"Download {missing.origin}"
    return Problem(str(missing.path), what, fix, ExitCode.NO_INPUT)


def _read_tables(nsd: Nsd) -> tuple[Design, StimulusInfo]:
    needed = {
        layout.DESIGN: "the design, which image was shown on which trial",
        layout.STIMULUS_INFO: "the table of all images, with their COCO IDs",
    }
    missing = [nsd.missing(path, what) for path, what in needed.items() if nsd.find(path) is None]
    if missing:
        raise InputProblems([_as_problem(m) for m in missing])
    design_file, table = nsd.root / layout.DESIGN, nsd.root / layout.STIMULUS_INFO
    design, info = read_design(design_file), read_stimulus_info(table)
    check_agreement(info, design, table, design_file)
    if design.n_subjects < len(layout.SESSIONS):
        what = f"subjectim has rows for {design.n_subjects} of NSD's {len(layout.SESSIONS)} subjects"
        raise AppError(f"{design_file}: {what}. Download it again.", exit_code=ExitCode.BAD_DATA)
    return design, info


def _choose_subjects(nsd: Nsd, participants: Sequence[str]) -> list[int]:
    """Return subject numbers; by default, those whose folder of betas has a session."""
    last = len(layout.SESSIONS)
    if not participants:
        folders = {n: nsd.root / nsd.betas_folder(n) for n in range(1, last + 1)}
        numbers = [n for n, folder in folders.items() if any(folder.glob("betas_session*"))]
        if not numbers:
            what = "betas of any subject (check --betas and --space)"
            raise InputProblems([_as_problem(nsd.missing(f"{nsd.session(1, 1)}.nii.gz", what))])
        return numbers
    numbers = []
    for label in participants:
        match = re.fullmatch(r"(?:sub-|subj)?0*([1-9]\d?)", label)
        if not match or int(match[1]) > last:
            message = f"NSD has no participant {label!r}; it has 01 to {last:02d}."
            raise AppError(message, exit_code=ExitCode.NOTHING_MATCHED)
        numbers.append(int(match[1]))
    return sorted(set(numbers))


def _choose_sessions(labels: Sequence[str]) -> set[int]:
    numbers = set()
    for label in labels:
        match = re.fullmatch(r"(?:ses-)?(?:nsd)?0*([1-9]\d?)", label)
        if not match or int(match[1]) > max(layout.SESSIONS):
            message = f"NSD has no session {label!r}; it has nsd01 to nsd{max(layout.SESSIONS)}."
            raise AppError(message, exit_code=ExitCode.NOTHING_MATCHED)
        numbers.add(int(match[1]))
    return numbers


def _divide(design: Design, betas: Sequence[Betas], nsd: Nsd) -> Design:
    """Where the design does not contain session lengths, use the length that most files have."""
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


def _plan_subject(
    sources: Sources, number: int, betas: Mapping[int, Betas], absent: Sequence[int], design: Design
) -> SubjectPlan:
    sources.add_missing_sessions(number, absent, min(layout.SESSIONS[number - 1], design.n_sessions))
    sessions, shape, grid = _check_sessions(betas, design, sources.inventory)
    if not sessions:
        return SubjectPlan(number, (), shape, grid, None, {}, None)
    n_hdf5 = sum(s.extension == ".hdf5" for s in sessions)
    if n_hdf5:
        sources.inventory.notes.append(
            f"sub-{number:02d}: {n_hdf5} of {len(sessions)} sessions have only .hdf5 betas, which are used."
        )
    pairs = {name: sources.segmentation(number, name) for name in layout.SEGMENTATIONS}
    return SubjectPlan(
        number,
        sessions,
        shape,
        grid,
        sources.mask(number),
        {name: pair for name, pair in pairs.items() if pair},
        sources.ncsnr(number),
    )


def _check_sessions(
    betas: Mapping[int, Betas], design: Design, inventory: Inventory
) -> tuple[tuple[SessionPlan, ...], tuple[int, ...], Header | None]:
    """Keep the sessions that have as many volumes as the design has trials, and the same shape."""
    sessions: list[SessionPlan] = []
    shape: tuple[int, ...] = ()
    grid: Header | None = None
    for session, own in sorted(betas.items()):
        expected = design.n_trials(session) if session <= design.n_sessions else 0
        if own.shape[3] != expected == own.shape[0] and own.header is None:
            inventory.problems.append(Problem(str(own.path), REVERSED_AXES, REVERSED_AXES_FIX))
            continue
        if own.shape[3] != expected:
            what = f"has {own.shape[3]} volumes, but session {session} has {expected} trials in the design"
        elif shape and own.shape[:3] != shape:
            what = f"has volumes of the shape {own.shape[:3]}, but earlier sessions have {shape}"
        else:
            shape, grid = own.shape[:3], grid or own.header
            sessions.append(SessionPlan(session, own.path, own.extension, expected))
            continue
        error = AppError(f"{own.path}: {what}.", exit_code=ExitCode.BAD_DATA)
        inventory.add_damaged(error, own.path)
    return tuple(sessions), shape, grid
