"""Slices through the voxels that were decoded, in three directions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bidsapp.storage.atomic import atomic_path
from bidsapp.system.processes import environment

#: Slices in each direction.
N_CUTS = 6
#: Width of the image and the space for the labels of a row, inches.
_WIDTH, _GAP = 9.6, 0.18
_DPI = 100
_GROUND, _INK = "#000000", "#e5e3de"
_COLOURS = "viridis"


@dataclass(frozen=True)
class Slices:
    """Contents of a mosaic.

    Attributes
    ----------
    used : ndarray of bool, (x, y, z)
    affine : ndarray of float64, (4, 4)
        Voxel indices to mm.
    background : ndarray of float32, (x, y, z)
        Shown in grey beneath; all 0 for none.
    values : ndarray of float32, (x, y, z), or None
        Colours of the voxels used (not finite: as 0); without it they have one colour.
    unit : str
        Label of the colour scale.
    """

    used: npt.NDArray[np.bool_]
    affine: npt.NDArray[np.float64]
    background: npt.NDArray[np.float32]
    values: npt.NDArray[np.float32] | None = None
    unit: str = ""


def write_mosaic(path: Path, shown: Slices) -> None:
    """Write slices through the voxels used as a PNG file; the same bytes every time."""
    # Agg is the only backend that needs no display; a notebook's may not be installed here
    with environment({"MPLBACKEND": "Agg"}):
        import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with plt.style.context(["default", {"font.family": "DejaVu Sans", "font.size": 9}]):
        right = 0.99 if shown.values is None else 0.9
        rows = row_heights(
            shown.used | (shown.background > 0), shown.affine, _WIDTH * (right - 0.01) / N_CUTS
        )
        figure = plt.figure(figsize=(_WIDTH, sum(rows)), dpi=_DPI, facecolor=_GROUND)
        bottoms = 1 - np.cumsum(rows) / sum(rows)
        try:
            places = [
                (0.01, bottom, right - 0.01, row / sum(rows))
                for bottom, row in zip(bottoms, rows, strict=True)
            ]
            _draw(figure, places, shown)
            with atomic_path(path) as temporary:
                figure.savefig(
                    temporary, format="png", dpi=_DPI, facecolor=_GROUND, metadata={"Software": None}
                )
        finally:
            plt.close(figure)


def _draw(figure: Any, places: list[tuple[float, float, float, float]], shown: Slices) -> None:
    import nibabel as nib
    from nilearn import plotting

    used, values = shown.used, shown.values
    low, high = (0.0, 1.0) if values is None else colour_range(values[used])
    # An overlay of 0 is not drawn, and every voxel used must be visible.
    least = (high - low) / 1000
    overlay = np.full(used.shape, 0.75 * high) if values is None else np.nan_to_num(values, nan=low)
    make: Any = nib.Nifti1Image  # nibabel has no type hints
    ground = make(np.ascontiguousarray(shown.background, dtype=np.float32), shown.affine)
    colours = make(np.where(used, np.maximum(overlay, least), 0).astype(np.float32), shown.affine)
    lit = shown.background[shown.background > 0]
    for row, direction in enumerate("xyz"):
        display = plotting.plot_anat(
            ground,
            display_mode=direction,
            cut_coords=cuts(used, shown.affine, row),
            axes=figure.add_axes(places[row]),
            black_bg=True,
            colorbar=False,
            draw_cross=False,
            annotate=False,
            resampling_interpolation="nearest",
            vmin=0.0,
            vmax=1.4 * float(np.quantile(lit, 0.98)) if lit.size else 1.0,
        )
        display.add_overlay(
            colours,
            threshold=least / 2,
            cmap=_COLOURS,
            vmin=low,
            vmax=high,
            interpolation="nearest",
            resampling_interpolation="nearest",  # others ring at the edge of the mask on an oblique grid
        )
        display.annotate(size=8, positions=True, left_right=direction != "x")
    if values is not None:
        _add_scale(figure, low, high, shown.unit)


def _add_scale(figure: Any, low: float, high: float, unit: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    axes = figure.add_axes((0.915, 0.2, 0.014, 0.6))
    bar = figure.colorbar(ScalarMappable(Normalize(low, high), _COLOURS), cax=axes)
    bar.outline.set_visible(False)
    bar.set_label(unit, color=_INK)
    axes.tick_params(colors=_INK)


def colour_range(values: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Choose the ends of the colour scale: 0, and the 98th percentile rounded up to a round number."""
    finite = values[np.isfinite(values)]
    high = float(np.quantile(finite, 0.98)) if finite.size else 1.0
    if high <= 0:
        return 0.0, 1.0
    step = 10.0 ** np.floor(np.log10(high))
    return 0.0, float(step * np.ceil(2 * high / step) / 2)


def cuts(used: npt.NDArray[np.bool_], affine: npt.NDArray[np.float64], axis: int) -> list[float]:
    """Slice positions along world axis 0 to 2, mm: evenly from the voxels' 5th to 95th percentile."""
    places = np.argwhere(used) @ affine[axis, :3] + affine[axis, 3]
    low, high = np.quantile(places, [0.05, 0.95])
    return [float(v) for v in np.unique(np.round(np.linspace(low, high, N_CUTS), 1))]


def row_heights(
    shown: npt.NDArray[np.bool_], affine: npt.NDArray[np.float64], width: float
) -> tuple[float, ...]:
    """Heights of the rows of slices, inches, where each slice is ``width`` inches wide."""
    inside = np.argwhere(shown) @ affine[:3, :3].T
    x, y, z = np.ptp(inside, axis=0) + np.abs(affine[:3, :3]).sum(axis=1)
    return tuple(float(width * high / wide) + _GAP for wide, high in ((y, z), (x, z), (x, y)))
