"""The group level: collect the subjects' scores in one table and one report.

It needs the output folder only. Subjects are the unit of analysis: means are over subjects with t intervals,
and images of different subjects are not pooled.
"""

from __future__ import annotations

import logging
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from bidsapp import __version__
from bidsapp.bids.descriptions import update_participants
from bidsapp.errors import AppError, ExitCode
from bidsapp.group.checks import comparable_columns, differing_settings, run_settings, subject_entry
from bidsapp.group.scores import SubjectScores, read_scores, subject_folders
from bidsapp.report.group import write_group_report
from bidsapp.report.labels import CONDITION_TITLES, STAGE_TITLES, metric_label
from bidsapp.report.records import CONDITIONS, STAGES, Column, GroupMean, GroupReport, MissingSubject
from bidsapp.storage.text import read_tsv, write_json, write_tsv

log = logging.getLogger(__name__)

_WHAT = {
    "brain": "reconstructions from the brain responses",
    "null": "reconstructions with responses and images shuffled against each other in training",
    "oracle": "reconstructions from the true latents",
}


@dataclass(frozen=True)
class GroupOutcome:
    """Result of the group level.

    Attributes
    ----------
    subjects : tuple of str
        Labels of the subjects in the table, without ``sub-``.
    missing : tuple of MissingSubject
        Those expected but without scores, with the reason.
    table, report : Path
        ``phenotype/reconmetrics.tsv`` and ``group.html``.
    means : mapping of str to GroupMean
        Of each column of the table.
    """

    subjects: tuple[str, ...]
    missing: tuple[MissingSubject, ...]
    table: Path
    report: Path
    means: Mapping[str, GroupMean] = field(default_factory=dict)


def run_group(
    output_dir: str | Path,
    *,
    participants: Sequence[str] | None = None,
    command: str = "",
    dry_run: bool = False,
) -> GroupOutcome:
    """Write the group's table, its description, ``participants.tsv`` and ``group.html``.

    Subjects without scores are listed in the outcome, the log and the report; they are not an error.

    Parameters
    ----------
    output_dir : path
        Output dataset of the participant level.
    participants : sequence of str, optional
        Labels, with or without ``sub-``; all subjects found by default.
    command : str
        Command line, for the report.
    dry_run : bool
        Only list the subjects; nothing is written.

    Raises
    ------
    AppError
        Exit code 66 if the folder is missing or no subject has scores (then the table and report of an
        earlier group run are removed); 73 if ``phenotype`` is a link.
    """
    root = Path(output_dir)
    if not root.is_dir():
        message = f"{root}: no such folder. Give the output folder of the participant level"
        raise AppError(f"{message}; in a container, check that it is mounted.", exit_code=ExitCode.NO_INPUT)
    table, page = _files(root)
    if table.parent.is_symlink():
        raise AppError(
            f"{table.parent} is a link to {table.parent.readlink()}, so its files are outside of this "
            "dataset. Remove the link and run again.",
            exit_code=ExitCode.CANNOT_CREATE,
        )
    scores, missing = read_scores(root, participants)
    for subject in missing:
        log.warning("sub-%s is missing from the group: %s", subject.label, subject.why)
    if not scores:
        lines = [f"{root}: no subject has scores.", *(f"    sub-{m.label}: {m.why}" for m in missing)]
        if not (dry_run or participants) and remove_group_results(root):
            lines.append("The table and report of an earlier group run were removed.")
        lines.append("Run the participant level first: bidsapp-recon BIDS_DIR OUTPUT_DIR participant")
        raise AppError("\n".join(lines), exit_code=ExitCode.NO_INPUT)
    if dry_run:
        return GroupOutcome(tuple(scores), tuple(missing), table, page)
    settings = run_settings(root, list(scores))
    warnings = differing_settings(settings)
    for warning in warnings:
        log.warning("%s", warning)
    columns = _columns(scores)
    values = {s: {c.name: got.means.get(_key(c), math.nan) for c in columns} for s, got in scores.items()}
    means = {
        c.name: mean_over_subjects([values[s][c.name] for s in scores], metric_label(c.metric).levels)
        for c in columns
        if any(math.isfinite(values[s][c.name]) for s in scores)
    }
    sets = dict.fromkeys((c.task, c.condition) for c in columns)
    counts = {_name("n_images", task, condition, columns): (task, condition) for task, condition in sets}
    cells: dict[str, list[object]] = {"participant_id": [f"sub-{s}" for s in scores]}
    cells |= {name: [got.n_images.get(key) for got in scores.values()] for name, key in counts.items()}
    write_tsv(table, cells | {c.name: [values[s][c.name] for s in scores] for c in columns})
    write_json(table.with_suffix(".json"), _sidecar(columns, counts))
    _update_participants(root)
    report = GroupReport(
        subjects=tuple(subject_entry(root, s, values[s], got, columns) for s, got in scores.items()),
        columns=comparable_columns(columns, list(scores.values())),
        means=means,
        chance=_chance(scores, columns),
        missing=tuple(missing),
        warnings=warnings,
        table=table.relative_to(root).as_posix(),
        recipes=tuple(sorted({str(found.get("Recipe", "")) for found in settings.values()})),
        command=command,
        versions={"bidsapp-recon": __version__, "Python": platform.python_version(), "NumPy": np.__version__},
    )
    write_group_report(page, report)
    log.info("group: %d finished, %d missing; %s", len(scores), len(missing), page)
    return GroupOutcome(tuple(scores), tuple(missing), table, page, means)


def remove_group_results(root: Path, label: str = "") -> bool:
    """Remove the table and report of an earlier group run, which scores that were removed are still part of.

    Returns whether there was anything to remove.

    Parameters
    ----------
    root : Path
        The output dataset.
    label : str
        Only if this subject is in the table.
    """
    table, page = _files(root)
    files = [path for path in (table, table.with_suffix(".json"), page) if path.is_file()]
    if table.parent.is_symlink() or not files:
        return False
    if label and table.is_file():
        try:
            if f"sub-{label}" not in read_tsv(table).get("participant_id", []):
                return False
        except AppError:
            pass  # a damaged table is removed too
    for path in files:
        path.unlink()
    return True


def _files(root: Path) -> tuple[Path, Path]:
    return root / "phenotype" / "reconmetrics.tsv", root / "group.html"


def mean_over_subjects(
    values: Sequence[float], levels: tuple[float, float] = (-math.inf, math.inf)
) -> GroupMean:
    """Mean over subjects and its 95% t interval, ``mean +- t(n - 1) * s / sqrt(n)``.

    Parameters
    ----------
    values : sequence of float
        One per subject; NaN where a subject has none. The interval needs two.
    levels : pair of float
        Range of the metric. The interval is cut there, which does not reduce its coverage.
    """
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    x = np.asarray([v for v in values if math.isfinite(v)], dtype=np.float64)
    if x.size == 0:
        return GroupMean(math.nan, None, None, 0)
    mean = float(x.mean())
    if x.size < 2:
        return GroupMean(mean, None, None, 1)
    half = float(stdtrit(x.size - 1, 0.975) * x.std(ddof=1) / math.sqrt(x.size))
    return GroupMean(mean, max(mean - half, levels[0]), min(mean + half, levels[1]), int(x.size))


def _columns(scores: Mapping[str, SubjectScores]) -> list[Column]:
    """Return the table's columns: tasks, conditions, metrics in the order of the files, stages."""
    keys = dict.fromkeys(key for got in scores.values() for key in got.means)
    metrics = list(dict.fromkeys(metric for _, _, _, metric in keys))
    found = [
        Column("", condition, stage, metric, task)
        for task in sorted({task for task, _, _, _ in keys})
        for condition in CONDITIONS
        for metric in metrics
        for stage in STAGES
        if (task, condition, stage, metric) in keys
    ]
    return [replace(c, name=_name(f"{c.stage}_{c.metric}", c.task, c.condition, found)) for c in found]


def _name(what: str, task: str, condition: str, columns: Sequence[Column]) -> str:
    """Name a column. With one task, as usual, its name would only lengthen every column."""
    shown = task if len({c.task for c in columns}) > 1 else ""
    return "_".join(part for part in (shown, "" if condition == "brain" else condition, what) if part)


def _key(column: Column) -> tuple[str, str, str, str]:
    return column.task, column.condition, column.stage, column.metric


def _chance(scores: Mapping[str, SubjectScores], columns: Sequence[Column]) -> dict[str, float]:
    """Chance level of each brain column: mean over subjects, or the metric's constant level."""
    chance = {}
    for column in columns:
        if column.condition != "brain":
            continue
        key = (column.task, column.stage, column.metric)
        levels = [got.chance[key] for got in scores.values() if key in got.chance]
        always = metric_label(column.metric).chance
        if levels:
            chance[column.name] = sum(levels) / len(levels)
        elif always is not None:
            chance[column.name] = always
    return chance


def _sidecar(columns: Sequence[Column], counts: Mapping[str, tuple[str, str]]) -> dict[str, object]:
    """Return the sidecar of the table: description, unit and range of each column."""
    sidecar: dict[str, object] = {
        "MeasurementToolMetadata": {
            "Description": "Similarity of seen images and their reconstructions from fMRI: means over test "
            "images for each participant, computed by bidsapp-recon."
        },
        "participant_id": {"LongName": "Participant", "Description": "Identifier of the participant."},
    }
    several = len({task for task, _ in counts.values()}) > 1
    for name, (task, condition) in counts.items():
        of_task = f", task {task}" if several and task else ""
        sidecar[name] = {
            "LongName": f"Test images ({CONDITION_TITLES[condition]}{of_task})",
            "Description": f"Number of test images in the means, {_WHAT[condition]}.",
            "Units": "images",
        }
    for column in columns:
        label = metric_label(column.metric)
        task = f", task {column.task}" if several and column.task else ""
        titles = (CONDITION_TITLES[column.condition], STAGE_TITLES[column.stage])
        entry: dict[str, object] = {
            "LongName": f"{label.title} ({', '.join(titles)}{task})",
            "Description": f"Mean over test images, {_WHAT[column.condition]}. {label.description}".strip(),
            "Units": "proportion" if label.percent else "1",
        }
        if all(math.isfinite(v) for v in label.levels):
            entry |= {"Minimum": label.levels[0], "Maximum": label.levels[1]}
        sidecar[column.name] = entry
    return sidecar


def _update_participants(root: Path) -> None:
    """Give every sub-* folder its row, also those of failed subjects, as BIDS requires."""
    try:
        update_participants(root, sorted(subject_folders(root)))
    except AppError as error:
        if error.exit_code is not ExitCode.BAD_DATA:
            raise
        log.warning("participants.tsv was not changed: %s", error)
