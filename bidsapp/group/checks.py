"""What each subject's run adds to the group's report: findings, tests, chance, links, settings."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bidsapp.errors import AppError
from bidsapp.group.scores import SubjectScores
from bidsapp.report.labels import depends_on_n_images
from bidsapp.report.records import Column, SubjectChecks, SubjectEntry
from bidsapp.storage.text import read_json, read_tsv

log = logging.getLogger(__name__)

#: Settings that must agree for scores to be comparable, and their names in the report.
_SETTINGS = {
    "Recipe": "the recipe",
    "RecipeDigest": "the values of the recipe",
    "Seed": "the seed",
    "RegionsOfInterest": "the region of interest",
    "MinNoiseCeiling": "the minimum noise ceiling of voxels",
    "Split": "the split",
    "TestImages": "the number of test images",
}


def subject_entry(
    root: Path, label: str, values: Mapping[str, float], scores: SubjectScores, columns: Sequence[Column]
) -> SubjectEntry:
    """Collect what the group's report shows of a subject: its values, its checks, and what can be linked."""
    page = root / f"sub-{label}.html"
    figures = sorted((root / f"sub-{label}" / "figures").glob("*_desc-median1_recon.png"))
    return SubjectEntry(
        label=label,
        values={name: value for name, value in values.items() if math.isfinite(value)},
        n_images={task: n for (task, condition), n in scores.n_images.items() if condition == "brain"},
        report=page.name if page.is_file() else None,
        figure=figures[0].relative_to(root).as_posix() if figures else None,
        checks=_read_checks(root / f"sub-{label}" / "func", label, columns),
    )


def _read_checks(func: Path, label: str, columns: Sequence[Column]) -> SubjectChecks:
    """Read tables of findings and of means; those that cannot be read give a warning."""
    counts: Counter[str] = Counter()
    broken: list[tuple[str, str]] = []
    p: dict[str, float] = {}
    chance: dict[str, tuple[float, float]] = {}
    for task in dict.fromkeys(c.task for c in columns):
        start = f"sub-{label}{f'_task-{task}' if task else ''}_desc"
        table = func / f"{start}-findings_metrics.tsv"
        for severity, stage, sentence in _rows(table, ("severity", "stage", "sentence")):
            counts[severity] += 1
            if severity == "broken":
                broken.append((stage, sentence))
        names = {(c.stage, c.metric): c.name for c in columns if c.task == task and c.condition == "brain"}
        table = func / f"{start}-summary_metrics.tsv"
        for condition, stage, metric, *cells in _rows(
            table, ("condition", "stage", "metric", "p", "chance_low", "chance_high")
        ):
            name = names.get((stage, metric))
            if condition != "brain" or name is None:
                continue
            value, low, high = map(_number, cells)
            if math.isfinite(value):
                p[name] = value
            if math.isfinite(low) and math.isfinite(high):
                chance[name] = (low, high)
    return SubjectChecks(counts, tuple(broken), p, chance)


def _rows(path: Path, names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Cells of some columns, row by row; none if the table or a column is missing."""
    if not path.is_file():
        return []
    try:
        table = read_tsv(path)
    except AppError as error:
        log.warning("%s", error)
        return []
    if any(name not in table for name in names):
        return []
    return list(zip(*(table[name] for name in names), strict=True))


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def comparable_columns(columns: Sequence[Column], scores: Sequence[SubjectScores]) -> tuple[Column, ...]:
    """Leave out top-1 of conditions where a subject has fewer images than for its brain: chance is 1 / n."""

    def fewer(column: Column) -> bool:
        here, brain = (column.task, column.condition), (column.task, "brain")
        counts = [s.n_images for s in scores if here in s.n_images]
        return any(n[here] < n.get(brain, 0) for n in counts)

    return tuple(c for c in columns if not (depends_on_n_images(c.metric) and fewer(c)))


def run_settings(root: Path, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read the settings of each subject's run from the sidecar of its table of means, by label."""
    settings: dict[str, dict[str, Any]] = {}
    for label in labels:
        for path in sorted((root / f"sub-{label}" / "func").glob("*_desc-summary_metrics.json")):
            try:
                found = read_json(path).get("RunSettings")
            except AppError:
                continue
            if isinstance(found, dict):
                settings[label] = found
    return settings


def differing_settings(settings: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Return one sentence for each setting in which the subjects' runs differ."""
    warnings = []
    for key, name in _SETTINGS.items():
        groups: dict[str, list[str]] = {}
        for label, found in settings.items():
            groups.setdefault(json.dumps(found.get(key)), []).append(f"sub-{label}")
        if len(groups) > 1:
            listed = "; ".join(f"{', '.join(subjects)}: {value}" for value, subjects in groups.items())
            warnings.append(f"Subjects differ in {name}, so their scores are not comparable ({listed}).")
    return tuple(warnings)
