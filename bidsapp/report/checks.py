"""What a run found out about itself, ready for the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bidsapp.evidence import RUNGS, Evidence, LadderRow, TargetQuality, Value
from bidsapp.records import TARGET_TITLES
from bidsapp.report.labels import STAGE_TITLES, MetricLabel, format_interval, format_value, metric_label
from bidsapp.report.plots import Axis, Lane, Mark, MetricPlot, axis_for

RUNG_TITLES = {
    "truth": "Stimuli themselves",
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
SEVERITY_TITLES = {"broken": "broken", "limit": "limit", "ok": "sound", "unknown": "not judged"}
#: Metrics that the ladder is drawn for, if they are there; all are in the table.
_DRAWN = ("identification", "pixcorr")
_IDENTIFICATION = MetricLabel(
    "identification",
    "Identification",
    "How often a picture is more like its own stimulus than like another, averaged over the networks that "
    "judge. Luck is a half.",
    percent=True,
    low=0.4,
    high=1.0,
)
#: Height of a curve's drawing, in its own units; its width is 100.
_TALL = 40.0


@dataclass(frozen=True)
class Curve:
    """Correlation along the parts of a target, as points of an SVG line (100 wide, 40 high).

    ``ceiling`` is "" where repeats allow none; ``ticks`` are the values drawn as lines, with their heights;
    ``ends`` name the first and the last part.
    """

    title: str
    parts: str
    points: str
    ceiling: str
    ticks: tuple[tuple[str, str], ...]
    text: str
    ends: tuple[str, str]


@dataclass(frozen=True)
class Finding:
    """A sentence on a stage, and what kind it is."""

    severity: str
    title: str
    stage: str
    sentence: str


def findings(evidence: Evidence) -> tuple[Finding, ...]:
    """Give the findings in the pipeline's order."""
    return tuple(
        Finding(f.severity, SEVERITY_TITLES[f.severity], f.stage[:1].upper() + f.stage[1:], f.sentence)
        for f in evidence.findings
    )


def ladder_plots(evidence: Evidence) -> tuple[MetricPlot, ...]:
    """Draw identification and pixel correlation, a lane a rung and stage."""
    plots = []
    for metric in _DRAWN:
        rows = [r for r in evidence.ladder if r.metric == metric and math.isfinite(r.value.mean)]
        if not rows:
            continue
        label = ladder_label(metric)
        axis = axis_for(label, [r.value.mean for r in rows])
        # Every rung has its lane in both stages, so that the two stand side by side at one height.
        names = sorted({r.rung for r in rows}, key=RUNGS.index)
        for stage in ("stage1", "stage2"):
            of_stage = {r.rung: r for r in rows if r.stage == stage}
            if of_stage:
                lanes = (_lane(label, axis, of_stage[n]) if n in of_stage else _no_lane(n) for n in names)
                plots.append(MetricPlot(label, STAGE_TITLES[stage], tuple(lanes), axis.ticks(label)))
    return tuple(plots)


def _no_lane(rung: str) -> Lane:
    """Make the lane of a rung that has no picture of this stage."""
    title = RUNG_TITLES[rung]
    return Lane(title, "–", "", (), None, None, f"{title}: makes no picture of this stage.")


def ladder_label(metric: str) -> MetricLabel:
    """Name a metric of the ladder."""
    return _IDENTIFICATION if metric == "identification" else metric_label(metric)


def _lane(label: MetricLabel, axis: Axis, row: LadderRow) -> Lane:
    value, kind = row.value, row.rung if row.rung in ("brain", "null", "oracle") else "other"
    text = format_value(label, value.mean)
    interval = format_interval(label, value.low, value.high)
    ends = [None if v is None else axis.place(v) for v in (value.low, value.high)]
    mark = Mark(kind, axis.place(value.mean), ends[0], ends[1], f"{RUNG_TITLES[row.rung]} {text}")
    said = f"{label.title}, {RUNG_TITLES[row.rung]}: {text}" + (f" ({interval})" if interval else "")
    share = share_text(row.share)
    chance = axis.place(0.5) if label is _IDENTIFICATION else None
    return Lane(RUNG_TITLES[row.rung], text, share, (mark,), chance, None, said + ".")


def share_text(share: Value | None, *, interval: bool = False) -> str:
    """Word a share of the way from luck to the oracle, with its interval where asked for."""
    if share is None:
        return ""
    text = f"{round(100 * share.mean)}\N{NO-BREAK SPACE}% of the way"
    # By definition 0 and 1 in every resample.
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
    """Name the rungs that there are, in their order."""
    there = {row.rung for row in evidence.ladder}
    return [r for r in RUNGS if r in there]


def curves(evidence: Evidence) -> tuple[Curve, ...]:
    """Draw the correlation of each target's parts, in their order, with the noise ceiling."""
    return tuple(_curve(t) for t in evidence.targets if len(t.groups) > 1)


def _curve(target: TargetQuality) -> Curve:
    means = [g.r.mean for g in target.groups]
    ceilings = [g.ceiling.mean if g.ceiling else math.nan for g in target.groups]
    finite = [v for v in (*means, *ceilings) if math.isfinite(v)]
    high = max(0.1, math.ceil(10 * max(finite, default=1.0)) / 10)
    low = min(0.0, math.floor(10 * min(finite, default=0.0)) / 10)
    kind = "layer" if target.target == "vdvae" else "token"
    best = max(range(len(means)), key=lambda i: means[i] if math.isfinite(means[i]) else -math.inf)
    title = TARGET_TITLES.get(target.target, target.target)
    text = (
        f"{title}: correlation by {kind}, from {means[0]:.2f} in the first to {means[-1]:.2f} in the last; "
    )
    text += f"highest, {means[best]:.2f}, in {target.groups[best].name}."
    ticks = tuple((f"{v:g}".replace("-", "−"), f"{_height(v, low, high):.2f}") for v in (low, high))
    ends = (f"{kind} 1", f"{kind} {len(means)}")
    parts = f"{kind}s 1 to {len(means)}"
    return Curve(title, parts, _points(means, low, high), _points(ceilings, low, high), ticks, text, ends)


def _height(value: float, low: float, high: float) -> float:
    return _TALL - (value - low) / (high - low) * _TALL


def _points(values: Sequence[float], low: float, high: float) -> str:
    step = 100 / max(1, len(values) - 1)
    places = [(i * step, _height(v, low, high)) for i, v in enumerate(values) if math.isfinite(v)]
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in places)


def target_rows(evidence: Evidence) -> list[tuple[str, ...]]:
    """Give each target's identification before any picture, in words of a table."""
    rows: list[tuple[str, ...]] = []
    for t in evidence.targets:
        ceiling = "–"
        if t.ceiling is not None:
            known = [v for v in t.ceiling.tolist() if math.isfinite(v)]
            ceiling = f"{sum(known) / len(known):.2f}" if known else "–"
        among = "–" if t.among_training is None else f"{100 * t.among_training.mean:.0f}\N{NO-BREAK SPACE}%"
        rank = "–" if t.median_rank is None else f"{t.median_rank:g} of {t.n_training + 1}"
        rows.append(
            (
                TARGET_TITLES.get(t.target, t.target),
                _mean(t.r.tolist()),
                ceiling,
                _median(t.r2.tolist()),
                f"{100 * t.two_way.mean:.0f}\N{NO-BREAK SPACE}%",
                f"{t.two_way_p:.2g}",
                f"{100 * t.top1.mean:.0f}\N{NO-BREAK SPACE}%",
                among,
                rank,
            )
        )
    return rows


def training_sentences(evidence: Evidence) -> tuple[str, ...]:
    """Say what of the scores training images and clusters could explain."""
    found = evidence.spuriousness
    if found is None:
        return ()
    n = len(found.own)
    said = [
        f"In {found.space}, a test image's most similar training image has a cosine of "
        f"{_mean(found.nearest_train.tolist())} on average; reconstructions have "
        f"{_mean(found.own.tolist())} with their own stimulus, and "
        f"{_mean(found.closest_train.tolist())} with the training image that is nearest to them.",
        f"{_share(found.closer_to_training)} of the {n} reconstructions are closer to a training image than "
        "to their own stimulus.",
    ]
    if found.within_cluster is not None and found.between_cluster is not None:
        few = ""
        if found.n_clusters < found.n_wanted:
            few = f" ({found.n_wanted} were asked for, but there are no more different captions)"
        said.append(
            f"Stimuli fall into {found.n_clusters} clusters by their captions{few}. Among stimuli of other "
            f"clusters, reconstructions are identified {_share(found.between_cluster)} of the time; among "
            f"those of their own cluster, {_share(found.within_cluster)} ({found.n_within} images). A "
            "decoder that knew nothing but the cluster would stay at half there."
        )
    return tuple(said)


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
    text = f"{100 * value.mean:.0f}\N{NO-BREAK SPACE}%"
    if value.low is not None and value.high is not None:
        text += f" ({100 * value.low:.0f} to {100 * value.high:.0f})"
    return text


def _mean(values: Iterable[float]) -> str:
    known = [v for v in values if math.isfinite(v)]
    return f"{sum(known) / len(known):.2f}".replace("-", "−") if known else "–"


def _median(values: Iterable[float]) -> str:
    known = sorted(v for v in values if math.isfinite(v))
    if not known:
        return "–"
    middle = len(known) // 2
    value = known[middle] if len(known) % 2 else (known[middle - 1] + known[middle]) / 2
    return f"{value:.2f}".replace("-", "−")
