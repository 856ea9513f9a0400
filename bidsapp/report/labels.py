"""Names of the metrics in reports, their range and their direction."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class MetricLabel:
    """How to show one metric.

    Attributes
    ----------
    key, title, description : str
        Name in the tables, name in the reports, and one sentence on what it measures.
    low, high : float
        Range of the axis, which grows where values are outside.
    chance : float or None
        Chance level where it does not depend on the data.
    percent : bool
        Shown in percent.
    levels : tuple of float
        Smallest and largest possible value.
    """

    key: str
    title: str
    description: str
    low: float = 0.0
    high: float = 1.0
    chance: float | None = None
    percent: bool = False
    higher_is_better: bool = True
    levels: tuple[float, float] = (0.0, 1.0)


_TWO_WAY = (
    "How often the reconstruction is more similar to its own stimulus than to the stimulus of another test "
    "image, on the features of {net}."
)
_TOP1 = (
    "How often a reconstruction's own stimulus is the most similar of all test images, on the features of "
    "{net}."
)
_DISTANCE = (
    "Mean correlation distance of stimulus and reconstruction on the features of {net}; lower is better."
)

_LABELS = {
    label.key: label
    for label in (
        MetricLabel(
            "pixcorr",
            "Pixel correlation",
            "Pearson correlation of the stimulus and the reconstruction over all pixels and colours.",
            levels=(-1.0, 1.0),
        ),
        MetricLabel(
            "ssim",
            "SSIM",
            "Structural similarity of the grey-scale stimulus and reconstruction.",
            levels=(-1.0, 1.0),
        ),
        MetricLabel(
            "ssim_columnwise",
            "SSIM, column-wise",
            "One-dimensional SSIM averaged over columns, as in some published values; higher than SSIM.",
            levels=(-1.0, 1.0),
        ),
    )
}

_NETWORKS = {
    "clip": "CLIP",
    "small_clip": "small CLIP",
    "alexnet2": "AlexNet(2)",
    "alexnet5": "AlexNet(5)",
    "inception": "Inception v3",
    "effnet": "EfficientNet-B1",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "swav": "SwAV ResNet-50",
}

STAGE_TITLES = {"stage1": "Stage 1", "stage2": "Stage 2"}
CONDITION_TITLES = {"brain": "Brain", "null": "Null (shuffled)", "oracle": "Oracle"}


def network_title(name: str) -> str:
    """Display name of a network; unknown ones with blanks for underscores."""
    return _NETWORKS.get(name, name.replace("_", " "))


def depends_on_n_images(key: str) -> bool:
    """Whether scores of a metric are comparable only among the same number of images."""
    return key.startswith("top1_")


def metric_label(key: str) -> MetricLabel:
    """Label of any metric."""
    if key in _LABELS:
        return _LABELS[key]
    kind = next((k for k in ("two_way_", "top1_", "distance_") if key.startswith(k)), "")
    net = network_title(key.removeprefix(kind))
    if kind == "two_way_":
        title = f"Two-way identification, {net}"
        return MetricLabel(key, title, _TWO_WAY.format(net=net), chance=0.5, percent=True)
    if kind == "top1_":
        return MetricLabel(key, f"Top-1 retrieval, {net}", _TOP1.format(net=net), percent=True)
    if kind == "distance_":
        text = _DISTANCE.format(net=net)
        return MetricLabel(key, f"Distance, {net}", text, higher_is_better=False, levels=(0.0, 2.0))
    return MetricLabel(key, key.replace("_", " "), "", levels=(-math.inf, math.inf))


def is_two_way(key: str) -> bool:
    """Whether the metric is a two-way identification score."""
    return key.startswith("two_way_")


def format_value(label: MetricLabel, value: float | None) -> str:
    """Return a value as text: ``87.4%`` or ``0.412``; a dash for what is missing."""
    if value is None or math.isnan(value):
        return "–"
    return (f"{100 * value:.1f}%" if label.percent else f"{value:.3f}").replace("-", "−")


def format_interval(label: MetricLabel, low: float | None, high: float | None) -> str:
    """Return an interval as text, ``84.0 to 90.2``; empty where there is none."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    text = f"{100 * low:.1f} to {100 * high:.1f}" if label.percent else f"{low:.3f} to {high:.3f}"
    return text.replace("-", "−")


def format_cell(
    label: MetricLabel, value: float | None, low: float | None = None, high: float | None = None
) -> tuple[str, str]:
    """Return a value and its interval as the two texts of a table's cell."""
    return format_value(label, value), format_interval(label, low, high)


def primary_metric(metrics: tuple[str, ...]) -> str | None:
    """Metric of a one-line summary: two-way identification with CLIP, or another network, or the first."""
    two_way = [m for m in metrics if is_two_way(m)]
    clip = [m for m in two_way if "clip" in m]
    return next(iter((*clip, *two_way, *metrics)), None)
