"""Memory and disk that one subject takes, from sizes alone: upper bounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bidsapp.config import RunConfig, cluster_count, ladder_size

if TYPE_CHECKING:
    from bidsapp.planning.estimate import Sizes

#: Bytes of the interpreter, libraries and small models: measured on the demo, rounded up.
BASE_MEMORY = 1_500_000_000
INT16, FLOAT32, FLOAT64 = 2, 4, 8
_STORED = {"float16": 2, "float32": FLOAT32}
#: From this many training images on, the Gram matrix is float32 (bidsapp.decoding.gram), unless it is badly
#: conditioned for the penalty.
_LARGE = 1024
#: Dimensions per block (bidsapp.decoding.streaming), and arrays of that size when predicting (read and
#: centred, for this block and the next) and when writing the model file.
_WIDTH, _PREDICTING, _WRITING = 4096, 4, 8
#: The largest cluster of stimuli is taken to be this many times their mean size.
_LARGEST_CLUSTER = 2
#: Dimensions per chunk of the targets' store (bidsapp.data.targets); the last chunk is stored in full.
_CHUNK = 4096
#: Files of the stages that every run has, bytes of a file's header and record, and files per penalty.
_FILES, _OVERHEAD, _FILES_PER_PENALTY = 130, 2000, 6


def n_penalties(config: RunConfig) -> int:
    """Count the different penalties of the recipe."""
    return len({alpha for target in config.recipe.targets.values() for alpha in target.alphas})


def held_out_rows(config: RunConfig, n_train: int) -> int:
    """Count the training images whose held-out predictions give the calibration."""
    return min(n_train, config.recipe.calibration.max_rows)


# Memory.


def peak_memory(config: RunConfig, sizes: Sizes, parameters: int, at_once: int) -> int:
    """Bytes at the peak of a run.

    The base, the models' parameters, and the largest of several moments. With the training responses: the
    ridge (the Gram matrix and its factor, the operators of a penalty), the predictions (the operators and
    blocks of targets), the model file (Gram matrix, factor and blocks), and the analyses of options. Without
    them: a batch of ``at_once`` images, while all test stimuli are in memory.
    """
    n_train, n_test = sizes.n_train, sizes.n_test
    responses = n_train * sizes.n_voxels * FLOAT32
    side = min(n_train, sizes.n_voxels)
    gram = 2 * side**2 * (FLOAT32 if side > _LARGE else FLOAT64)
    operators = (n_test + held_out_rows(config, n_train)) * n_train * FLOAT32
    block = n_train * min(_WIDTH, max(sizes.targets.values(), default=0)) * FLOAT32
    predicting = 2 * operators + _PREDICTING * block
    moments = [gram + 3 * operators, predicting, gram + _WRITING * block]
    moments += option_moments(config, sizes, gram, 2 * block)
    images = at_once * sizes.image_cost + n_test * sizes.stimulus_bytes
    return BASE_MEMORY + parameters + max(responses + max(moments), images)


def option_moments(config: RunConfig, sizes: Sizes, gram: int, block: int) -> Iterator[int]:
    """Bytes at the peak of each analysis that an option adds, besides the training responses.

    ``--cluster-holdout`` holds two operators (test, train), their products, and four arrays (rows left out,
    train) for the largest cluster. ``--roi-analysis`` holds the weights (voxels, test) and the test
    responses, with their products. ``gram`` are the bytes of the Gram matrix and its factor, ``block`` those
    of a block of targets.
    """
    n_train, n_test = sizes.n_train, sizes.n_test
    if config.cluster_holdout and (k := cluster_count(n_test)) > 1:
        left_out = min(n_train, _LARGEST_CLUSTER * n_train // k)
        operators = n_test * n_train * (2 * FLOAT64 + 2 * FLOAT32)
        yield gram + operators + 4 * left_out * n_train * FLOAT64 + 2 * block
    if config.roi_analysis:
        yield gram + 3 * sizes.n_voxels * n_test * FLOAT32 + 2 * n_train * n_test * FLOAT64 + 2 * block


# Disk.


def work_bytes(config: RunConfig, sizes: Sizes) -> int:
    """Bytes in the work folder, without images."""
    n_train, n_test, n_voxels = sizes.n_train, sizes.n_test, sizes.n_voxels
    n_ladder, penalties, dims = ladder_size(config, n_test), n_penalties(config), sum(sizes.targets.values())
    # Betas, responses, z-scored responses, and halves of the test images' repeats.
    rows = sizes.n_trials + 2 * (n_train + n_test) + 2 * n_test
    responses = (rows * FLOAT32 + 2 * FLOAT64 + 2) * n_voxels
    # Operators of each penalty: of test images and their halves, held-out rows, and the probes.
    operators = (3 * n_test + held_out_rows(config, n_train) + n_ladder + 1) * n_train * FLOAT32
    # Raw and calibrated predictions: all test images under two conditions, the ladder's under another. The
    # true and random ones of the ladder's images, and one row of the mean. Constants of calibration and three
    # scores of each dimension are float64.
    latents = dims * ((4 * n_test + 4 * n_ladder + 1) * FLOAT32 + (6 + 3) * FLOAT64)
    scores = len(sizes.targets) * n_test * (n_test + n_train) * FLOAT32
    overhead = _OVERHEAD * n_files(sizes.n_sessions, penalties)
    return responses + penalties * operators + _target_bytes(config, sizes) + latents + scores + overhead


def _target_bytes(config: RunConfig, sizes: Sizes) -> int:
    """Bytes of the targets' store, in whole chunks if a target has several."""
    per_image = 0
    for name, n in sizes.targets.items():
        in_chunks = n if n <= _CHUNK else -(-n // _CHUNK) * _CHUNK
        per_image += _STORED[config.recipe.targets[name].stored] * in_chunks
    return (sizes.n_train + sizes.n_test) * (per_image + 128) + 20_000


def n_files(n_sessions: int, n_penalties: int) -> int:
    """Count the most files of a subject in the work folder, without optional analyses."""
    return _FILES + n_sessions + _FILES_PER_PENALTY * (n_penalties - 1)


def model_file_bytes(
    n_train: int, n_voxels: int, n_dims: int, n_penalties: int, *, save_weights: bool = False
) -> int:
    """Size of a model file, within 1% (layout: bidsapp.decoding.model_writer).

    ``n_dims`` counts the dimensions of all targets; each of the ``n_penalties`` has a projection.
    """
    rank = min(n_train, n_voxels)
    size = n_penalties * n_voxels * rank * FLOAT32 + n_dims * (rank * INT16 + 2 * FLOAT32 + 2 * FLOAT64)
    return size + 4 * n_voxels * FLOAT64 + (n_dims * n_voxels * FLOAT32 if save_weights else 0)
