"""Positions of the marks of a plot in percent of its width, drawn as SVG by the templates.

The plots are part of the page: their colours follow its light or dark scheme, and their text keeps its
size on a phone.
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

_MARGIN = 2.0  # percent of the width on both sides


@dataclass(frozen=True)
class Mark:
    """A dot with an interval: its condition (the mark's shape), position and description."""

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
    """Maps values to the width of a plot, in percent; values outside are placed at its ends."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Position of a value."""
        share = (value - self.low) / (self.high - self.low)
        return _MARGIN + (100 - 2 * _MARGIN) * min(max(share, 0.0), 1.0)

    def place(self, value: float) -> str:
        """Position as an SVG length."""
        return f"{self.at(value):.2f}%"

    def ends(self, low: float | None, high: float | None) -> tuple[str | None, str | None]:
        """Positions of an interval's ends; None where it is not defined."""
        if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
            return None, None
        return self.place(low), self.place(high)

    def band(self, low: float, high: float, least: float = 0.0) -> tuple[str, str]:
        """Position and width of a band, at least ``least`` percent wide."""
        left = self.at(low)
        return f"{left:.2f}%", f"{max(self.at(high) - left, least):.2f}%"

    def ticks(self, label: MetricLabel) -> tuple[tuple[str, str], ...]:
        """Position and text of the ticks, at multiples of a quarter, a half or whole numbers."""
        width = self.high - self.low
        step = next((s for s in (0.25, 0.5) if width / s < 6), math.ceil(width / 5))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        values = [i * step for i in range(first, last + 1)]
        texts = [f"{100 * v:.0f}%" if label.percent else f"{v:g}".replace("-", "−") for v in values]
        return tuple(zip(map(self.place, values), texts, strict=True))


def axis_for(label: MetricLabel, values: Iterable[float | None]) -> Axis:
    """Return the label's range, widened in steps of a tenth where values are outside."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    step = (label.high - label.low) / 10
    low = min([label.low, *(step * math.floor(v / step + 1e-9) for v in finite)])
    high = max([label.high, *(step * math.ceil(v / step - 1e-9) for v in finite)])
    return Axis(low, high)


def score_plots(rows: Iterable[ScoreRow]) -> tuple[MetricPlot, ...]:
    """One plot per metric of a subject's summary, lanes by stage, marks by condition."""
    table: dict[str, dict[str, dict[str, ScoreRow]]] = {}
    for row in rows:
        if math.isfinite(row.mean):
            table.setdefault(row.metric, {}).setdefault(row.stage, {})[row.condition] = row
    plots = []
    for metric, stages in table.items():
        label = metric_label(metric)
        cells = [r for by_condition in stages.values() for r in by_condition.values()]
        # The axis is chosen by means; an interval that goes further is cut at its end.
        axis = axis_for(label, [v for r in cells for v in (r.mean, r.chance, _within(label, r.chance_low))])
        lanes = tuple(_score_lane(label, axis, s, stages[s]) for s in ordered(stages, STAGES))
        plots.append(MetricPlot(label, "", lanes, axis.ticks(label)))
    return tuple(plots)


def _score_lane(label: MetricLabel, axis: Axis, stage: str, rows: Mapping[str, ScoreRow]) -> Lane:
    marks = []
    for condition in reversed(ordered(rows, CONDITIONS)):  # the brain last, on top of the others
        row = rows[condition]
        text = f"{CONDITION_TITLES.get(condition, condition)} {format_value(label, row.mean)}"
        interval = format_interval(label, row.low, row.high)
        text += f" ({interval})" if interval else ""
        marks.append(Mark(condition, axis.place(row.mean), *axis.ends(row.low, row.high), text))
    main = rows.get("brain") or next(iter(rows.values()))
    chance = next((r.chance for r in (main, *rows.values()) if r.chance is not None), None)
    band = None
    if main.chance_low is not None and main.chance_high is not None:
        band = axis.band(main.chance_low, main.chance_high)
    parts = [m.text for m in reversed(marks)]
    if chance is not None:
        parts.append(f"chance {format_value(label, chance)}")
    title = STAGE_TITLES.get(stage, stage)
    return Lane(
        title,
        format_value(label, main.mean),
        format_interval(label, main.low, main.high),
        tuple(marks),
        None if chance is None else axis.place(chance),
        band,
        f"{label.title}, {title}: {'; '.join(parts)}.",
    )


def group_plots(report: GroupReport) -> tuple[MetricPlot, ...]:
    """One plot per metric (and task): a dot for each subject, the mean and its interval, null and oracle."""
    table: dict[tuple[str, str], dict[str, dict[str, Column]]] = {}
    for column in report.columns:
        stages = table.setdefault((column.task, column.metric), {})
        stages.setdefault(column.stage, {})[column.condition] = column
    several = len({c.task for c in report.columns}) > 1
    plots = []
    for (task, metric), stages in table.items():
        label = metric_label(metric)
        names = [c.name for by_condition in stages.values() for c in by_condition.values()]
        values = [s.values.get(n) for s in report.subjects for n in names]
        values += [report.chance.get(n) for n in names]
        # An interval over few subjects can be wider than the metric's range: it is cut at the axis' end.
        axis = axis_for(label, values)
        lanes = [_group_lane(report, label, axis, s, stages[s]) for s in ordered(stages, STAGES)]
        shown = tuple(lane for lane in lanes if lane.marks)
        plots.append(MetricPlot(label, task if several else "", shown, axis.ticks(label)))
    return tuple(plots)


def _group_lane(
    report: GroupReport, label: MetricLabel, axis: Axis, stage: str, columns: Mapping[str, Column]
) -> Lane:
    marks, parts = [], []
    value, interval, chance = "–", "", None
    for condition in reversed(ordered(columns, CONDITIONS)):
        name = columns[condition].name
        mean = report.means.get(name)
        if mean is None or not math.isfinite(mean.mean):
            continue
        text = f"{CONDITION_TITLES.get(condition, condition)}, mean of {mean.n}: "
        text += format_value(label, mean.mean)
        span = format_interval(label, mean.low, mean.high)
        text += f" ({span})" if span else ""
        if condition == "brain":
            marks += _subject_marks(report, label, axis, name)
            value, interval = format_value(label, mean.mean), span
        marks.append(Mark(condition, axis.place(mean.mean), *axis.ends(mean.low, mean.high), text))
        parts.append(text)
        chance = report.chance.get(name, chance)
    if chance is not None:
        parts.append(f"chance {format_value(label, chance)}")
    title = STAGE_TITLES.get(stage, stage)
    band = None
    if (chance_range := _chance_range(report, columns)) is not None:
        band = axis.band(*chance_range)
        parts.append(f"chance of a subject {format_interval(label, *chance_range)}")
    oracle = report.means.get(columns["oracle"].name) if "oracle" in columns else None
    oracle_band = None
    if oracle is not None and oracle.low is not None and oracle.high is not None:
        oracle_band = axis.band(oracle.low, oracle.high)
    text = f"{label.title}, {title}: {'; '.join(parts)}."
    place = None if chance is None else axis.place(chance)
    return Lane(title, value, interval, tuple(marks), place, band, text, oracle_band)


def _chance_range(report: GroupReport, columns: Mapping[str, Column]) -> tuple[float, float] | None:
    """95% range of a subject's own brain score under random pairings: mean over subjects of its ends."""
    if "brain" not in columns:
        return None
    found = [r for s in report.subjects if (r := s.checks.chance.get(columns["brain"].name))]
    if not found:
        return None
    return sum(low for low, _ in found) / len(found), sum(high for _, high in found) / len(found)


def _subject_marks(report: GroupReport, label: MetricLabel, axis: Axis, name: str) -> list[Mark]:
    """Return a dot for each subject, alternately moved up and down so that equal values stay visible."""
    marks = []
    for i, subject in enumerate(s for s in report.subjects if math.isfinite(s.values.get(name, math.nan))):
        value = subject.values[name]
        text = f"sub-{subject.label} {format_value(label, value)}"
        marks.append(Mark("subject", axis.place(value), None, None, text, (-8, 8, -11, 11)[i % 4]))
    return marks


def _within(label: MetricLabel, value: float | None) -> float | None:
    return None if value is None else min(max(value, label.levels[0]), label.levels[1])


def ordered(present: Iterable[str], known: tuple[str, ...]) -> list[str]:
    """Return the known names first, in their order, then the others as they come."""
    names = list(present)
    return [k for k in known if k in names] + [n for n in names if n not in known]
