"""How far a condition is from luck to what the models can reach, with an interval."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bidsapp.evidence import Value
from bidsapp.metrics.statistics import bootstrap_interval, percentile_interval

#: Resamples of the images.
_RESAMPLES = 2000


def share_of_range(
    values: npt.ArrayLike, null: npt.ArrayLike, oracle: npt.ArrayLike, seed: int
) -> Value | None:
    """``(value - null) / (oracle - null)`` of means over the same images.

    Parameters
    ----------
    values, null, oracle : array-like of float, (n,)
        One metric of the same images in three conditions.
    seed : int

    Returns
    -------
    Value or None
        0 is luck, 1 what the models can reach (it may lie outside). The interval is a percentile
        bootstrap that draws images, the same for all three. None where the interval of ``oracle - null``
        holds 0, or any of its resamples is so small that the ratio says nothing.
    """
    v, low, high = (np.asarray(x, dtype=np.float64) for x in (values, null, oracle))
    if not v.shape == low.shape == high.shape or v.ndim != 1:
        raise ValueError(f"values of shapes {v.shape}, {low.shape} and {high.shape}; they must agree")
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, v.size, (_RESAMPLES, v.size))
    reach = (high - low)[rows].mean(1)
    bounds = percentile_interval(reach)
    centre = float((high - low).mean())
    if bounds.low <= 0 <= bounds.high or np.abs(reach).min() < 0.05 * abs(centre):
        return None
    ratio = percentile_interval((v - low)[rows].mean(1) / reach)
    return Value(float((v - low).mean()) / centre, ratio.low, ratio.high)


def mean_with_interval(values: npt.ArrayLike, seed: int) -> Value:
    """Give the mean over images with its bootstrap 95 % interval; NaN values are left out."""
    x = np.asarray(values, dtype=np.float64)
    x = x[np.isfinite(x)]
    if not x.size:
        return Value(float("nan"))
    return Value(float(x.mean()), *bootstrap_interval(x, seed))
