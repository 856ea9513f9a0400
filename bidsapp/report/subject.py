"""The report of one subject."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

from bidsapp.evidence import Evidence
from bidsapp.report import analyses, checks, summaries, targets
from bidsapp.report.figures import GAP, SIDE, write_tiles
from bidsapp.report.labels import (
    CONDITION_TITLES,
    STAGE_TITLES,
    depends_on_n_images,
    format_cell,
    format_value,
    metric_label,
)
from bidsapp.report.methods import methods_text, voxel_count
from bidsapp.report.page import render
from bidsapp.report.plots import ordered, score_plots
from bidsapp.report.published import published_table
from bidsapp.report.records import CONDITIONS, STAGES, ScoreRow, SubjectReport
from bidsapp.report.strips import write_strips

_SECTIONS = (
    "Summary",
    "Reconstructions",
    "Ladder",
    "Decoding",
    "Scores",
    "Analyses",
    "Data",
    "About",
    "Methods",
    "Errors",
)
_FIGURE_SECTIONS = ("reconstructions", "scores", "regions", "data")


def write_subject_report(path: str | Path, report: SubjectReport) -> Path:
    """Write ``sub-XX.html``, and its images into ``sub-XX/figures`` in the same folder.

    Returns the HTML file's path.

    Parameters
    ----------
    path : path
        The HTML file; its folder is the root of the output dataset.

    Raises
    ------
    ValueError
        If ids, images and scores differ in number.
    AppError
        Exit code 73 or 74 if files cannot be written.
    """
    path = Path(path)
    _check_sizes(report)
    groups = write_tiles(path.parent, report)
    headline, sentences = summaries.subject_summary(report)
    version = next(iter(report.versions.values()), "")
    metrics = tuple(dict.fromkeys(r.metric for r in report.scores))
    conditions = ordered({r.condition for r in report.scores}, CONDITIONS)
    evidence = report.evidence or Evidence()
    scores = comparable_rows(report.scores)
    lags, trial_rows = checks.trial_rows(evidence)
    panels = analyses.panels(evidence)
    sections = [s for s in _SECTIONS if panels or s != "Analyses"]
    methods = methods_text(
        report.recipe, version=version, counts=report.counts, metrics=metrics, conditions=tuple(conditions)
    )
    render(
        path,
        "subject.html.j2",
        findings=evidence.findings,
        severities=checks.SEVERITY_TITLES,
        ladder_plots=checks.ladder_plots(evidence),
        ladder_table=checks.ladder_table(evidence),
        rungs=[checks.RUNG_TITLES[r] for r in checks.rungs(evidence)],
        n_ladder=max((r.n_images for r in evidence.ladder), default=0),
        panels=panels,
        published=published_table(evidence, report.subject),
        strips=write_strips(path.parent, report),
        histograms=targets.histograms(evidence),
        curves=targets.curves(evidence),
        target_columns=targets.COLUMNS,
        target_rows=targets.target_table(evidence, report.penalties),
        training=checks.training_sentences(evidence),
        lags=lags,
        trial_rows=trial_rows,
        title=f"sub-{report.subject}",
        version=version,
        sections=[(s.lower(), s, len(report.errors) if s == "Errors" else 0) for s in sections],
        labels=[text for text in (report.task, report.space, report.recipe) if text],
        headline=headline,
        sentences=sentences,
        facts=_facts(report),
        errors=report.errors,
        methods=methods,
        groups=groups,
        tile_size=(3 * SIDE + 2 * GAP, SIDE),
        plots_=score_plots(scores),
        legend_items=_legend(report.scores, conditions),
        left_out=len(scores) < len(report.scores),
        conditions=[CONDITION_TITLES.get(c, c) for c in conditions],
        table=score_table(scores, conditions),
        n_images=max((r.n_images or 0 for r in report.scores), default=0),
        counts=[(name.capitalize(), _count(value)) for name, value in report.counts.items()],
        repeats=_repeats(report),
        figures={s: [f for f in report.figures if f.section == s] for s in _FIGURE_SECTIONS},
        command=report.command,
        run=_run(report),
        versions=list(report.versions.items()),
        settings=list(flatten(report.settings).items()),
        messages=[
            (kind, *summaries.split_message(text))
            for kind, texts in (("error", report.errors), ("warning", report.warnings))
            for text in texts
        ],
    )
    return path


def _check_sizes(report: SubjectReport) -> None:
    """Raise ValueError where the parts of a report do not match."""
    n = len(report.stimulus_ids)
    for name in ("stimuli", "stage1", "stage2"):
        images = getattr(report, name)
        if images is not None and (images.ndim != 4 or len(images) != n or images.shape[3] != 3):
            raise ValueError(f"{name} has shape {images.shape}; ({n}, H, W, 3) was expected")
    if report.captions and len(report.captions) != n:
        raise ValueError(f"{len(report.captions)} captions for {n} test images")
    for name, values in report.per_image.items():
        if len(values) != n:
            raise ValueError(f"{name} has {len(values)} values for {n} test images")
    for figure in report.figures:
        if figure.section not in _FIGURE_SECTIONS:
            raise ValueError(
                f"unknown section {figure.section!r} of a figure; choose from {_FIGURE_SECTIONS}"
            )
        if ":" in figure.path or figure.path.startswith(("/", "\\")) or ".." in figure.path.split("/"):
            raise ValueError(f"{figure.path!r} must be relative to the report's folder and inside it")


def _facts(report: SubjectReport) -> list[tuple[str, str, str]]:
    """Return the numbers at the top: the main scores, and how many images and voxels there were."""
    facts = []
    stage = "stage2" if any(r.stage == "stage2" for r in report.scores) else "stage1"
    main = summaries.main_metric(report.scores)
    for row in report.scores:
        if row.condition == "brain" and row.stage == stage and row.metric in (main, "pixcorr"):
            label = metric_label(row.metric)
            chance = f"chance {format_value(label, row.chance)}" if row.chance is not None else ""
            name = f"{label.title}, {STAGE_TITLES[stage].lower()}"
            facts.append((row.metric != main, name, format_value(label, row.mean), chance))
    shown = [fact[1:] for fact in sorted(facts)]
    for key in ("test images", voxel_count(report.counts)):
        if key in report.counts:
            shown.append((key.capitalize(), _count(report.counts[key]), ""))
    return shown


def _legend(rows: tuple[ScoreRow, ...], conditions: list[str]) -> list[tuple[str, str]]:
    texts = {"brain": "Brain", "null": "Null: shuffled in training", "oracle": "Oracle: true latents"}
    items = [(c, texts.get(c, c)) for c in conditions]
    if any(r.chance_low is not None for r in rows):
        items.append(("band", "Chance and its 95% range"))
    elif any(r.chance is not None for r in rows):
        items.append(("chance", "Chance"))
    return items


def comparable_rows(rows: tuple[ScoreRow, ...]) -> tuple[ScoreRow, ...]:
    """Leave out top-1 of null and oracle if these have fewer images than the brain: chance is 1 / n.

    The ladder has all conditions on the same images.
    """
    n = {(r.metric, r.stage): r.n_images for r in rows if r.condition == "brain"}
    return tuple(
        r
        for r in rows
        if not depends_on_n_images(r.metric) or r.n_images == n.get((r.metric, r.stage), r.n_images)
    )


def score_table(rows: tuple[ScoreRow, ...], conditions: list[str]) -> list[SimpleNamespace]:
    """Return the rows of the score table, one per metric and stage: conditions, chance, reverse, p."""
    by = {(r.metric, r.stage, r.condition): r for r in rows}
    table = []
    for metric in dict.fromkeys(r.metric for r in rows):
        label = metric_label(metric)
        stages = ordered(dict.fromkeys(r.stage for r in rows if r.metric == metric), STAGES)
        for stage in stages:
            here = [by.get((metric, stage, c)) for c in conditions]
            cells = [format_cell(label, *((r.mean, r.low, r.high) if r else (None,))) for r in here]
            row = next((r for r in here if r is not None and r.chance is not None), None)
            chance = (row.chance, row.chance_low, row.chance_high) if row else (None,)
            brain = by.get((metric, stage, "brain"))
            cells += [format_cell(label, *chance), format_cell(label, brain.reverse if brain else None)]
            cells.append(("–" if brain is None or brain.p is None else f"{brain.p:.2g}", ""))
            table.append(
                SimpleNamespace(
                    metric=label.title,
                    lower_better=not label.higher_is_better,
                    stage=STAGE_TITLES.get(stage, stage),
                    first=stage == stages[0],
                    span=len(stages),
                    cells=cells,
                )
            )
    return table


def _repeats(report: SubjectReport) -> list[tuple[str, str, str]]:
    """Rows of the table of repeats: how often, training images, test images."""
    train, test = (report.repeats.get(kind, {}) for kind in ("training", "test"))
    return [(_count(t), _count(train.get(t, 0)), _count(test.get(t, 0))) for t in sorted({*train, *test})]


def _run(report: SubjectReport) -> list[tuple[str, str]]:
    named = (
        ("Participant", f"sub-{report.subject}"),
        ("Task", report.task),
        ("Space", report.space),
        ("Recipe", report.recipe),
        ("Seed", str(report.seed)),
        ("Run", report.run_id),
    )
    run = [(name, value) for name, value in named if value]
    if report.duration_s is not None:
        minutes, seconds = divmod(round(report.duration_s), 60)
        run.append(("Wall time", f"{minutes} min {seconds} s" if minutes else f"{seconds} s"))
    return run


def flatten(settings: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested settings as ``{"a.b": "value"}``; None and empty values are left out."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        elif isinstance(value, bool):
            flat[name] = "yes" if value else "no"
        elif isinstance(value, (list, tuple)):
            if value:
                flat[name] = ", ".join(str(v) for v in value)
        elif value is not None and value != "":
            flat[name] = str(value)
    return flat


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
