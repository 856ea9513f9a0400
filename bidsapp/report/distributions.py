"""How the quality of predictions is spread over a target's dimensions, as histograms in the page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bidsapp.evidence import Evidence, TargetQuality
from bidsapp.records import TARGET_TITLES

_BINS = 60
#: Height of the drawing in its own units; its width is 100.
_TALL = 40.0

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Histogram:
    """A histogram as points of an SVG polygon (100 wide, 40 high).

    ``ceiling`` is the outline of the noise ceiling's, "" where there is none; ``zero`` is the place of 0,
    "" where it is outside; ``ends`` say which values the left and the right end stand for.
    """

    title: str
    what: str
    points: str
    ceiling: str
    zero: str
    ends: tuple[str, str]
    text: str


def histograms(evidence: Evidence) -> tuple[Histogram, ...]:
    """Draw correlation (with its ceiling) and R2 over the dimensions of each target."""
    found = [h for t in evidence.targets for h in (_correlation(t), _explained(t)) if h is not None]
    return tuple(found)


def _correlation(target: TargetQuality) -> Histogram | None:
    ceiling = None if target.ceiling is None else _known(target.ceiling)
    return _draw(f"{_title(target)}: correlation", _known(target.r), ceiling, -1.0)


def _explained(target: TargetQuality) -> Histogram | None:
    return _draw(f"{_title(target)}: R²", _known(target.r2), None, None)


def _draw(title: str, values: Vector, ceiling: Vector | None, least: float | None) -> Histogram | None:
    """Draw values between their 0.5 % and 99.5 % quantiles, widened to tenths; None without any."""
    if not values.size:
        return None
    both = values if ceiling is None or not ceiling.size else np.concatenate([values, ceiling])
    low, high = (float(q) for q in np.quantile(both, [0.005, 0.995]))
    low, high = np.floor(10 * min(low, 0.0)) / 10, np.ceil(10 * max(high, 0.1)) / 10
    low = float(low if least is None else max(low, least))
    edges = np.linspace(low, float(high), _BINS + 1)
    counts = _counts(values, edges)
    line = ""
    tallest = counts.max()
    if ceiling is not None and ceiling.size:
        outline = _counts(ceiling, edges)
        tallest = max(tallest, outline.max())
        line = _outline(outline, tallest)
    middle = [_number(v) for v in np.quantile(values, [0.025, 0.5, 0.975])]
    said = f"median {middle[1]}, middle 95\N{NO-BREAK SPACE}% of dimensions {middle[0]} to {middle[2]}"
    if line and ceiling is not None:
        said += f"; dashed: the ceiling, median {_number(float(np.median(ceiling)))}"
    zero = f"{-low / (high - low) * 100:.2f}" if low < 0 < high else ""
    points = f"0,{_TALL:g} {_outline(counts, tallest)} 100,{_TALL:g}"
    ends = (_number(low, 1), _number(float(high), 1))
    return Histogram(title, f"{said[:1].upper()}{said[1:]}.", points, line, zero, ends, f"{title}: {said}.")


def _counts(values: Vector, edges: Vector) -> Vector:
    """Share of the values in each bin; those outside stand in the first and the last."""
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return np.asarray(counts / values.size)


def _outline(counts: Vector, tallest: float) -> str:
    step = 100 / len(counts)
    heights = _TALL - counts / tallest * _TALL
    return " ".join(
        f"{i * step:.2f},{y:.2f} {(i + 1) * step:.2f},{y:.2f}" for i, y in enumerate(heights.tolist())
    )


def _known(values: npt.NDArray[np.float64]) -> Vector:
    x = np.asarray(values, dtype=np.float64)
    return x[np.isfinite(x)]


def _number(value: float, decimals: int = 2) -> str:
    return f"{value:.{decimals}f}".replace("-", "−")


def _title(target: TargetQuality) -> str:
    return TARGET_TITLES.get(target.target, target.target)
