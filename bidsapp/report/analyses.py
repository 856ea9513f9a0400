"""Optional analyses, prepared for the page: cluster holdout, generator seeds, single regions."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bidsapp.evidence import Evidence, HoldoutScores, RegionScore, SeedSpread, Value
from bidsapp.records import TARGET_TITLES
from bidsapp.report.labels import (
    STAGE_TITLES,
    MetricLabel,
    format_cell,
    format_interval,
    format_value,
    is_two_way,
    metric_label,
    primary_metric,
)
from bidsapp.report.plots import Axis, Lane, Mark, MetricPlot, axis_for

_TRAINED_ON = {
    "all": "All training images",
    "other_clusters": "Own cluster left out",
    "random_rest": "As many others left out",
}
_TEXTS = tomllib.loads((Path(__file__).parent / "analyses.toml").read_text(encoding="utf-8"))
#: Two-sided 95% quantile of the normal distribution.
_Z95 = 1.959964


@dataclass(frozen=True)
class Panel:
    """One analysis: results in words, plots and a table, the method and its sources.

    ``legend`` has the kind of each mark and its meaning; ``rows`` the value and interval of every cell: the
    first ``n_words`` are words; ``sources`` has text and address.
    """

    key: str
    title: str
    sentences: tuple[str, ...]
    legend: Sequence[Sequence[str]]
    plots: tuple[MetricPlot, ...]
    caption: str
    header: Sequence[str]
    rows: tuple[tuple[tuple[str, str], ...], ...]
    n_words: int
    method: str
    sources: Sequence[Sequence[str]]


def panels(evidence: Evidence) -> tuple[Panel, ...]:
    """Give a panel for each analysis that was requested and gave results."""
    regions = evidence.roi_analysis.scores if evidence.roi_analysis else ()
    found = (
        _holdout(evidence.cluster_holdout) if evidence.cluster_holdout else None,
        _seeds(evidence.generator_seeds) if evidence.generator_seeds else None,
        _regions(regions) if regions else None,
    )
    return tuple(panel for panel in found if panel is not None)


def _holdout(scores: Sequence[HoldoutScores]) -> Panel:
    by = {(s.target, s.trained_on): s for s in scores}
    plots: list[MetricPlot] = []
    points: list[str] = []
    sentence = ""
    for target in dict.fromkeys(s.target for s in scores):
        label = _identification(f"by the predicted {_title(target)}")
        here = {key: by[target, key] for key in _TRAINED_ON if (target, key) in by}
        axis = axis_for(label, [s.two_way.mean for s in here.values()])
        lanes = tuple(_lane(label, axis, _TRAINED_ON[key], s.two_way) for key, s in here.items())
        plots.append(MetricPlot(label, "", lanes, axis.ticks(label)))
        if {"other_clusters", "random_rest"} <= here.keys():
            without, fewer = (here[key].two_way.mean for key in ("other_clusters", "random_rest"))
            gain = f"{100 * (fewer - without):.1f}".replace("-", "−")
            if sentence:
                points.append(f"{_title(target)} {gain}")
            else:
                sentence = (
                    f"By the predicted {_title(target)}, they are identified {_percent(without)} of the time "
                    f"without the training images of their own cluster, {_percent(fewer)} without as many "
                    f"others: knowing the cluster adds {gain} percentage points"
                )
    if sentence:
        sentence += f" ({', '.join(points)})." if points else "."
    first, left = scores[0], max(s.left_out for s in scores)
    sentences = (
        f"Could the decoder rely on image category alone? Each of the {first.n_images} test images was "
        "predicted again by a ridge regression without the training images of its own cluster: "
        f"{left:,.0f} training images fewer on average. {first.n_clusters} clusters contain test images.",
        sentence,
    )
    percent = _identification("")
    rows = tuple(
        (
            (_title(s.target), ""),
            (_TRAINED_ON.get(s.trained_on, s.trained_on), ""),
            *(_cell(percent, v) for v in (s.two_way, s.within, s.between)),
        )
        for s in scores
    )
    return _panel("holdout", sentences, plots, rows)


def _seeds(spreads: Sequence[SeedSpread]) -> Panel:
    metrics = tuple(dict.fromkeys(s.metric for s in spreads))
    n_seeds, n_images = spreads[0].n_seeds, spreads[0].n_images
    main = primary_metric(metrics)
    plots = []
    for metric in [m for m in dict.fromkeys((main, "pixcorr")) if m in metrics]:
        label = metric_label(str(metric))
        here = [s for s in spreads if s.metric == metric]
        axis = axis_for(label, [s.value.mean for s in here])
        lanes = []
        for s in here:
            half = _Z95 * s.of_mean
            band = (s.value.mean - half, s.value.mean + half)
            lanes.append(_lane(label, axis, STAGE_TITLES.get(s.stage, s.stage), s.value, band))
        plots.append(MetricPlot(label, "", tuple(lanes), axis.ticks(label)))
    last = [s for s in spreads if s.metric == main][-1]
    label = metric_label(last.metric)
    spread = (
        f"{100 * last.of_mean:.1f} percentage points" if is_two_way(last.metric) else f"{last.of_mean:.3f}"
    )
    sentence = (
        f"How much do scores depend on the random seed? The ladder's {n_images} images were generated from "
        f"the same predictions with {n_seeds} seeds. Between seeds, the mean {_in_line(label.title)} of "
        f"{STAGE_TITLES.get(last.stage, last.stage).lower()} varies by {spread} (standard deviation)"
    )
    if last.value.low is not None and last.value.high is not None:
        sentence += f"; its 95% interval over images is {format_interval(label, *_ends(last.value))}"
        half = (last.value.high - last.value.low) / 2
        sentence += (
            ". Another seed would hardly change the conclusions"
            if _Z95 * last.of_mean < half / 2
            else ". This is not negligible: small differences between runs of one seed each have no meaning"
        )
    rows = tuple(
        (
            (metric_label(s.metric).title, ""),
            (STAGE_TITLES.get(s.stage, s.stage), ""),
            _cell(metric_label(s.metric), s.value),
            (format_value(metric_label(s.metric), s.between_seeds), ""),
            (format_value(metric_label(s.metric), s.of_mean), ""),
        )
        for s in spreads
    )
    return _panel("seeds", (f"{sentence}.",), plots, rows, n_seeds=n_seeds)


def _regions(scores: Sequence[RegionScore]) -> Panel:
    plots, best_of = [], []
    for target in dict.fromkeys(s.target for s in scores):
        label = _identification(f"by {_title(target)} predicted from one region alone, or without it")
        here = [s for s in scores if s.target == target]
        by = {(s.region, s.analysis): s for s in here}
        axis = axis_for(label, [v for s in here for v in (s.two_way.mean, s.whole)])
        lanes = [_lane(label, axis, "All voxels", Value(here[0].whole), kind="oracle")]
        for region in dict.fromkeys(s.region for s in here):
            keep, lesion = (by.get((region, key)) for key in ("keep", "lesion"))
            if keep is None:
                continue
            lane = _lane(label, axis, region, keep.two_way, _ends(keep.null))
            if lesion is not None:
                text = f"without {region} {_percent(lesion.two_way.mean)}"
                mark = Mark("null", axis.place(lesion.two_way.mean), None, None, text)
                described = f"{lane.text.removesuffix('.')}; {text}."
                lane = replace(lane, marks=(mark, *lane.marks), text=described)
            lanes.append(lane)
        plots.append(MetricPlot(label, "", tuple(lanes), axis.ticks(label)))
        best = max((s for s in here if s.analysis == "keep"), key=lambda s: s.two_way.mean)
        best_of.append(
            f"{_title(target)}: {best.region} alone scores highest, {_percent(best.two_way.mean)} "
            f"(all voxels: {_percent(best.whole)})."
        )
    percent = _identification("")
    titles = {"keep": "Region alone", "lesion": "Region left out"}
    sentence = (
        "How much information does each region carry? Test images were identified by targets predicted from "
        "the region alone (all other voxels at their training mean), and from all other voxels."
    )
    rows = tuple(
        (
            (s.region, ""),
            (_title(s.target), ""),
            (titles.get(s.analysis, s.analysis), ""),
            (f"{s.n_voxels:,}", ""),
            _cell(percent, s.two_way),
            _cell(percent, s.null),
            (f"{s.p:.2g}", ""),
        )
        for s in scores
    )
    return _panel("regions", (" ".join([sentence, *best_of]),), plots, rows, n_sets=scores[0].n_sets)


def _panel(
    key: str,
    sentences: tuple[str, ...],
    plots: Sequence[MetricPlot],
    rows: tuple[tuple[tuple[str, str], ...], ...],
    **numbers: int,
) -> Panel:
    """Combine results with the texts of ``analyses.toml``."""
    texts = _TEXTS[key] | {name: _TEXTS[key][name].format(**numbers) for name in ("caption", "method")}
    return Panel(key=key, sentences=sentences, plots=tuple(plots), rows=rows, **texts)


def _lane(
    label: MetricLabel,
    axis: Axis,
    title: str,
    value: Value,
    band: tuple[float, float] | None = None,
    kind: str = "brain",
) -> Lane:
    """Draw one value with its interval, on a band if there is one."""
    text, interval = format_value(label, value.mean), format_interval(label, value.low, value.high)
    marks = (Mark(kind, axis.place(value.mean), *axis.ends(value.low, value.high), f"{title} {text}"),)
    place = None
    described = f"{label.title}, {title}: {text}" + (f" ({interval})" if interval else "")
    if band is not None and all(math.isfinite(v) for v in band):
        place = axis.band(*band, least=0.4)
        described += f"; band {format_interval(label, *band)}"
    chance = None if label.chance is None else axis.place(label.chance)
    shown = marks if math.isfinite(value.mean) else ()
    return Lane(title, text, interval, shown, chance, place, f"{described}.")


def _ends(value: Value) -> tuple[float, float]:
    return tuple(math.nan if v is None else v for v in (value.low, value.high))  # type: ignore[return-value]


def _cell(label: MetricLabel, value: Value) -> tuple[str, str]:
    return format_cell(label, value.mean, value.low, value.high)


def _identification(how: str) -> MetricLabel:
    what = f"How often a test image is identified among two {how}." if how else ""
    title = how.removeprefix("by ").removeprefix("the predicted ").partition(" predicted")[0]
    return MetricLabel("two_way", title[:1].upper() + title[1:], what, low=0.4, chance=0.5, percent=True)


def _title(target: str) -> str:
    return TARGET_TITLES.get(target, target)


def _in_line(title: str) -> str:
    """Give a metric's title within a sentence: ``two-way identification (CLIP)``."""
    name, _, network = title.partition(", ")
    name = name[:1].lower() + name[1:] if name[1:2].islower() else name
    return f"{name} ({network})" if network else name


def _percent(value: float) -> str:
    return f"{100 * value:.0f}%"
