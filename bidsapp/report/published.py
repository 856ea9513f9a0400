"""Scores of this run by the published protocols, next to published scores."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bidsapp.evidence import Evidence, Value
from bidsapp.report.labels import format_cell, format_value, metric_label

#: Columns as in published tables, and their names in this run's tables.
COLUMNS = (
    ("PixCorr", "pixcorr"),
    ("SSIM", "ssim"),
    ("AlexNet(2)", "two_way_alexnet2"),
    ("AlexNet(5)", "two_way_alexnet5"),
    ("Inception", "two_way_inception"),
    ("CLIP", "two_way_clip"),
    ("EffNet-B ↓", "distance_effnet"),
    ("SwAV ↓", "distance_swav"),
)


@dataclass(frozen=True)
class PublishedRow:
    """A row of the table: system, provenance, and a text and an interval for each column."""

    system: str
    subjects: str
    protocol: str
    source: str
    own: bool
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PublishedTable:
    """The table and the notes below it."""

    columns: tuple[str, ...]
    rows: tuple[PublishedRow, ...]
    notes: tuple[str, ...]


@cache
def published_rows() -> tuple[dict[str, Any], ...]:
    """Read the rows of ``published.toml``."""
    path = Path(__file__).parent / "published.toml"
    return tuple(tomllib.loads(path.read_text(encoding="utf-8"))["rows"])


def published_table(evidence: Evidence, subject: str) -> PublishedTable | None:
    """Tabulate this run's scores and published ones; None if no published protocol scored the run."""
    if not evidence.protocols:
        return None
    rows, notes = [], []
    for p in evidence.protocols:
        cells = tuple(_cell(name, p.values.get(name)) for _, name in COLUMNS)
        images = f"{p.n_images} test images"
        rows.append(PublishedRow("This run", f"sub-{subject}", p.protocol, images, True, cells))
        if p.skipped:
            names = ", ".join(metric_label(m).title for m in p.skipped)
            files = ", ".join(dict.fromkeys(f for f in p.skipped.values() if f))
            why = f": {files} is not in the models folder" if files else ""
            notes.append(f"Not scored by {p.protocol}: {names}{why}.")
        if (columnwise := p.values.get("ssim_columnwise")) is not None:
            text = format_value(metric_label("ssim"), columnwise.mean)
            notes.append(
                f"SSIM by {p.protocol} is {text} when averaged over columns, as in older versions of "
                "scikit-image; some published values are of this type."
            )
    for r in published_rows():
        cells = tuple(_cell(n, Value(r["scores"][n]) if n in r["scores"] else None) for _, n in COLUMNS)
        rows.append(PublishedRow(r["system"], r["subjects"], r["protocol"], r["source"], False, cells))
    return PublishedTable(tuple(title for title, _ in COLUMNS), tuple(rows), tuple(notes))


def _cell(metric: str, value: Value | None) -> tuple[str, str]:
    return format_cell(metric_label(metric), *((value.mean, value.low, value.high) if value else (None,)))
