"""The summary sentences of the reports."""

from __future__ import annotations

from collections.abc import Iterable

from bidsapp.report.labels import (
    MetricLabel,
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
            return f"The run of sub-{report.subject} failed.", (split_message(report.errors[0])[0],)
        return f"There are no scores for sub-{report.subject}.", ()
    sentences = []
    first = rows.get(("brain", "stage1"))
    if stage == "stage2" and first is not None:
        sentences.append(_stages(first, brain))
    if (null := rows.get(("null", stage))) is not None:
        sentences.append(_null(null))
    if (oracle := rows.get(("oracle", stage))) is not None:
        value = format_value(metric_label(oracle.metric), oracle.mean)
        sentences.append(
            f"With true latents in place of the decoded ones (the oracle), the score is {value}, the upper "
            "bound set by the generative models."
        )
    if report.errors:
        sentences.append("Part of the run failed: see Errors.")
    label = metric_label(brain.metric)
    notes = _notes(label, "95% interval", (brain.low, brain.high), brain.chance)
    return _resemble("The", label, brain.mean, notes), tuple(sentences)


def group_summary(report: GroupReport) -> tuple[str, tuple[str, ...]]:
    """Return the headline of the group report and the sentences below it."""
    n = len(report.subjects)
    who = f"{n} subject{'s' if n != 1 else ''}"
    headline = f"{who} with scores."
    brain = [c for c in report.columns if c.condition == "brain"]
    metric = primary_metric(tuple(dict.fromkeys(c.metric for c in brain)))
    columns = sorted((c for c in brain if c.metric == metric), key=lambda c: c.stage, reverse=True)
    if columns and (mean := report.means.get(columns[0].name)) is not None:
        label = metric_label(columns[0].metric)
        chance = report.chance.get(columns[0].name)
        notes = _notes(label, "95% interval over subjects", (mean.low, mean.high), chance)
        headline = _resemble(f"In {who}, the", label, mean.mean, notes)
    sentences = []
    if n < 2:
        sentences.append("An interval over subjects needs at least two subjects.")
    if report.missing:
        m = len(report.missing)
        sentences.append(f"{m} subject{' is' if m == 1 else 's are'} missing: see Missing subjects.")
    return headline, tuple(sentences)


def main_metric(rows: Iterable[ScoreRow]) -> str | None:
    """Return the metric of the summary."""
    return primary_metric(tuple(dict.fromkeys(r.metric for r in rows)))


def split_message(text: str) -> tuple[str, str]:
    """Return an error's first line, and the rest."""
    first, _, rest = text.strip().partition("\n")
    return first, rest.strip("\n")


def _resemble(start: str, label: MetricLabel, mean: float, notes: str) -> str:
    value = format_value(label, mean)
    if is_two_way(label.key):
        return (
            f"{start} reconstructions are more similar to their own stimulus than to another one {value} of "
            f"the time{notes}."
        )
    return f"{start} reconstructions score {value} in {label.title}{notes}."


def _notes(
    label: MetricLabel, name: str, ends: tuple[float | None, float | None], chance: float | None
) -> str:
    span = format_interval(label, *ends)
    parts = [f"{name} {span}"] if span else []
    if chance is not None:
        parts.append(f"chance {format_value(label, chance)}")
    return f" ({'; '.join(parts)})" if parts else ""


def _stages(first: ScoreRow, second: ScoreRow) -> str:
    label = metric_label(first.metric)
    values = f"{format_value(label, first.mean)} in stage 1 and {format_value(label, second.mean)} in stage 2"
    if not is_two_way(first.metric):
        return f"The score is {values}."
    network = network_title(first.metric.removeprefix("two_way_"))
    return f"On the features of {network}, the score is {values}."


def _null(row: ScoreRow) -> str:
    label = metric_label(row.metric)
    low, high = row.chance_low, row.chance_high
    text = "With responses and images shuffled in training (the null), the same pipeline scores "
    text += format_value(label, row.mean)
    if low is None or high is None:
        return f"{text}."
    span = format_interval(label, low, high)
    if low <= row.mean <= high:
        return f"{text}, within the range of chance ({span})."
    return f"{text}, outside the range of chance ({span}): find the cause before trusting the other scores."
