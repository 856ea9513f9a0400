"""The control ladder and the checks of a run, prepared for the page."""

from __future__ import annotations

import math
from collections.abc import Iterable

from bidsapp.evidence import RUNGS, Evidence, LadderRow, Value
from bidsapp.report.labels import STAGE_TITLES, MetricLabel, format_interval, format_value, metric_label
from bidsapp.report.plots import Axis, Lane, Mark, MetricPlot, axis_for

RUNG_TITLES = {
    "truth": "Stimuli",
    "retrieval": "Nearest training image",
    "oracle": "True latents and tokens",
    "true_tokens": "True tokens",
    "true_stage1": "True stage 1",
    "brain": "Brain",
    "recalibrated": "Brain, other calibration",
    "mean": "Mean of training",
    "null": "Shuffled pairs",
    "random": "Random responses",
}
SEVERITY_TITLES = {"broken": "broken", "limit": "limiting", "ok": "sound", "unknown": "not judged"}
#: Metrics of the ladder that are drawn; the table has all.
_DRAWN = ("identification", "pixcorr")
_IDENTIFICATION = MetricLabel(
    "identification",
    "Identification",
    "How often an image is more similar to its own stimulus than to another, averaged over the evaluation "
    "networks. Chance is one half.",
    percent=True,
    low=0.4,
    high=1.0,
    chance=0.5,
)


def ladder_plots(evidence: Evidence) -> tuple[MetricPlot, ...]:
    """Draw identification and pixel correlation, one lane per rung, one plot per stage."""
    plots = []
    for metric in _DRAWN:
        rows = [r for r in evidence.ladder if r.metric == metric and math.isfinite(r.value.mean)]
        if not rows:
            continue
        label = ladder_label(metric)
        axis = axis_for(label, [r.value.mean for r in rows])
        # Every rung has a lane in both plots, so that lanes of a rung are level with each other.
        names = sorted({r.rung for r in rows}, key=RUNGS.index)
        for stage in ("stage1", "stage2"):
            of_stage = {r.rung: r for r in rows if r.stage == stage}
            if of_stage:
                lanes = tuple(_lane(label, axis, of_stage.get(name), RUNG_TITLES[name]) for name in names)
                plots.append(MetricPlot(label, STAGE_TITLES[stage], lanes, axis.ticks(label)))
    return tuple(plots)


def ladder_label(metric: str) -> MetricLabel:
    """Label of a metric of the ladder."""
    return _IDENTIFICATION if metric == "identification" else metric_label(metric)


def _lane(label: MetricLabel, axis: Axis, row: LadderRow | None, title: str) -> Lane:
    if row is None:
        return Lane(title, "–", "", (), None, None, f"{title}: does not have this stage.")
    value, kind = row.value, row.rung if row.rung in ("brain", "null", "oracle") else "other"
    text, interval = format_value(label, value.mean), format_interval(label, value.low, value.high)
    mark = Mark(kind, axis.place(value.mean), *axis.ends(value.low, value.high), f"{title} {text}")
    described = f"{label.title}, {title}: {text}" + (f" ({interval})." if interval else ".")
    chance = axis.place(0.5) if label is _IDENTIFICATION else None
    return Lane(title, text, share_text(row.share), (mark,), chance, None, described)


def share_text(share: Value | None, *, interval: bool = False) -> str:
    """Write a share of the range between null and oracle, with its interval on request."""
    if share is None:
        return ""
    text = f"{round(100 * share.mean)}% of range"
    # Null and oracle are 0 and 1 in every resample.
    if interval and share.low is not None and share.high is not None and share.low < share.high:
        text += f" ({round(100 * share.low)} to {round(100 * share.high)})"
    return text.replace("-", "−")


def ladder_table(evidence: Evidence) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Give every metric as rows: metric, stage, and (value, share) of each rung."""
    table: dict[tuple[str, str], dict[str, LadderRow]] = {}
    for row in evidence.ladder:
        table.setdefault((row.metric, row.stage), {})[row.rung] = row
    present = rungs(evidence)
    rows = []
    for (metric, stage), cells in table.items():
        label = ladder_label(metric)
        values = [
            (format_value(label, cells[r].value.mean), share_text(cells[r].share, interval=True))
            if r in cells
            else ("–", "")
            for r in present
        ]
        rows.append((label.title, STAGE_TITLES[stage], values))
    return rows


def rungs(evidence: Evidence) -> list[str]:
    """List the rungs that were computed, in their order."""
    present = {row.rung for row in evidence.ladder}
    return [r for r in RUNGS if r in present]


def training_sentences(evidence: Evidence) -> tuple[str, ...]:
    """Describe how much of the scores training images and clusters could explain."""
    found = evidence.spuriousness
    if found is None:
        return ()
    sentences = [
        f"In {found.space}, a test image's most similar training image has a cosine of "
        f"{_mean(found.nearest_train)} on average; reconstructions have {_mean(found.own)} with their own "
        f"stimulus, and {_mean(found.closest_train)} with the training image nearest to them.",
        f"{_share(found.closer_to_training)} of the {len(found.own)} reconstructions are closer to a "
        "training image than to their own stimulus.",
    ]
    if found.within_cluster is not None and found.between_cluster is not None:
        few = ""
        if found.n_clusters < found.n_wanted:
            few = f" ({found.n_wanted} were requested, but there are no more distinct captions)"
        sentences.append(
            f"Stimuli form {found.n_clusters} clusters by their captions{few}. Among stimuli of other "
            f"clusters, reconstructions are identified {_share(found.between_cluster)} of the time; among "
            f"those of the same cluster, {_share(found.within_cluster)} ({found.n_within} images). A decoder "
            "that relied on the cluster alone would score 50% within clusters."
        )
    return tuple(sentences)


def trial_rows(evidence: Evidence) -> tuple[list[str], list[tuple[str, list[str], str]]]:
    """Give the check of trial order as a table: the shifts, and each session's correlations."""
    orders = [t for t in evidence.trial_order if t.n_trials]
    if not orders:
        return [], []
    lags = [f"{lag:+d}".replace("-", "−") if lag else "0" for lag in orders[0].lags]
    return lags, [
        (f"ses-{t.session}", [_signed(v) for v in t.correlation.tolist()], str(t.n_trials)) for t in orders
    ]


def _signed(value: float) -> str:
    text = f"{value:.3f}"
    return "0.000" if text == "-0.000" else text.replace("-", "−")


def _share(value: Value) -> str:
    text = f"{100 * value.mean:.0f}%"
    if value.low is not None and value.high is not None:
        text += f" ({100 * value.low:.0f} to {100 * value.high:.0f})"
    return text


def _mean(values: Iterable[float]) -> str:
    known = [float(v) for v in values if math.isfinite(v)]
    return f"{sum(known) / len(known):.2f}".replace("-", "−") if known else "–"
