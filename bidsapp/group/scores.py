"""Read the scores of subjects from the tables that the participant level wrote."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bidsapp.errors import AppError
from bidsapp.report.records import STAGES, MissingSubject
from bidsapp.storage.text import read_json, read_tsv

log = logging.getLogger(__name__)

#: ``desc`` of each condition's metrics file.
_CONDITIONS = {"recon": "brain", "null": "null", "oracle": "oracle"}
_METRICS_FILE = re.compile(
    r"sub-(?P<sub>[A-Za-z0-9+]+)(_task-(?P<task>[A-Za-z0-9+]+))?_desc-(?P<desc>[a-z]+)_metrics\.tsv"
)
_LABEL = re.compile(r"[A-Za-z0-9+]+")
_AGAIN = "Run the participant level for this subject again."


@dataclass(frozen=True)
class SubjectScores:
    """Scores of one subject; the task is "" where files have none.

    Attributes
    ----------
    means : dict of (task, condition, stage, metric) to float
        Over test images.
    chance : dict of (task, stage, metric) to float
    n_images : dict of (task, condition) to int
    """

    means: dict[tuple[str, str, str, str], float]
    chance: dict[tuple[str, str, str], float]
    n_images: dict[tuple[str, str], int]


def read_scores(
    root: Path, participants: Sequence[str] | None
) -> tuple[dict[str, SubjectScores], list[MissingSubject]]:
    """Read the scores of every expected subject; those that cannot be read are missing subjects.

    Parameters
    ----------
    root : Path
        The output dataset.
    participants : sequence of str, optional
        Labels, with or without ``sub-``; by default all that have a folder, a report, logs or a row of
        participants.tsv.
    """
    folders = subject_folders(root)
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
            missing.append(MissingSubject(label, f"no folder sub-{label}. {_AGAIN.replace(' again', '')}"))
        else:
            try:
                scores[label] = _read_subject(root, label)
            except AppError as error:
                missing.append(MissingSubject(label, str(error)))
    return scores, missing


def subject_folders(root: Path) -> set[str]:
    """Labels of the subjects' folders in the output dataset."""
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


def _read_subject(root: Path, label: str) -> SubjectScores:
    found = SubjectScores({}, {}, {})
    folder = root / f"sub-{label}" / "func"
    for path in sorted(folder.glob("*_metrics.tsv")):
        match = _METRICS_FILE.fullmatch(path.name)
        if match is None or match["sub"] != label:
            continue
        task, condition = match["task"] or "", _CONDITIONS.get(match["desc"])
        if match["desc"] == "summary":
            found.chance.update(_read_chance(path, task))
        elif condition:
            means, found.n_images[task, condition] = _read_means(path)
            found.means.update({(task, condition, *key): value for key, value in means.items()})
        else:
            continue
        _check_complete(root, label, task, path)
    if not any(condition == "brain" for _, condition, _, _ in found.means):
        raise AppError(f"no scores in {folder}. {_AGAIN}")
    return found


def _check_complete(root: Path, label: str, task: str, table: Path) -> None:
    """Raise AppError for a table that the record of the subject's last complete run does not have."""
    record = root / "logs" / f"sub-{label}" / (f"task-{task}_done.json" if task else "done.json")
    name = table.relative_to(root).as_posix()
    if not record.is_file():
        raise AppError(f"no record of a complete run, {record}: its last run failed or was stopped. {_AGAIN}")
    sizes = read_json(record).get("outputs")
    expected = sizes.get(name) if isinstance(sizes, dict) else None
    if expected != table.stat().st_size:
        raise AppError(f"{table} does not belong to the last complete run ({record.name} differs). {_AGAIN}")


def _read_means(path: Path) -> tuple[dict[tuple[str, str], float], int]:
    """Mean over images of every ``<stage>_<metric>`` column; images without a value are left out."""
    table = read_tsv(path)
    n_images = len(next(iter(table.values()), []))
    if not n_images:
        raise AppError(f"{path}: the table has no rows. {_AGAIN}")
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
        raise AppError(f"{path}: needs the columns {', '.join(needed)}. {_AGAIN}")
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
