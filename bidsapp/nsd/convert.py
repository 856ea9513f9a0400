"""Conversion of NSD to a BIDS dataset, which each further run completes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bidsapp.errors import AppError, ExitCode
from bidsapp.nsd import layout, sidecars, stimuli
from bidsapp.nsd.files import Writer
from bidsapp.nsd.layout import Nsd, session_label
from bidsapp.nsd.maps import write_maps
from bidsapp.nsd.plan import ConversionPlan, Settings, SubjectPlan, plan_conversion
from bidsapp.nsd.sources import Inventory, Sources, betas_name
from bidsapp.nsd.write_stimuli import write_stimuli, write_stimulus_tables
from bidsapp.storage.atomic import clear_partials
from bidsapp.storage.locks import locked
from bidsapp.storage.text import read_json, read_tsv
from bidsapp.system.logging import track

_LOCK = ".nsd2bids.lock"


@dataclass(frozen=True)
class Outcome:
    """What a conversion did, or would do; ``written`` and ``kept`` count files."""

    subjects: tuple[SubjectPlan, ...]
    inventory: Inventory
    written: int = 0
    kept: int = 0

    @property
    def exit_code(self) -> ExitCode:
        """OK if and only if everything requested is in the dataset."""
        failed = self.inventory.missing or self.inventory.problems
        return ExitCode.SUBJECT_FAILED if failed else ExitCode.OK


def convert(nsd_dir: Path, bids_dir: Path, settings: Settings, *, dry_run: bool = False) -> Outcome:
    """Convert what exists of NSD, and list what is missing.

    Parameters
    ----------
    nsd_dir : Path
        NSD's download: the folder that holds ``nsddata``, ``nsddata_betas`` and ``nsddata_stimuli``.
    bids_dir : Path
        The dataset; created, or completed if an earlier run left something out.
    dry_run : bool
        Write nothing.

    Raises
    ------
    AppError
        Exit code 73 if ``bids_dir`` holds something else, 74 if there is not enough space on the disk, and
        those of :func:`bidsapp.nsd.plan.plan_conversion`.
    """
    nsd, inventory = Nsd(nsd_dir, settings.betas, settings.space), Inventory()
    made_with = sidecars.settings(nsd, settings.stimuli)
    _check_folder(nsd_dir, bids_dir, made_with)
    plan = plan_conversion(Sources(nsd, bids_dir, inventory), settings)
    if dry_run:
        return Outcome(plan.subjects, inventory)
    writer = Writer(bids_dir, settings.link)
    png = settings.stimuli == "png"
    if settings.link == "copy":
        _check_space(plan, bids_dir, png)
    _create(bids_dir, writer, made_with)
    for subject in plan.subjects:
        _convert_subject(plan, subject, bids_dir, writer)
        write_maps(plan, subject, bids_dir, writer, inventory)
    write_stimuli(plan, bids_dir, writer, inventory, png=png)
    with locked(bids_dir / _LOCK):
        write_stimulus_tables(plan, bids_dir, writer, inventory, png=png)
        _write_participants(plan, bids_dir, writer)
    inventory.notes += writer.notes
    return Outcome(plan.subjects, inventory, writer.written, writer.kept)


def _check_folder(nsd_dir: Path, bids_dir: Path, made_with: str) -> None:
    """Refuse to write into NSD's own folder, or into anything but an earlier conversion of the same kind."""
    if bids_dir.resolve() == nsd_dir.resolve() or nsd_dir.resolve() in bids_dir.resolve().parents:
        raise _refuse(f"BIDS_DIR {bids_dir} is inside NSD_DIR {nsd_dir}. Name a folder outside of it.")
    if bids_dir.exists() and not bids_dir.is_dir():
        raise _refuse(f"BIDS_DIR {bids_dir} is a file. Name a folder.")
    # Hidden files are the lock, and what a job that began a moment ago has not finished yet.
    if not bids_dir.is_dir() or all(p.name.startswith(".") for p in bids_dir.iterdir()):
        return
    description = bids_dir / "dataset_description.json"
    generated: dict[str, Any] = {}
    if description.is_file():
        entries = read_json(description).get("GeneratedBy")
        first = entries[0] if isinstance(entries, list) and entries else None
        generated = first if isinstance(first, dict) else {}
    if generated.get("Name") != sidecars.GENERATOR:
        what = "is not empty and does not hold a dataset made by nsd2bids"
        raise _refuse(f"BIDS_DIR {bids_dir} {what}. Name a new folder.")
    if generated.get("Description") != made_with:
        raise _refuse(
            f"BIDS_DIR {bids_dir} was converted with other settings ({generated.get('Description')}) "
            f"than those requested now ({made_with}). Name another folder for these."
        )


def _refuse(message: str) -> AppError:
    return AppError(f"{message} Nothing was written.", exit_code=ExitCode.CANNOT_CREATE)


def _check_space(plan: ConversionPlan, bids_dir: Path, png: bool) -> None:
    """Refuse to start copies that do not fit on the disk."""
    pairs = [
        (s.source, bids_dir / betas_name(plan.nsd, subject.number, s.number, s.extension))
        for subject in plan.subjects
        for s in subject.sessions
    ]
    if plan.brick and not png:
        pairs.append((plan.brick.path, bids_dir / "stimuli" / stimuli.BRICK_NAME))
    needed = sum(s.stat().st_size for s, target in pairs if target.is_symlink() or not target.is_file())
    existing = next(p for p in (bids_dir, *bids_dir.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        message = (
            f"{bids_dir}: The copies need {needed / 1e9:.1f} GB, but the disk has {free / 1e9:.1f} GB left. "
            "Use links instead (--link hard or symbolic), or another disk. Nothing was written."
        )
        raise AppError(message, exit_code=ExitCode.IO_ERROR)


def _create(root: Path, writer: Writer, made_with: str) -> None:
    """Make the dataset's folder and the files that do not depend on the subjects."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"BIDS_DIR {root} cannot be created ({error.strerror}). Name another folder."
        raise AppError(message, exit_code=ExitCode.CANNOT_CREATE) from error
    with locked(root / _LOCK):
        # First: it identifies the folder to a run that resumes after an interruption.
        writer.json(root / "dataset_description.json", sidecars.dataset_description(made_with))
        writer.text(root / "README.md", sidecars.readme(made_with))
        writer.text(root / ".bidsignore", "\n".join(sidecars.BIDSIGNORE) + "\n")
        writer.json(root / f"task-{layout.TASK}_desc-singletrial_trials.json", sidecars.TRIALS_COLUMNS)


def _convert_subject(plan: ConversionPlan, subject: SubjectPlan, root: Path, writer: Writer) -> None:
    """Link the betas of each session, and write their sidecars and trials."""
    folder = root / f"sub-{subject.label}"
    for place in (folder / "func", *(folder / f"ses-{s.label}" / "func" for s in subject.sessions)):
        clear_partials(place)
    for session in track(subject.sessions, f"sub-{subject.label}: sessions"):
        number, n = session.number, session.n_trials
        betas = partial(betas_name, plan.nsd, subject.number, number)
        writer.link_or_copy(session.source, root / betas(session.extension))
        if session.extension == ".nii.gz":  # replaces HDF5 betas of an earlier run: both would be ambiguous
            writer.remove(root / betas(".hdf5"))
        relative = plan.nsd.session(subject.number, number) + session.extension
        writer.json(root / betas(".json"), sidecars.betas(plan.nsd, subject.label, relative, n))
        shown = plan.design.shown(subject.number, number)
        columns: dict[str, Sequence[Any]] = {
            "session": [session.label] * n,
            "run": plan.design.run_of_trial(number) or [None] * n,
            "beta_index": range(n),
            "stim_id": [f"stim-{stimuli.label(int(i))}" for i in shown],
        }
        writer.tsv(_trials_file(root, subject, session.label), columns)


def _trials_file(root: Path, subject: SubjectPlan, session: str) -> Path:
    return root / sidecars.func(subject.label, "desc-singletrial_trials.tsv", session)


def _write_participants(plan: ConversionPlan, root: Path, writer: Writer) -> None:
    """Write the table of all subjects in the dataset, including those of earlier runs."""
    path = root / "participants.tsv"
    names = ("participant_id", "n_sessions", "n_trials")
    rows: dict[str, tuple[str, ...]] = {}
    if path.is_file():
        table = read_tsv(path)
        if all(name in table for name in names):
            rows = {row[0]: row for row in zip(*(table[name] for name in names), strict=True)}
    for subject in plan.subjects:
        sessions = range(1, plan.design.n_sessions + 1)
        done = [s for s in sessions if _trials_file(root, subject, session_label(s)).is_file()]
        n_trials = sum(plan.design.n_trials(s) for s in done)
        rows[f"sub-{subject.label}"] = f"sub-{subject.label}", str(len(done)), str(n_trials)
    columns = zip(*(rows[i] for i in sorted(rows)), strict=True)
    writer.tsv(path, {name: list(column) for name, column in zip(names, columns, strict=True)})
    writer.json(path.with_suffix(".json"), sidecars.PARTICIPANTS_COLUMNS)
