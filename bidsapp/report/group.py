"""The report of the group."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from bidsapp.report import summaries
from bidsapp.report.checks import SEVERITY_TITLES
from bidsapp.report.figures import GAP, SIDE
from bidsapp.report.labels import (
    STAGE_TITLES,
    format_cell,
    format_value,
    is_two_way,
    metric_label,
    primary_metric,
)
from bidsapp.report.methods import group_methods_text
from bidsapp.report.page import render
from bidsapp.report.plots import group_plots, ordered
from bidsapp.report.records import CONDITIONS, Column, GroupReport

_SECTIONS = ("Summary", "Subjects", "Scores", "Table", "About", "Methods", "Errors")


def write_group_report(path: str | Path, report: GroupReport) -> Path:
    """Write ``group.html``; its links and images are those of the subjects' reports.

    Returns the HTML file's path.

    Parameters
    ----------
    path : path
        The HTML file; its folder is the root of the output dataset.
    """
    path = Path(path)
    headline, sentences = summaries.group_summary(report)
    brain = [c for c in report.columns if c.condition == "brain"]
    conditions = ordered({c.condition for c in report.columns}, CONDITIONS)
    n, version = len(report.subjects), next(iter(report.versions.values()), "")
    n_errors = len(report.missing) + len(report.warnings)
    render(
        path,
        "group.html.j2",
        title="Group",
        heading=f"{n} subject{'s' if n != 1 else ''}",
        version=version,
        sections=[(s.lower(), s, n_errors if s == "Errors" else 0) for s in _SECTIONS],
        headline=headline,
        sentences=sentences,
        subjects=_cards(report, brain),
        checks=_checks(report, brain),
        any_figure=any(s.figure for s in report.subjects),
        tile_size=(3 * SIDE + 2 * GAP, SIDE),
        legend_items=_legend(report, conditions),
        plots_=group_plots(report),
        # Means are of all columns of the table, columns are those that are comparable.
        left_out=len(report.means) > len(report.columns),
        tables=_tables(report),
        table_href=report.table,
        missing=report.missing,
        warnings=report.warnings,
        methods=group_methods_text(report.recipes, n, version),
        command=report.command,
        versions=list(report.versions.items()),
    )
    return path


def _legend(report: GroupReport, conditions: list[str]) -> list[tuple[str, str]]:
    several = len(report.subjects) > 1
    oracle = ("oracleband", "Oracle, mean and interval") if several else ("oracle", "Oracle, mean")
    marks = {"brain": ("brain", "Brain, mean"), "null": ("null", "Null, mean"), "oracle": oracle}
    items = [("subject", "A subject"), *(marks.get(c, (c, c)) for c in conditions)]
    if any(s.checks.chance for s in report.subjects):
        return [*items, ("band", "Chance and its 95% range for a subject")]
    return items + ([("chance", "Chance")] if report.chance else [])


def _main_column(brain: list[Column]) -> Column | None:
    """Return the column whose test is shown for each subject: the last stage of the main metric."""
    metric = primary_metric(tuple(dict.fromkeys(c.metric for c in brain)))
    return max((c for c in brain if c.metric == metric), key=lambda c: c.stage, default=None)


def _checks(report: GroupReport, brain: list[Column]) -> SimpleNamespace:
    """Return the table of checks (findings by severity, the subject's p) and the broken stages."""
    column = _main_column(brain)
    rows, broken = [], []
    for s in report.subjects:
        counts = [str(s.checks.counts.get(k, 0)) if s.checks.counts else "–" for k in SEVERITY_TITLES]
        p = s.checks.p.get(column.name) if column else None
        cells = [*counts, "–" if p is None else f"{p:.2g}"]
        row = SimpleNamespace(
            name=f"sub-{s.label}", report=s.report, cells=cells, broken=bool(s.checks.broken)
        )
        rows.append(row)
        broken += [(row.name, stage, sentence) for stage, sentence in s.checks.broken]
    name = ""
    if column:
        name = f"{metric_label(column.metric).title}, {STAGE_TITLES.get(column.stage, column.stage).lower()}"
    return SimpleNamespace(
        any=any(s.checks.counts or s.checks.p for s in report.subjects),
        severities=[t.capitalize() for t in SEVERITY_TITLES.values()],
        rows=rows,
        broken=broken,
        test=name,
    )


def _cards(report: GroupReport, brain: list[Column]) -> list[SimpleNamespace]:
    metric = primary_metric(tuple(dict.fromkeys(c.metric for c in brain)))
    stage = "stage2" if any(c.stage == "stage2" for c in brain) else "stage1"
    main = [c for c in brain if c.stage == stage and c.metric in (metric, "pixcorr")]
    main.sort(key=lambda c: c.metric != metric)
    cards = []
    for s in report.subjects:
        scores = []
        for column in main:
            if column.name in s.values:
                name = "two-way" if is_two_way(column.metric) else metric_label(column.metric).title.lower()
                scores.append((name, format_value(metric_label(column.metric), s.values[column.name])))
        cards.append(SimpleNamespace(label=s.label, report=s.report, figure=s.figure, main=scores))
    return cards


def _tables(report: GroupReport) -> list[SimpleNamespace]:
    """Return one table per task: a row for each subject, two columns for each metric, the means below."""
    tables = []
    tasks = list(dict.fromkeys(c.task for c in report.columns))
    for task in tasks:
        brain = [c for c in report.columns if c.condition == "brain" and c.task == task]
        metrics = list(dict.fromkeys(c.metric for c in brain))
        brain.sort(key=lambda c: (metrics.index(c.metric), c.stage))
        rows = [
            SimpleNamespace(
                name=f"sub-{s.label}",
                report=s.report,
                n=s.n_images.get(task, "–"),
                cells=[format_value(metric_label(c.metric), s.values.get(c.name)) for c in brain],
            )
            for s in report.subjects
        ]
        tables.append(
            SimpleNamespace(
                caption=f"Scores from the brain{f', {task}' if len(tasks) > 1 else ''}",
                metrics=[(metric_label(m).title, sum(c.metric == m for c in brain)) for m in metrics],
                stages=[STAGE_TITLES.get(c.stage, c.stage) for c in brain],
                rows=rows,
                feet=_feet(report, brain, task),
            )
        )
    return tables


def _feet(report: GroupReport, brain: list[Column], task: str) -> list[tuple[str, list[tuple[str, str]]]]:
    titles = {"brain": "Mean", "null": "Null, mean", "oracle": "Oracle, mean"}
    names = {(c.condition, c.stage, c.metric): c.name for c in report.columns if c.task == task}
    feet = []
    for condition in ordered({c.condition for c in report.columns if c.task == task}, CONDITIONS):
        cells = []
        for column in brain:
            label = metric_label(column.metric)
            mean = report.means.get(names.get((condition, column.stage, column.metric), ""))
            cells.append(format_cell(label, *((mean.mean, mean.low, mean.high) if mean else (None,))))
        feet.append((titles.get(condition, condition), cells))
    if any(c.name in report.chance for c in brain):
        chance = [format_cell(metric_label(c.metric), report.chance.get(c.name)) for c in brain]
        feet.append(("Chance", chance))
    return feet
