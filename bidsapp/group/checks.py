"""Outputs of each subject's run for the group's report: findings, tests, chance, links."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from bidsapp.errors import AppError
from bidsapp.report.labels import depends_on_n_images
from bidsapp.report.records import Column, SubjectChecks, SubjectEntry
from bidsapp.storage.text import read_tsv

log = logging.getLogger(__name__)


def subject_entry(
    root: Path, label: str, values: Mapping[str, float], n_images: int, columns: Sequence[Column]
) -> SubjectEntry:
    """Collect what the group's report shows of a subject: its values, its checks, and what can be linked."""
    page = root / f"sub-{label}.html"
    figures = sorted((root / f"sub-{label}" / "figures").glob("*_desc-median1_recon.png"))
    return SubjectEntry(
        label=label,
        values={name: value for name, value in values.items() if math.isfinite(value)},
        n_images=n_images,
        report=page.name if page.is_file() else None,
        figure=figures[0].relative_to(root).as_posix() if figures else None,
        checks=read_checks(root / f"sub-{label}" / "func", label, columns),
    )


def read_checks(func: Path, label: str, columns: Sequence[Column]) -> SubjectChecks:
    """Read the tables of findings and of means in a subject's folder ``func``.

    A table that is missing or cannot be read is left out, the latter with a warning.
    """
    counts: Counter[str] = Counter()
    broken: list[tuple[str, str]] = []
    p: dict[str, float] = {}
    chance: dict[str, tuple[float, float]] = {}
    for task in dict.fromkeys(c.task for c in columns):
        start = f"sub-{label}_task-{task}_desc"
        for severity, stage, sentence in _rows(
            func / f"{start}-findings_metrics.tsv", ("severity", "stage", "sentence")
        ):
            counts[severity] += 1
            if severity == "broken":
                broken.append((stage, sentence))
        names = {(c.stage, c.metric): c.name for c in columns if c.task == task and c.condition == "brain"}
        for condition, stage, metric, value, low, high in _rows(
            func / f"{start}-summary_metrics.tsv",
            ("condition", "stage", "metric", "p", "chance_low", "chance_high"),
        ):
            name = names.get((stage, metric))
            if condition != "brain" or name is None:
                continue
            if math.isfinite(_number(value)):
                p[name] = _number(value)
            if math.isfinite(_number(low)) and math.isfinite(_number(high)):
                chance[name] = (_number(low), _number(high))
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


def comparable_columns(
    columns: Sequence[Column], counts: Sequence[Mapping[tuple[str, str], int]]
) -> tuple[Column, ...]:
    """Leave out top-1 of null and oracle if a subject has fewer images there than for its brain.

    Chance of top-1 is 1 / n. ``counts`` has, for each subject, the number of scored images by
    (task, condition).
    """

    def fewer(column: Column) -> bool:
        here, brain = (column.task, column.condition), (column.task, "brain")
        return any(n.get(here, 0) < n.get(brain, 0) for n in counts if here in n)

    return tuple(c for c in columns if not (depends_on_n_images(c.metric) and fewer(c)))
