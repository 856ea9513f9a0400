"""How well each target was predicted: a table, histograms over dimensions, curves along its parts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bidsapp.evidence import Evidence, TargetQuality, Value
from bidsapp.records import TARGET_TITLES
from bidsapp.report.labels import format_cell, metric_label
from bidsapp.report.records import RidgePenalty

_BINS = 60
#: Height of a drawing in its own units; its width is 100.
_HEIGHT = 40.0

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TargetRow:
    """A row of the table: target, note, and a text and an interval for each of :data:`COLUMNS`."""

    title: str
    note: str
    cells: tuple[tuple[str, str], ...]


#: Columns of the table, after the target.
COLUMNS = (
    "Correlation",
    "Ceiling",
    "R², median",
    "Two-way",
    "p",
    "Top-1",
    "Top-1 with training images",
    "Median rank",
    "Dimensions",
    "Ridge penalty",
)


@dataclass(frozen=True)
class Histogram:
    """A histogram as points of an SVG polygon (100 wide, 40 high).

    ``ceiling`` is the outline of the noise ceiling's histogram, "" without one; ``zero`` is the position of
    0, "" where it is outside; ``ends`` are the values at the left and right end.
    """

    title: str
    what: str
    points: str
    ceiling: str
    zero: str
    ends: tuple[str, str]
    text: str


@dataclass(frozen=True)
class Curve:
    """Correlation along the parts of a target, as points of an SVG line (100 wide, 40 high).

    ``ceiling`` is "" without repeats; ``ticks`` are the values drawn as lines, with their heights;
    ``ends`` are the names of the first and the last part.
    """

    title: str
    parts: str
    points: str
    ceiling: str
    ticks: tuple[tuple[str, str], ...]
    text: str
    ends: tuple[str, str]


def target_table(evidence: Evidence, penalties: Mapping[str, RidgePenalty]) -> tuple[TargetRow, ...]:
    """Tabulate the quality of each predicted target and its ridge penalty."""
    return tuple(_row(t, penalties.get(t.target)) for t in evidence.targets)


def _row(t: TargetQuality, penalty: RidgePenalty | None) -> TargetRow:
    r, r2, ceiling = _known(t.r), _known(t.r2), _known(() if t.ceiling is None else t.ceiling)
    ends = np.quantile(r, [0.025, 0.975]).tolist() if r.size else (None, None)
    cells = (
        format_cell(metric_label("pixcorr"), float(r.mean()) if r.size else None, *ends),
        (_number(ceiling.mean()) if ceiling.size else "–", ""),
        (_number(np.median(r2)) if r2.size else "–", ""),
        (_percent(t.two_way), ""),
        (f"{t.two_way_p:.2g}", ""),
        (_percent(t.top1), ""),
        (_percent(t.among_training), ""),
        ("–" if t.median_rank is None else f"{t.median_rank:,g} of {t.n_training + 1:,}", ""),
        (f"{t.n_dims:,}", ""),
        ("–" if penalty is None else f"{penalty.alpha:,g}", ""),
    )
    note = penalty.note if penalty and r.size else "" if r.size else "the same for all test images"
    return TargetRow(_title(t), note, cells)


def histograms(evidence: Evidence) -> tuple[Histogram, ...]:
    """Draw correlation (with its ceiling) and R2 over the dimensions of each target."""
    found = []
    for t in evidence.targets:
        found.append(_histogram(f"{_title(t)}: correlation", t.r, t.ceiling, -1.0))
        found.append(_histogram(f"{_title(t)}: R²", t.r2, None, -math.inf))
    return tuple(h for h in found if h is not None)


def _histogram(title: str, of: Vector, ceilings: Vector | None, least: float) -> Histogram | None:
    """Draw values between their 0.5% and 99.5% quantiles, widened to tenths; None without any."""
    values, ceiling = _known(of), _known(() if ceilings is None else ceilings)
    if not values.size:
        return None
    low, high = (float(q) for q in np.quantile(np.concatenate([values, ceiling]), [0.005, 0.995]))
    low, high = max(math.floor(10 * min(low, 0.0)) / 10, least), math.ceil(10 * max(high, 0.1)) / 10
    edges = np.linspace(low, high, _BINS + 1)
    counts, outline = _shares(values, edges), _shares(ceiling, edges)
    highest = max(counts.max(), outline.max())
    middle = [_number(v) for v in np.quantile(values, [0.025, 0.5, 0.975])]
    text = f"median {middle[1]}, middle 95% of dimensions {middle[0]} to {middle[2]}"
    if ceiling.size:
        text += f"; dashed: the ceiling, median {_number(np.median(ceiling))}"
    return Histogram(
        title,
        f"{text[:1].upper()}{text[1:]}.",
        f"0,{_HEIGHT:g} {_outline(counts, highest)} 100,{_HEIGHT:g}",
        _outline(outline, highest) if ceiling.size else "",
        f"{-low / (high - low) * 100:.2f}" if low < 0 < high else "",
        (_number(low, 1), _number(high, 1)),
        f"{title}: {text}.",
    )


def _shares(values: Vector, edges: Vector) -> Vector:
    """Share of the values in each bin; those outside count in the first and the last."""
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return np.asarray(counts / max(1, values.size))


def _outline(counts: Vector, highest: float) -> str:
    step = 100 / len(counts)
    heights = _HEIGHT - counts / highest * _HEIGHT
    return " ".join(
        f"{i * step:.2f},{y:.2f} {(i + 1) * step:.2f},{y:.2f}" for i, y in enumerate(heights.tolist())
    )


def curves(evidence: Evidence) -> tuple[Curve, ...]:
    """Draw the correlation of each target's parts, in their order, with the noise ceiling."""
    return tuple(_curve(t) for t in evidence.targets if len(t.groups) > 1)


def _curve(target: TargetQuality) -> Curve:
    means = [g.r.mean for g in target.groups]
    ceilings = [g.ceiling.mean if g.ceiling else math.nan for g in target.groups]
    finite = [v for v in (*means, *ceilings) if math.isfinite(v)]
    high = max(0.1, math.ceil(10 * max(finite, default=1.0)) / 10)
    low = min(0.0, math.floor(10 * min(finite, default=0.0)) / 10)
    part = "layer" if target.target == "vdvae" else "token"
    best = max(range(len(means)), key=lambda i: means[i] if math.isfinite(means[i]) else -math.inf)
    title = _title(target)
    text = (
        f"{title}: correlation by {part}, from {means[0]:.2f} in the first to {means[-1]:.2f} in the last; "
        f"highest, {means[best]:.2f}, in {target.groups[best].name}."
    )
    ticks = tuple((_tick(v), f"{_y(v, low, high):.2f}") for v in (low, high))
    ends = (f"{part} 1", f"{part} {len(means)}")
    parts = f"{part}s 1 to {len(means)}"
    return Curve(title, parts, _points(means, low, high), _points(ceilings, low, high), ticks, text, ends)


def _y(value: float, low: float, high: float) -> float:
    return _HEIGHT - (value - low) / (high - low) * _HEIGHT


def _points(values: Sequence[float], low: float, high: float) -> str:
    step = 100 / max(1, len(values) - 1)
    places = [(i * step, _y(v, low, high)) for i, v in enumerate(values) if math.isfinite(v)]
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in places)


def _tick(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _known(values: Iterable[float]) -> Vector:
    x = np.asarray(values, dtype=np.float64)
    return x[np.isfinite(x)]


def _percent(value: Value | None) -> str:
    return "–" if value is None else f"{100 * value.mean:.0f}%"


def _number(value: float, decimals: int = 2) -> str:
    return f"{value:.{decimals}f}".replace("-", "−")


def _title(target: TargetQuality) -> str:
    return TARGET_TITLES.get(target.target, target.target)
