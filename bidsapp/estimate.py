"""What a subject will need, from sizes alone: for ``--dry-run`` and ``--mem``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bidsapp.config import RunConfig

#: Interpreter, libraries and small models, in bytes: measured on the demo, rounded up.
BASE_MEMORY = 1_500_000_000
_FLOAT32, _FLOAT64 = 4, 8
#: From this many training images on, the Gram matrix is float32 (bidsapp.decoding.ridge).
_LARGE = 4096


@dataclass(frozen=True)
class Needs:
    """Bytes of memory at the peak, and of disk in the work folder, for one subject."""

    memory: int
    disk: int


def needs(
    config: RunConfig,
    n_trials: int,
    n_train: int,
    n_test: int,
    n_voxels: int,
    target_sizes: Mapping[str, int],
) -> Needs:
    """Estimate what one subject needs.

    Parameters
    ----------
    config : RunConfig
    n_trials, n_train, n_test, n_voxels : int
    target_sizes : mapping of str to int
        Values of each target.

    Returns
    -------
    Needs
        Memory is the base plus the larger of two moments: the ridge (responses and their copy, the
        Gram matrix and its factor, the operators) and the predictions of the largest target (test and
        leave-one-out rows, raw and calibrated). Models that do not come with the package add their
        own size to it.
    """
    penalties = len({t.alpha for t in config.recipe.targets.values()})
    rows = min(n_train, config.recipe.calibration.max_rows)
    side = min(n_train, n_voxels)
    gram = 2 * side**2 * (_FLOAT32 if side > _LARGE else _FLOAT64)
    operators = penalties * (n_test + rows) * n_train * _FLOAT32
    ridge = 2 * (n_train + n_test) * n_voxels * _FLOAT32 + gram + operators
    largest = max(target_sizes.values(), default=0)
    predicting = operators + (rows + 3 * n_test) * largest * _FLOAT32
    responses = (2 * (n_train + n_test) + n_trials) * n_voxels * _FLOAT32
    latents = (n_train + 6 * n_test) * sum(target_sizes.values()) * _FLOAT32
    return Needs(BASE_MEMORY + max(ridge, predicting), responses + operators + latents)


def as_text(n_bytes: float) -> str:
    """Bytes for people: ``1.5 GB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"
