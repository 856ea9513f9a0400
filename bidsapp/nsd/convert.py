"""Convert NSD: what the plan found becomes a BIDS dataset, completed by every further run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bidsapp.errors import AppError, ExitCode, Problem
from bidsapp.nsd import layout, sidecars, sources, stimuli
from bidsapp.nsd.files import Writer
from bidsapp.nsd.layout import Missing, Nsd
from bidsapp.nsd.plan import Plan, SessionPlan, SubjectPlan, make_plan
from bidsapp.nsd.sources import Findings
from bidsapp.nsd.write_maps import write_maps
from bidsapp.nsd.write_stimuli import write_stimuli, write_stimulus_tables
from bidsapp.storage.atomic import clear_partials
from bidsapp.storage.locks import locked
from bidsapp.storage.text import read_json, read_tsv
from bidsapp.system.progress import track

_LOCK = ".nsd2bids.lock"


@dataclass(frozen=True)
class Settings:
    """What the user asked for: version and space of the betas, form of the stimuli, kind of link."""

    betas: str = layout.BETAS[0]
    space: str = layout.SPACES[0]
    stimuli: str = layout.STIMULI[0]
    link: str = layout.LINKS[0]


@dataclass(frozen=True)
class Outcome:
    """What a conversion did, or would do.

    Attributes
    ----------
    subjects : tuple of SubjectPlan
    missing : tuple of Missing
        Files of NSD or COCO that are not there.
    problems : tuple of Problem
        Files that can't be used.
    notes : tuple of str
    written, kept : int
        Files made, and files that were there already.
    """

    subjects: tuple[SubjectPlan, ...]
    missing: tuple[Missing, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    written: int = 0
    kept: int = 0

    @property
    def exit_code(self) -> ExitCode:
        """OK if and only if everything asked for is in the dataset."""
        return ExitCode.SUBJECT_FAILED if self.missing or self.problems else ExitCode.OK


def convert(
    nsd_dir: Path,
    bids_dir: Path,
    settings: Settings,
    *,
    participants: Sequence[str] = (),
    captions: Sequence[Path] = (),
    dry_run: bool = False,
) -> Outcome:
    """Convert what is there of NSD, and say what is not.

    Parameters
    ----------
    nsd_dir : Path
        NSD's download: the folder that holds ``nsddata``, ``nsddata_betas`` and ``nsddata_stimuli``.
    bids_dir : Path
        The dataset; made, or completed where an earlier run left something out.
    settings : Settings
    participants : sequence of str
        Empty for all that have betas.
    captions : sequence of Path
        COCO's caption files; empty to look for them in ``nsd_dir``.
    dry_run : bool
        Look, and write nothing.

    Returns
    -------
    Outcome

    Raises
    ------
    AppError
        Exit code 73 where ``bids_dir`` holds something else, 74 where the disk is too full; and all of
        :func:`bidsapp.nsd.plan.make_plan`.
    """
    nsd = Nsd(nsd_dir, settings.betas, settings.space)
    made_with = sidecars.settings(nsd, settings.stimuli)
    _check_folder(nsd_dir, bids_dir, made_with)
    plan = make_plan(nsd, bids_dir, participants, captions)
    if dry_run:
        return Outcome(plan.subjects, plan.missing, plan.problems, plan.notes)
    writer = Writer(bids_dir, settings.link)
    if settings.link == "copy":
        _check_space(plan, bids_dir, settings)
    run = _Conversion(plan, bids_dir, writer, settings, made_with)
    run.convert()
    missing = (*plan.missing, *run.found.missing)
    problems = (*plan.problems, *run.found.problems)
    notes = (*plan.notes, *run.found.notes, *writer.notes)
    return Outcome(plan.subjects, missing, problems, notes, writer.written, writer.kept)


def _check_folder(nsd_dir: Path, bids_dir: Path, made_with: str) -> None:
    """Refuse to write into NSD's own folder, or into anything but an earlier conversion of the same kind."""
    if bids_dir.resolve() == nsd_dir.resolve() or nsd_dir.resolve() in bids_dir.resolve().parents:
        raise _refuse(f"BIDS_DIR {bids_dir} lies in NSD_DIR {nsd_dir}. Name a folder outside of it.")
    if bids_dir.exists() and not bids_dir.is_dir():
        raise _refuse(f"BIDS_DIR {bids_dir} is a file. Name a folder.")
    # Hidden files are the lock, and what a job that began a moment ago has not finished yet.
    if not bids_dir.is_dir() or all(p.name.startswith(".") for p in bids_dir.iterdir()):
        return
    described = bids_dir / "dataset_description.json"
    generated: dict[str, Any] = {}
    if described.is_file():
        entries = read_json(described).get("GeneratedBy")
        first = entries[0] if isinstance(entries, list) and entries else None
        generated = first if isinstance(first, dict) else {}
    if generated.get("Name") != sidecars.GENERATOR:
        what = "is not empty and holds no dataset of nsd2bids"
        raise _refuse(f"BIDS_DIR {bids_dir} {what}. Name a new folder.")
    if generated.get("Description") != made_with:
        raise _refuse(
            f"BIDS_DIR {bids_dir} was converted with other settings ({generated.get('Description')}) "
            f"than now ({made_with}). Name another folder for these."
        )


def _refuse(message: str) -> AppError:
    return AppError(f"{message} Nothing was written.", exit_code=ExitCode.CANNOT_CREATE)


def _check_space(plan: Plan, bids_dir: Path, settings: Settings) -> None:
    """Refuse to begin copies that the disk can't hold."""
    pairs = [
        (s.source, bids_dir / sources.betas_name(plan.nsd, subject.number, s.number, s.extension))
        for subject in plan.subjects
        for s in subject.sessions
    ]
    if plan.brick and settings.stimuli == "hdf5":
        pairs.append((plan.brick, bids_dir / "stimuli" / plan.brick.name))
    needed = sum(s.stat().st_size for s, target in pairs if target.is_symlink() or not target.is_file())
    there = next(p for p in (bids_dir, *bids_dir.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        message = (
            f"{bids_dir}: copies need {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left. "
            "Link instead (--link hard or symbolic), or choose another disk. Nothing was written."
        )
        raise AppError(message, exit_code=ExitCode.IO_ERROR)


class _Conversion:
    """One run into one dataset."""

    def __init__(self, plan: Plan, root: Path, writer: Writer, settings: Settings, made_with: str) -> None:
        self._plan, self._root, self._writer = plan, root, writer
        self._png, self._made_with = settings.stimuli == "png", made_with
        self.found = Findings()

    def convert(self) -> None:
        """Convert everything; what fails for one map leaves the rest alone."""
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"BIDS_DIR {self._root} cannot be made ({error.strerror}). Name another folder."
            raise AppError(message, exit_code=ExitCode.CANNOT_CREATE) from error
        with locked(self._root / _LOCK):
            # First: it says whose folder this is, to a run that goes on after an interruption.
            path = self._root / "dataset_description.json"
            self._writer.json(path, sidecars.dataset_description(self._made_with))
            self._writer.text(self._root / "README.md", sidecars.readme(self._made_with))
            self._writer.text(self._root / ".bidsignore", "\n".join(sidecars.BIDSIGNORE) + "\n")
            path = self._root / f"task-{layout.TASK}_desc-singletrial_trials.json"
            self._writer.json(path, sidecars.TRIALS_COLUMNS)
        for subject in self._plan.subjects:
            self._subject(subject)
        write_stimuli(self._plan, self._root, self._writer, self.found, png=self._png)
        with locked(self._root / _LOCK):
            write_stimulus_tables(self._plan, self._root, self._writer, self.found, png=self._png)
            self._participants()

    def _subject(self, subject: SubjectPlan) -> None:
        folder = self._root / f"sub-{subject.label}"
        for place in (folder / "func", *(folder / f"ses-{s.label}" / "func" for s in subject.sessions)):
            clear_partials(place)
        for session in track(subject.sessions, f"sub-{subject.label}: sessions"):
            self._session(subject, session)
        write_maps(self._plan, subject, self._root, self._writer, self.found)

    def _session(self, subject: SubjectPlan, session: SessionPlan) -> None:
        nsd, design, number = self._plan.nsd, self._plan.design, session.number
        betas = self._root / sources.betas_name(nsd, subject.number, number, session.extension)
        self._writer.place(session.source, betas)
        if session.extension == ".nii.gz":  # in place of HDF5 betas of an earlier run: twice is ambiguous
            self._writer.remove(self._root / sources.betas_name(nsd, subject.number, number, ".hdf5"))
        relative = nsd.session(subject.number, number) + session.extension
        sidecar = self._root / sources.betas_name(nsd, subject.number, number, ".json")
        self._writer.json(sidecar, sidecars.betas(nsd, subject.label, relative, session.n_trials))
        trials = sidecars.func(subject.label, "desc-singletrial_trials.tsv", session.label)
        n = session.n_trials
        columns: dict[str, Sequence[Any]] = {
            "session": [session.label] * n,
            "run": design.run_of_trial(number) or [None] * n,
            "beta_index": range(n),
            "stim_id": [f"stim-{stimuli.label(int(i))}" for i in design.shown(subject.number, number)],
        }
        self._writer.tsv(self._root / trials, columns)

    def _participants(self) -> None:
        """Write the table of all subjects in the dataset, those of earlier runs included."""
        path = self._root / "participants.tsv"
        rows: dict[str, tuple[str, str]] = {}
        if path.is_file():
            table = read_tsv(path)
            names = ("participant_id", "n_sessions", "n_trials")
            if all(name in table for name in names):
                rows = {i: (s, t) for i, s, t in zip(*(table[n] for n in names), strict=True)}
        for subject in self._plan.subjects:
            done = [s for s in range(1, self._plan.design.n_sessions + 1) if self._has_trials(subject, s)]
            n_trials = sum(self._plan.design.n_trials(s) for s in done)
            rows[f"sub-{subject.label}"] = str(len(done)), str(n_trials)
        ids = sorted(rows)
        columns = {
            "participant_id": ids,
            "n_sessions": [rows[i][0] for i in ids],
            "n_trials": [rows[i][1] for i in ids],
        }
        self._writer.tsv(path, columns)
        self._writer.json(path.with_suffix(".json"), sidecars.PARTICIPANTS_COLUMNS)

    def _has_trials(self, subject: SubjectPlan, session: int) -> bool:
        name = sidecars.func(subject.label, "desc-singletrial_trials.tsv", f"nsd{session:02d}")
        return (self._root / name).is_file()
