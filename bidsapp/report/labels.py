"""The metrics' names as people read them, their range and their direction."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class MetricLabel:
    """How to show one metric.

    Attributes
    ----------
    key : str
        Name in the tables.
    title : str
        Name in the reports.
    description : str
        One sentence on what it measures.
    low, high : float
        Range of the axis; values may lie outside (the axis then grows).
    chance : float or None
        Chance level where it does not depend on the data.
    percent : bool
        Shown as per cent.
    higher_is_better : bool
    levels : tuple of float
        Least and greatest value that the metric can take.
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
    "How often the reconstruction resembles its own stimulus more than another test image's stimulus, "
    "compared on the features of {net}."
)
_TOP1 = (
    "How often the stimulus, of all test images, is the one most like its reconstruction on the "
    "features of {net}."
)
_DISTANCE = (
    "Mean correlation distance of stimulus and reconstruction on the features of {net}; lower is better."
)
_PIXCORR = "Pearson correlation of the stimulus and the reconstruction over all pixels and colours."
_SSIM = "Structural similarity of the grey-scale stimulus and reconstruction."

_LABELS = {
    label.key: label
    for label in (
        MetricLabel("pixcorr", "Pixel correlation", _PIXCORR, levels=(-1.0, 1.0)),
        MetricLabel("ssim", "SSIM", _SSIM, levels=(-1.0, 1.0)),
        MetricLabel(
            "ssim_columnwise",
            "SSIM, column-wise",
            "The one-dimensional SSIM averaged over columns, as some published values are; above SSIM.",
            levels=(-1.0, 1.0),
        ),
    )
}

_NETWORKS = {
    "clip": "CLIP",
    "small_clip": "small CLIP",
    "smallclip": "small CLIP",
    "embedded_clip": "small CLIP",
    "alexnet2": "AlexNet(2)",
    "alexnet5": "AlexNet(5)",
    "alexnet_2": "AlexNet(2)",
    "alexnet_5": "AlexNet(5)",
    "inception": "Inception v3",
    "efficientnet": "EfficientNet",
    "efficientnet_b1": "EfficientNet-B1",
    "effnet_b": "EfficientNet-B1",
    "effnet": "EfficientNet-B1",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "effnet_lite0": "EfficientNet-Lite0",
    "swav": "SwAV ResNet-50",
}
#: Networks whose bare name is a two-way score in the published protocols, and those that are distances.
_BARE_TWO_WAY = {"clip", "alexnet2", "alexnet5", "inception"}
_BARE_DISTANCE = {"effnet", "effnet_b", "efficientnet_b1", "swav"}

STAGE_TITLES = {"stage1": "Stage 1", "stage2": "Stage 2"}
CONDITION_TITLES = {"brain": "Brain", "null": "Null (shuffled)", "oracle": "Oracle"}


def network_title(name: str) -> str:
    """Name of a network as people write it; unknown ones with blanks for underscores."""
    return _NETWORKS.get(name.lower(), name.replace("_", " "))


def needs_as_many(key: str) -> bool:
    """Whether scores of a metric can be set side by side only where as many images were told apart."""
    return key.startswith("top1_")


def metric_label(key: str) -> MetricLabel:
    """How to show the metric ``key``; any name gives an answer."""
    if key in _LABELS:
        return _LABELS[key]
    for prefix in ("two_way_", "twoway_"):
        if key.startswith(prefix):
            return _two_way(key, key.removeprefix(prefix))
    if key.startswith("top1_"):
        net = network_title(key.removeprefix("top1_"))
        return MetricLabel(key, f"Top-1 retrieval, {net}", _TOP1.format(net=net), percent=True)
    if key in _BARE_TWO_WAY:
        return _two_way(key, key)
    if key in _BARE_DISTANCE or key.startswith("distance_"):
        net = network_title(key.removeprefix("distance_"))
        return MetricLabel(
            key, f"Distance, {net}", _DISTANCE.format(net=net), higher_is_better=False, levels=(0.0, 2.0)
        )
    anything = (float("-inf"), float("inf"))
    return MetricLabel(key, key.replace("_", " "), "", levels=anything)


def _two_way(key: str, network: str) -> MetricLabel:
    net = network_title(network)
    title = f"Two-way identification, {net}"
    return MetricLabel(key, title, _TWO_WAY.format(net=net), chance=0.5, percent=True)


def is_two_way(key: str) -> bool:
    """Whether the metric is a two-way identification score."""
    return key.startswith(("two_way_", "twoway_")) or key in _BARE_TWO_WAY


def format_value(label: MetricLabel, value: float | None) -> str:
    """Return a value as text: ``87.4 %`` or ``0.412``; a dash for what is missing."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{100 * value:.1f}\N{NO-BREAK SPACE}%" if label.percent else f"{value:.3f}"
    return text.replace("-", "−")


def format_interval(label: MetricLabel, low: float | None, high: float | None) -> str:
    """Return an interval as text, ``84.0 to 90.2``; empty where there is none."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    if label.percent:
        return f"{100 * low:.1f} to {100 * high:.1f}".replace("-", "−")
    return f"{low:.3f} to {high:.3f}".replace("-", "−")


def primary_metric(metrics: tuple[str, ...]) -> str | None:
    """Return the metric that a one-line summary speaks of.

    Two-way identification with CLIP, or with another network, or the first metric there is.
    """
    two_way = [m for m in metrics if is_two_way(m)]
    clip = [m for m in two_way if "clip" in m.lower()]
    return next(iter((*clip, *two_way, *metrics)), None)
