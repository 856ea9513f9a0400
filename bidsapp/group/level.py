"""The group level: collect the subjects' scores in one table and one report.

It needs the output folder only. Subjects are the unit of analysis: means are over subjects with t intervals,
and images of different subjects are not pooled.
"""

from __future__ import annotations

import logging
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import bidsapp
from bidsapp.bids.descriptions import update_participants
from bidsapp.errors import AppError, ExitCode
from bidsapp.group.checks import comparable_columns, subject_entry
from bidsapp.group.settings import differing_settings, run_settings
from bidsapp.report import Column, GroupMean, GroupReport, MissingSubject, write_group_report
from bidsapp.report.labels import CONDITION_TITLES, STAGE_TITLES, metric_label
from bidsapp.report.records import CONDITIONS, STAGES
from bidsapp.storage.text import read_tsv, write_json, write_tsv

log = logging.getLogger(__name__)

#: ``desc`` of each condition's metrics file.
_DESC = {"brain": "recon", "null": "null", "oracle": "oracle"}
_METRICS_FILE = re.compile(
    r"sub-(?P<sub>[A-Za-z0-9]+)_task-(?P<task>[A-Za-z0-9]+)_desc-(?P<desc>[a-z]+)_metrics\.tsv"
)
_LABEL = re.compile(r"[A-Za-z0-9]+")


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


@dataclass(frozen=True)
class _Scores:
    """Means of one subject by (task, condition, stage, metric), chance levels, and numbers of images."""

    means: dict[tuple[str, str, str, str], float]
    chance: dict[tuple[str, str, str], float]
    n: dict[tuple[str, str], int]

    @property
    def n_images(self) -> int:
        return max(n for (_, condition), n in self.n.items() if condition == "brain")


def run_group(
    output_dir: str | Path,
    *,
    participants: Sequence[str] | None = None,
    command: str = "",
    version: str = bidsapp.__version__,
    dry_run: bool = False,
) -> GroupOutcome:
    """Write the group's table, its description, ``participants.tsv`` and ``group.html``.

    Parameters
    ----------
    output_dir : path
        Output dataset of the participant level.
    participants : sequence of str, optional
        Labels, with or without ``sub-``; all subjects found by default.
    command, version : str
        Command line and version of this app, for the report.
    dry_run : bool
        Only list the subjects; nothing is written.

    Returns
    -------
    GroupOutcome
        Subjects without scores are listed in it, in the log and in the report; they are not an error.

    Raises
    ------
    AppError
        Exit code 66 if the folder is missing or no subject has scores.
    """
    root = Path(output_dir)
    if not root.is_dir():
        message = f"{root}: no such folder. Give the output folder of the participant level"
        raise AppError(f"{message}; in a container, check that it is mounted.", exit_code=ExitCode.NO_INPUT)
    scores, missing = _read_scores(root, participants)
    for subject in missing:
        log.warning("sub-%s is missing from the group: %s", subject.label, subject.why)
    if not scores:
        raise AppError(_no_scores(root, missing), exit_code=ExitCode.NO_INPUT)
    table, page = root / "phenotype" / "reconmetrics.tsv", root / "group.html"
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
    write_tsv(table, _table(scores, values, columns))
    write_json(table.with_suffix(".json"), _sidecar(columns))
    _update_participants(root)
    report = GroupReport(
        subjects=tuple(subject_entry(root, s, values[s], got.n_images, columns) for s, got in scores.items()),
        columns=comparable_columns(columns, [got.n for got in scores.values()]),
        means=means,
        chance=_chance(scores, columns),
        missing=tuple(missing),
        warnings=warnings,
        table=table.relative_to(root).as_posix(),
        recipes=tuple(sorted({str(found.get("Recipe", "")) for found in settings.values()})),
        command=command,
        versions={"bidsapp-recon": version, "Python": platform.python_version(), "NumPy": np.__version__},
    )
    page = write_group_report(page, report)
    log.info("group: %d subjects, %d missing; %s", len(scores), len(missing), page)
    return GroupOutcome(tuple(scores), tuple(missing), table, page, means)


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


def _read_scores(
    root: Path, participants: Sequence[str] | None
) -> tuple[dict[str, _Scores], list[MissingSubject]]:
    """Read the scores of every expected subject; those that cannot be read are missing subjects."""
    folders = _folders(root)
    if participants:
        expected = sorted({p.strip().removeprefix("sub-") for p in participants})
    else:
        pages = {p.stem.removeprefix("sub-") for p in root.glob("sub-*.html")}
        logs = {p.name.removeprefix("sub-") for p in root.glob("logs/sub-*") if p.is_dir()}
        expected = sorted(folders | pages | logs | set(_listed(root / "participants.tsv")))
    scores, missing = {}, []
    for label in expected:
        if not _LABEL.fullmatch(label):
            missing.append(MissingSubject(label, "not a BIDS label (letters and digits only)"))
        elif label not in folders and (root / "logs" / f"sub-{label}").is_dir():
            why = "it has logs but no results yet; run the participant level without --prepare and --shard"
            missing.append(MissingSubject(label, why))
        elif label not in folders:
            missing.append(
                MissingSubject(label, f"no folder sub-{label}; run the participant level for this subject")
            )
        else:
            try:
                scores[label] = _read_subject(root / f"sub-{label}" / "func", label)
            except AppError as error:
                missing.append(MissingSubject(label, str(error)))
    return scores, missing


def _folders(root: Path) -> set[str]:
    names = {p.name.removeprefix("sub-") for p in root.glob("sub-*") if p.is_dir()}
    return {name for name in names if _LABEL.fullmatch(name)}


def _listed(path: Path) -> list[str]:
    """Labels of participants.tsv; none if it is missing or cannot be read."""
    if not path.is_file():
        return []
    try:
        return [p.removeprefix("sub-") for p in read_tsv(path).get("participant_id", [])]
    except AppError as error:
        log.warning("participants.tsv is ignored: %s", error)
        return []


def _read_subject(folder: Path, label: str) -> _Scores:
    means: dict[tuple[str, str, str, str], float] = {}
    chance: dict[tuple[str, str, str], float] = {}
    n: dict[tuple[str, str], int] = {}
    conditions = {desc: condition for condition, desc in _DESC.items()}
    for path in sorted(folder.glob("*_metrics.tsv")):
        match = _METRICS_FILE.fullmatch(path.name)
        if match is None or match["sub"] != label:
            continue
        if match["desc"] == "summary":
            chance |= _read_chance(path, match["task"])
        elif match["desc"] in conditions:
            condition = conditions[match["desc"]]
            found, n[match["task"], condition] = _read_means(path)
            means |= {(match["task"], condition, *key): value for key, value in found.items()}
    if not any(condition == "brain" for _, condition, _, _ in means):
        raise AppError(f"no scores in {folder}; run the participant level for this subject again")
    return _Scores(means, chance, n)


def _read_means(path: Path) -> tuple[dict[tuple[str, str], float], int]:
    """Mean over images of every ``<stage>_<metric>`` column; images without a value are left out."""
    table = read_tsv(path)
    n_images = len(next(iter(table.values()), []))
    if not n_images:
        raise AppError(f"{path}: the table has no rows. Run the participant level for this subject again.")
    means = {}
    for name, cells in table.items():
        stage, _, metric = name.partition("_")
        if stage not in STAGES or not metric:
            continue
        x = np.asarray([_number(path, row, name, cell) for row, cell in enumerate(cells, start=2)])
        x = x[~np.isnan(x)]
        means[stage, metric] = float(x.mean()) if x.size else math.nan
    return means, n_images


def _read_chance(path: Path, task: str) -> dict[tuple[str, str, str], float]:
    """Chance level of each stage and metric of the brain condition, from the summary table."""
    table = read_tsv(path)
    needed = ("condition", "stage", "metric", "chance")
    if any(name not in table for name in needed):
        raise AppError(
            f"{path}: needs the columns {', '.join(needed)}. Run the participant level for it again."
        )
    rows = zip(*(table[name] for name in needed), strict=True)
    chance = {}
    for row, (condition, stage, metric, value) in enumerate(rows, start=2):
        level = _number(path, row, "chance", value)
        if condition == "brain" and not math.isnan(level):
            chance[task, stage, metric] = level
    return chance


def _number(path: Path, row: int, column: str, cell: str) -> float:
    if cell == "n/a":
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        value = math.inf
    if math.isinf(value):
        raise AppError(f"{path}, line {row}: {column} is {cell[:40]!r}, not a finite number.")
    return value


def _columns(scores: Mapping[str, _Scores]) -> list[Column]:
    """Return the table's columns: tasks, conditions, metrics as the files have them, stages."""
    keys = dict.fromkeys(key for got in scores.values() for key in got.means)
    tasks = sorted({task for task, _, _, _ in keys})
    metrics = list(dict.fromkeys(metric for _, _, _, metric in keys))
    columns = []
    for task in tasks:
        for condition in CONDITIONS:
            for metric in metrics:
                for stage in STAGES:
                    if (task, condition, stage, metric) in keys:
                        # With one task, as usual, its name would only lengthen every column.
                        shown = task if len(tasks) > 1 else ""
                        parts = (shown, "" if condition == "brain" else condition, stage, metric)
                        name = "_".join(part for part in parts if part)
                        columns.append(Column(name, condition, stage, metric, task))
    return columns


def _key(column: Column) -> tuple[str, str, str, str]:
    return column.task, column.condition, column.stage, column.metric


def _chance(scores: Mapping[str, _Scores], columns: Sequence[Column]) -> dict[str, float]:
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


def _table(
    scores: Mapping[str, _Scores], values: Mapping[str, Mapping[str, float]], columns: Sequence[Column]
) -> dict[str, list[object]]:
    table: dict[str, list[object]] = {
        "participant_id": [f"sub-{s}" for s in scores],
        "n_images": [got.n_images for got in scores.values()],
    }
    for column in columns:
        table[column.name] = [values[s][column.name] for s in scores]
    return table


def _sidecar(columns: Sequence[Column]) -> dict[str, object]:
    """Return the sidecar of the table: description, unit and range of each column."""
    what = {
        "brain": "reconstructions from the brain responses",
        "null": "reconstructions with responses and images shuffled against each other in training",
        "oracle": "reconstructions from the true latents",
    }
    sidecar: dict[str, object] = {
        "MeasurementToolMetadata": {
            "Description": "Similarity of seen images and their reconstructions from fMRI: means over test "
            "images for each participant, computed by bidsapp-recon."
        },
        "participant_id": {"LongName": "Participant", "Description": "Identifier of the participant."},
        "n_images": {
            "LongName": "Test images",
            "Description": "Number of test images in the means of the brain's reconstructions.",
            "Units": "images",
        },
    }
    for column in columns:
        label = metric_label(column.metric)
        task = f", task {column.task}" if column.name.startswith(f"{column.task}_") else ""
        titles = (CONDITION_TITLES[column.condition], STAGE_TITLES[column.stage])
        entry: dict[str, object] = {
            "LongName": f"{label.title} ({', '.join(titles)}{task})",
            "Description": f"Mean over test images, {what[column.condition]}. {label.description}".strip(),
            "Units": "proportion" if label.percent else "1",
        }
        if all(math.isfinite(v) for v in label.levels):
            entry |= {"Minimum": label.levels[0], "Maximum": label.levels[1]}
        sidecar[column.name] = entry
    return sidecar


def _update_participants(root: Path) -> None:
    """Give every sub-* folder its row, also those of failed subjects, as BIDS requires."""
    try:
        update_participants(root, sorted(_folders(root)))
    except AppError as error:
        if error.exit_code is not ExitCode.BAD_DATA:
            raise
        log.warning("participants.tsv was not changed: %s", error)


def _no_scores(root: Path, missing: Sequence[MissingSubject]) -> str:
    lines = [f"{root}: no subject has scores."]
    lines += [f"    sub-{m.label}: {m.why}" for m in missing]
    lines.append("Run the participant level first: bidsapp-recon BIDS_DIR OUTPUT_DIR participant")
    return "\n".join(lines)
