"""Scores of this run by the published protocols, beside the rows that were published."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bidsapp.evidence import Evidence, Value
from bidsapp.report.labels import format_interval, format_value, metric_label

#: Columns, as published tables have them, and what this run's tables call them.
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
class Row:
    """A line of the table: whose scores, how they were made, and a text and an interval for each column."""

    system: str
    subjects: str
    protocol: str
    source: str
    own: bool
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Beside:
    """The table, and what is to be said of it."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


@cache
def published_rows() -> tuple[dict[str, Any], ...]:
    """Read the rows of ``published.toml``."""
    path = Path(__file__).parent / "published.toml"
    return tuple(tomllib.loads(path.read_text(encoding="utf-8"))["rows"])


def beside(evidence: Evidence, subject: str) -> Beside | None:
    """Set this run's scores beside those published; None where no published protocol scored it.

    Parameters
    ----------
    evidence : Evidence
    subject : str
        BIDS label, without ``sub-``.
    """
    if not evidence.protocols:
        return None
    rows, notes = [], []
    for p in evidence.protocols:
        cells = tuple(_cell(name, p.values.get(name)) for _, name in COLUMNS)
        rows.append(Row("This run", f"sub-{subject}", p.protocol, f"{p.n_images} test images", True, cells))
        if p.skipped:
            names = ", ".join(metric_label(m).title for m in p.skipped)
            files = ", ".join(dict.fromkeys(f for f in p.skipped.values() if f))
            why = f": {files} is not in the models folder" if files else ""
            notes.append(f"Not scored by {p.protocol}: {names}{why}.")
        if (columnwise := p.values.get("ssim_columnwise")) is not None:
            text = format_value(metric_label("ssim"), columnwise.mean)
            notes.append(
                f"SSIM by {p.protocol} is {text} if it is averaged over columns, as older versions of "
                "scikit-image have it; some published values are of this kind."
            )
    for r in published_rows():
        cells = tuple(_cell(n, Value(r["scores"][n]) if n in r["scores"] else None) for _, n in COLUMNS)
        rows.append(Row(r["system"], r["subjects"], r["protocol"], r["source"], False, cells))
    return Beside(tuple(title for title, _ in COLUMNS), tuple(rows), tuple(notes))


def _cell(metric: str, value: Value | None) -> tuple[str, str]:
    label = metric_label(metric)
    if value is None:
        return "–", ""
    return format_value(label, value.mean), format_interval(label, value.low, value.high)
