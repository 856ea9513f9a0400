"""The summary lines of the reports, made from the scores by plain rules."""

from __future__ import annotations

from collections.abc import Iterable

from bidsapp.report.labels import (
    format_interval,
    format_value,
    is_two_way,
    metric_label,
    network_title,
    primary_metric,
)
from bidsapp.report.records import GroupReport, ScoreRow, SubjectReport


def subject_summary(report: SubjectReport) -> tuple[str, tuple[str, ...]]:
    """Return the headline of a subject's report and the sentences below it."""
    rows = {(r.condition, r.stage): r for r in report.scores if r.metric == main_metric(report.scores)}
    stage = "stage2" if ("brain", "stage2") in rows else "stage1"
    brain = rows.get(("brain", stage))
    if brain is None:
        if report.errors:
            return f"The run of sub-{report.subject} did not finish.", (_first_line(report.errors[0]),)
        return f"There are no scores for sub-{report.subject}.", ()
    headline = _headline(brain)
    sentences = []
    first = rows.get(("brain", "stage1"))
    if stage == "stage2" and first is not None:
        sentences.append(_stages(first, brain))
    if (null := rows.get(("null", stage))) is not None:
        sentences.append(_null(null))
    if (oracle := rows.get(("oracle", stage))) is not None:
        value = format_value(metric_label(oracle.metric), oracle.mean)
        sentences.append(
            f"With the true latents in place of the decoded ones (the oracle) it reaches {value}, "
            "the most that the generating models let one see."
        )
    if report.errors:
        sentences.append("Part of the run failed: see Errors.")
    return headline, tuple(sentences)


def main_metric(rows: Iterable[ScoreRow]) -> str | None:
    """Return the metric that the summary speaks of."""
    return primary_metric(tuple(dict.fromkeys(r.metric for r in rows)))


def _headline(row: ScoreRow) -> str:
    label = metric_label(row.metric)
    value = format_value(label, row.mean)
    inside = [
        f"95\N{NO-BREAK SPACE}% interval {span}"
        if (span := format_interval(label, row.low, row.high))
        else ""
    ]
    if row.chance is not None:
        inside.append(f"chance {format_value(label, row.chance)}")
    note = "; ".join(part for part in inside if part)
    note = f" ({note})" if note else ""
    if is_two_way(row.metric):
        text = "The reconstructions resemble their own stimulus more than another one"
        return f"{text} {value} of the time{note}."
    return f"The reconstructions score {value} in {label.title}{note}."


def _stages(first: ScoreRow, second: ScoreRow) -> str:
    label = metric_label(first.metric)
    values = f"{format_value(label, first.mean)} in stage 1 and {format_value(label, second.mean)} in stage 2"
    if not is_two_way(first.metric):
        return f"It is {values}."
    network = network_title(first.metric.removeprefix("two_way_"))
    return f"Compared on the features of {network}, it is {values}."


def _null(row: ScoreRow) -> str:
    label = metric_label(row.metric)
    low, high = row.chance_low, row.chance_high
    text = "With responses and images shuffled in training (the null) the same pipeline scores "
    text += format_value(label, row.mean)
    if low is None or high is None:
        return f"{text}."
    span = format_interval(label, low, high)
    if low <= row.mean <= high:
        return f"{text}, inside what chance gives ({span})."
    return f"{text}, outside what chance gives ({span}): find out why before trusting the other scores."


def group_summary(report: GroupReport) -> tuple[str, tuple[str, ...]]:
    """Return the headline of the group report and the sentences below it."""
    n = len(report.subjects)
    who = f"{n} subject{'s' if n != 1 else ''}"
    sentences = []
    headline = f"{who} with scores."
    brain = [c for c in report.columns if c.condition == "brain"]
    metric = primary_metric(tuple(dict.fromkeys(c.metric for c in brain)))
    columns = sorted((c for c in brain if c.metric == metric), key=lambda c: c.stage, reverse=True)
    if columns and (estimate := report.estimates.get(columns[0].name)) is not None:
        label = metric_label(columns[0].metric)
        value = format_value(label, estimate.mean)
        inside = []
        if span := format_interval(label, estimate.low, estimate.high):
            inside.append(f"95\N{NO-BREAK SPACE}% interval over subjects {span}")
        if (chance := report.chance.get(columns[0].name)) is not None:
            inside.append(f"chance {format_value(label, chance)}")
        note = f" ({'; '.join(inside)})" if inside else ""
        if is_two_way(columns[0].metric):
            headline = f"Over {who}, reconstructions resemble their own stimulus more than another one "
            headline += f"{value} of the time{note}."
        else:
            headline = f"Over {who}, reconstructions score {value} in {label.title}{note}."
    if n < 2:
        sentences.append("An interval over subjects needs two subjects or more.")
    if report.missing:
        m = len(report.missing)
        sentences.append(f"{m} subject{' is' if m == 1 else 's are'} missing: see Missing subjects.")
    return headline, tuple(sentences)


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0]


def split_message(text: str) -> tuple[str, str]:
    """Return an error's first line, and the rest."""
    first, _, rest = text.strip().partition("\n")
    return first, rest.strip("\n")
