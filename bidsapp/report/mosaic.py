"""Where in the brain the voxels lie that were decoded: slices in three directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bidsapp.storage.atomic import atomic_path

#: Slices of each direction.
N_CUTS = 6
#: Width of the picture and what is left free for the words of a row, inches.
_WIDE, _GAP = 9.6, 0.18
_DPI = 100
_GROUND, _INK = "#000000", "#e5e3de"
_COLOURS = "viridis"


def write_mosaic(
    path: Path,
    used: npt.NDArray[np.bool_],
    affine: npt.NDArray[np.float64],
    background: npt.NDArray[np.float32],
    values: npt.NDArray[np.float32] | None = None,
    unit: str = "",
) -> None:
    """Write slices through the voxels used as a PNG file; the same bytes every time.

    Parameters
    ----------
    path : Path
    used : ndarray of bool, (x, y, z)
    affine : ndarray of float64, (4, 4)
        Voxel indices to mm.
    background : ndarray of float32, (x, y, z)
        Shown in grey beneath; all 0 for none.
    values : ndarray of float32, (x, y, z), optional
        Colours the voxels used (as 0 where it is not finite); without it they have one colour.
    unit : str
        What the colours mean, beside their scale.
    """
    import matplotlib as mpl

    mpl.use("Agg")  # the only one that needs no display
    import matplotlib.pyplot as plt

    with plt.style.context(["default", {"font.family": "DejaVu Sans", "font.size": 9}]):
        right = 0.99 if values is None else 0.9
        rows = row_heights(used | (background > 0), affine, _WIDE * (right - 0.01) / N_CUTS)
        figure = plt.figure(figsize=(_WIDE, sum(rows)), dpi=_DPI, facecolor=_GROUND)
        bottoms = 1 - np.cumsum(rows) / sum(rows)
        try:
            places = [
                (0.01, bottom, right - 0.01, row / sum(rows))
                for bottom, row in zip(bottoms, rows, strict=True)
            ]
            _draw(figure, places, used, affine, background, values, unit)
            with atomic_path(path) as temporary:
                figure.savefig(
                    temporary, format="png", dpi=_DPI, facecolor=_GROUND, metadata={"Software": None}
                )
        finally:
            plt.close(figure)


def _draw(
    figure: Any,
    places: list[tuple[float, float, float, float]],
    used: npt.NDArray[np.bool_],
    affine: npt.NDArray[np.float64],
    background: npt.NDArray[np.float32],
    values: npt.NDArray[np.float32] | None,
    unit: str,
) -> None:
    import nibabel as nib
    from nilearn import plotting

    low, high = (0.0, 1.0) if values is None else colour_range(values[used])
    # Nothing is drawn where an overlay is 0, and every voxel used is to be seen.
    least = (high - low) / 1000
    shown = np.full(used.shape, 0.75 * high) if values is None else np.nan_to_num(values, nan=low)
    make: Any = nib.Nifti1Image  # nibabel has no type hints
    ground = make(np.ascontiguousarray(background, dtype=np.float32), affine)
    colours = make(np.where(used, np.maximum(shown, least), 0).astype(np.float32), affine)
    lit = background[background > 0]
    for row, direction in enumerate("xyz"):
        display = plotting.plot_anat(
            ground,
            display_mode=direction,
            cut_coords=cuts(used, affine, row),
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
            resampling_interpolation="nearest",  # an oblique grid's would ring at the edge of the mask
        )
        display.annotate(size=8, positions=True, left_right=direction != "x")
    if values is not None:
        _scale(figure, low, high, unit)


def _scale(figure: Any, low: float, high: float, unit: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    axes = figure.add_axes((0.915, 0.2, 0.014, 0.6))
    bar = figure.colorbar(ScalarMappable(Normalize(low, high), _COLOURS), cax=axes)
    bar.outline.set_visible(False)
    bar.set_label(unit, color=_INK)
    axes.tick_params(colors=_INK)


def colour_range(values: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Give the ends of the colours: 0, and the 98th percentile rounded up to a number that reads well."""
    finite = values[np.isfinite(values)]
    high = float(np.quantile(finite, 0.98)) if finite.size else 1.0
    if high <= 0:
        return 0.0, 1.0
    step = 10.0 ** np.floor(np.log10(high))
    return 0.0, float(step * np.ceil(2 * high / step) / 2)


def cuts(used: npt.NDArray[np.bool_], affine: npt.NDArray[np.float64], axis: int) -> list[float]:
    """Places of the slices along a world axis, mm: evenly from the voxels' 5th to their 95th percentile.

    Parameters
    ----------
    used : ndarray of bool, (x, y, z)
    affine : ndarray of float64, (4, 4)
    axis : int
        0 to 2 for left to right, back to front, bottom to top.
    """
    places = np.argwhere(used) @ affine[axis, :3] + affine[axis, 3]
    low, high = np.quantile(places, [0.05, 0.95])
    return [float(v) for v in np.unique(np.round(np.linspace(low, high, N_CUTS), 1))]


def row_heights(
    shown: npt.NDArray[np.bool_], affine: npt.NDArray[np.float64], width: float
) -> tuple[float, ...]:
    """Heights of the rows of slices through what is shown, where each slice is ``width`` wide, inches."""
    inside = np.argwhere(shown) @ affine[:3, :3].T
    x, y, z = np.ptp(inside, axis=0) + np.abs(affine[:3, :3]).sum(axis=1)
    return tuple(float(width * high / wide) + _GAP for wide, high in ((y, z), (x, z), (x, y)))
