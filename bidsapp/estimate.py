"""What a subject will need, from sizes alone: for ``--dry-run`` and ``--mem``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bidsapp.config import RunConfig

#: Interpreter, libraries and small models, in bytes: measured on the demo, rounded up.
BASE_MEMORY = 1_500_000_000
_INT16, _FLOAT32, _FLOAT64 = 2, 4, 8
#: From this many training images on, the Gram matrix is float32 (bidsapp.decoding.gram), unless it is badly
#: conditioned for the penalty.
#: Bytes of a value of a stored target.
_STORED = {"float16": _INT16, "float32": _FLOAT32}
_LARGE = 4096
#: Values of targets worked on at once (bidsapp.decoding.streaming), and how many arrays of that size there
#: are when predicting (read, centred, the next of both) and when writing the model file.
_BLOCK, _PREDICTING, _WRITING = 1 << 25, 4, 8


@dataclass(frozen=True)
class Needs:
    """Bytes for one subject: memory at the peak, disk in the work folder, disk for the model file."""

    memory: int
    disk: int
    model_file: int = 0


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
        Memory is the base plus the largest of three moments, each with the training responses: the ridge
        (the Gram matrix and its factor, the operators of a penalty), the predictions (the same operators
        and blocks of targets), and the model file (Gram matrix, factor and blocks). It does not grow with the
        number of targets beyond a block. Models that do not come with the package add their own size to it.
    """
    penalties = len({t.alpha for t in config.recipe.targets.values()})
    rows = min(n_train, config.recipe.calibration.max_rows)
    side = min(n_train, n_voxels)
    gram = 2 * side**2 * (_FLOAT32 if side > _LARGE else _FLOAT64)
    operators = (n_test + rows) * n_train * _FLOAT32
    responses = n_train * n_voxels * _FLOAT32
    largest = max(target_sizes.values(), default=0)
    block = min(_BLOCK, n_train * largest) * _FLOAT32
    predicting = 2 * operators + _PREDICTING * block
    moments = (gram + 3 * operators, predicting, gram + _WRITING * block)
    dims = sum(target_sizes.values())
    on_disk = (2 * (n_train + n_test) + n_trials) * n_voxels * _FLOAT32
    kept = sum(size * _STORED[config.recipe.targets[name].stored] for name, size in target_sizes.items())
    latents = (n_train + n_test) * kept + 6 * n_test * dims * _FLOAT32
    return Needs(
        BASE_MEMORY + responses + max(moments),
        on_disk + penalties * operators + latents,
        model_file_bytes(n_train, n_voxels, dims, penalties, save_weights=config.save_weights),
    )


def model_file_bytes(
    n_train: int, n_voxels: int, n_dims: int, n_penalties: int, *, save_weights: bool = False
) -> int:
    """Size of a model file, within a hundredth (layout: bidsapp.decoding.model_writer).

    Parameters
    ----------
    n_train, n_voxels : int
    n_dims : int
        Dimensions of all targets together.
    n_penalties : int
        Different penalties, each of which has a projection.
    save_weights : bool
        With ``--save-weights``.
    """
    rank = min(n_train, n_voxels)
    size = n_penalties * n_voxels * rank * _FLOAT32 + n_dims * (rank * _INT16 + 2 * _FLOAT32 + 2 * _FLOAT64)
    return size + 4 * n_voxels * _FLOAT64 + (n_dims * n_voxels * _FLOAT32 if save_weights else 0)


def as_text(n_bytes: float) -> str:
    """Bytes for people: ``1.5 GB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"
