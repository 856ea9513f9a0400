"""Where the marks of a plot lie: positions in per cent of its width, drawn as SVG by the templates.

The plots are part of the page. Their colours follow its light or dark scheme and their text keeps its
size on a phone, which a picture's would not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bidsapp.report.labels import (
    CONDITION_TITLES,
    STAGE_TITLES,
    MetricLabel,
    format_interval,
    format_value,
    metric_label,
)
from bidsapp.report.records import CONDITIONS, STAGES, Column, GroupReport, ScoreRow

_MARGIN = 2.0  # per cent of the width kept free on both sides


@dataclass(frozen=True)
class Mark:
    """A dot with an interval: its condition (the mark's shape), place and what a reader is told."""

    kind: str
    x: str
    low: str | None
    high: str | None
    text: str
    y: int = 0


@dataclass(frozen=True)
class Lane:
    """One line of a plot: a stage of a metric, with the marks on it."""

    title: str
    value: str
    interval: str
    marks: tuple[Mark, ...]
    chance: str | None
    band: tuple[str, str] | None
    text: str
    oracle: tuple[str, str] | None = None


@dataclass(frozen=True)
class MetricPlot:
    """All lanes of a metric on one axis."""

    label: MetricLabel
    task: str
    lanes: tuple[Lane, ...]
    ticks: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Axis:
    """Maps values onto the width of a plot, in per cent."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Place of a value; values outside the axis stay at its ends."""
        share = (value - self.low) / (self.high - self.low)
        return _MARGIN + (100 - 2 * _MARGIN) * min(max(share, 0.0), 1.0)

    def place(self, value: float) -> str:
        """Return the same as an SVG length."""
        return f"{self.at(value):.2f}%"

    def ticks(self, label: MetricLabel) -> tuple[tuple[str, str], ...]:
        """Place and text of the ticks, on multiples of a quarter, a half or whole numbers."""
        step = next(
            (s for s in (0.25, 0.5) if (self.high - self.low) / s < 6), math.ceil((self.high - self.low) / 5)
        )
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        values = [i * step for i in range(first, last + 1)]
        texts = [
            f"{100 * v:.0f}\N{NO-BREAK SPACE}%" if label.percent else f"{v:g}".replace("-", "−")
            for v in values
        ]
        return tuple((self.place(v), t) for v, t in zip(values, texts, strict=True))


def axis_for(label: MetricLabel, values: Iterable[float | None]) -> Axis:
    """Return the label's own range, widened to steps of a tenth of it where values lie outside."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    step = (label.high - label.low) / 10
    low = min([label.low, *(step * math.floor(v / step + 1e-9) for v in finite)])
    high = max([label.high, *(step * math.ceil(v / step - 1e-9) for v in finite)])
    return Axis(low, high)


def score_plots(rows: Iterable[ScoreRow]) -> tuple[MetricPlot, ...]:
    """One plot a metric from a subject's summary rows, lanes by stage, marks by condition."""
    table: dict[str, dict[str, dict[str, ScoreRow]]] = {}
    for row in rows:
        if math.isfinite(row.mean):
            table.setdefault(row.metric, {}).setdefault(row.stage, {})[row.condition] = row
    plots = []
    for metric, stages in table.items():
        label = metric_label(metric)
        cells = [r for by_condition in stages.values() for r in by_condition.values()]
        # Means decide the axis; an interval that goes further is cut at its end.
        axis = axis_for(label, [v for r in cells for v in (r.mean, r.chance, _within(label, r.chance_low))])
        lanes = [_score_lane(label, axis, s, stages[s]) for s in ordered(stages, STAGES)]
        plots.append(MetricPlot(label, "", tuple(lanes), axis.ticks(label)))
    return tuple(plots)


def _score_lane(label: MetricLabel, axis: Axis, stage: str, rows: Mapping[str, ScoreRow]) -> Lane:
    marks = []
    for condition in reversed(ordered(rows, CONDITIONS)):  # the brain last, on top of the others
        row = rows[condition]
        text = f"{CONDITION_TITLES.get(condition, condition)} {format_value(label, row.mean)}"
        interval = format_interval(label, row.low, row.high)
        text += f" ({interval})" if interval else ""
        marks.append(Mark(condition, axis.place(row.mean), *_ends(axis, row.low, row.high), text))
    main = rows.get("brain") or next(iter(rows.values()))
    chance = _first(r.chance for r in (main, *rows.values()))
    band = None
    if main.chance_low is not None and main.chance_high is not None:
        band = _band(axis, main.chance_low, main.chance_high)
    parts = [m.text for m in reversed(marks)]
    if chance is not None:
        parts.append(f"chance {format_value(label, chance)}")
    return Lane(
        STAGE_TITLES.get(stage, stage),
        format_value(label, main.mean),
        format_interval(label, main.low, main.high),
        tuple(marks),
        None if chance is None else axis.place(chance),
        band,
        f"{label.title}, {STAGE_TITLES.get(stage, stage)}: {'; '.join(parts)}.",
    )


def group_plots(report: GroupReport) -> tuple[MetricPlot, ...]:
    """One plot a metric (and task): a dot a subject, the mean and its interval, null and oracle."""
    table: dict[tuple[str, str], dict[str, dict[str, Column]]] = {}
    for column in report.columns:
        table.setdefault((column.task, column.metric), {}).setdefault(column.stage, {})[column.condition] = (
            column
        )
    several = len({c.task for c in report.columns}) > 1
    plots = []
    for (task, metric), stages in table.items():
        label = metric_label(metric)
        names = [c.name for by_condition in stages.values() for c in by_condition.values()]
        values = [s.values.get(n) for s in report.subjects for n in names]
        values += [report.chance.get(n) for n in names]
        # An interval over few subjects can be wider than the values can be: it is cut at the axis's end.
        axis = axis_for(label, values)
        lanes = [_group_lane(report, label, axis, s, stages[s]) for s in ordered(stages, STAGES)]
        plots.append(
            MetricPlot(
                label, task if several else "", tuple(lane for lane in lanes if lane.marks), axis.ticks(label)
            )
        )
    return tuple(plots)


def _group_lane(
    report: GroupReport, label: MetricLabel, axis: Axis, stage: str, columns: Mapping[str, Column]
) -> Lane:
    marks, parts = [], []
    value, interval, chance = "–", "", None
    for condition in reversed(ordered(columns, CONDITIONS)):
        name = columns[condition].name
        estimate = report.estimates.get(name)
        if estimate is None or not math.isfinite(estimate.mean):
            continue
        ends = _ends(axis, estimate.low, estimate.high)
        text = f"{CONDITION_TITLES.get(condition, condition)}, mean of {estimate.n}: "
        text += format_value(label, estimate.mean)
        span = format_interval(label, estimate.low, estimate.high)
        text += f" ({span})" if span else ""
        if condition == "brain":
            marks += _subject_marks(report, label, axis, name)
            value, interval = format_value(label, estimate.mean), span
        marks.append(Mark(condition, axis.place(estimate.mean), *ends, text))
        parts.append(text)
        chance = report.chance.get(name, chance)
    if chance is not None:
        parts.append(f"chance {format_value(label, chance)}")
    title = STAGE_TITLES.get(stage, stage)
    place = None if chance is None else axis.place(chance)
    bands = {}
    if (luck := _mean_range(report, columns)) is not None:
        bands["chance"] = _band(axis, *luck)
        parts.append(f"a subject's chance {format_interval(label, *luck)}")
    oracle = report.estimates.get(columns["oracle"].name) if "oracle" in columns else None
    if oracle is not None and oracle.low is not None and oracle.high is not None:
        bands["oracle"] = _band(axis, oracle.low, oracle.high)
    said = f"{label.title}, {title}: {'; '.join(parts)}."
    return Lane(title, value, interval, tuple(marks), place, bands.get("chance"), said, bands.get("oracle"))


def _mean_range(report: GroupReport, columns: Mapping[str, Column]) -> tuple[float, float] | None:
    """Give what chance gives a subject's own brain score: the mean over subjects of its range's ends."""
    if "brain" not in columns:
        return None
    found = [r for s in report.subjects if (r := s.checks.chance.get(columns["brain"].name))]
    if not found:
        return None
    return sum(low for low, _ in found) / len(found), sum(high for _, high in found) / len(found)


def _band(axis: Axis, low: float, high: float) -> tuple[str, str]:
    """Place and width of a band."""
    left = axis.at(low)
    return f"{left:.2f}%", f"{max(axis.at(high) - left, 0.0):.2f}%"


def _subject_marks(report: GroupReport, label: MetricLabel, axis: Axis, name: str) -> list[Mark]:
    """Return a dot a subject, moved up and down in turn so that equal values can be told apart."""
    marks = []
    for i, subject in enumerate(s for s in report.subjects if math.isfinite(s.values.get(name, math.nan))):
        text = f"sub-{subject.label} {format_value(label, subject.values[name])}"
        marks.append(
            Mark("subject", axis.place(subject.values[name]), None, None, text, (-8, 8, -11, 11)[i % 4])
        )
    return marks


def _ends(axis: Axis, low: float | None, high: float | None) -> tuple[str | None, str | None]:
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return None, None
    return axis.place(low), axis.place(high)


def _within(label: MetricLabel, value: float | None) -> float | None:
    return None if value is None else min(max(value, label.levels[0]), label.levels[1])


def _first(values: Iterable[float | None]) -> float | None:
    return next((v for v in values if v is not None), None)


def ordered(present: Iterable[str], known: tuple[str, ...]) -> list[str]:
    """Return the known names first, in their order, then the others as they come."""
    names = list(present)
    return [k for k in known if k in names] + [n for n in names if n not in known]
