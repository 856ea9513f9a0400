"""What ``--generator-seeds``, ``--cluster-holdout`` and ``--roi-analysis`` add to a subject's needs."""

from __future__ import annotations

from collections.abc import Sequence

from bidsapp.config import RANDOM_SETS, RunConfig, cluster_count, ladder_size

_FLOAT32, _FLOAT64 = 4, 8


#: Clusters are not of one size: the largest is taken to be this many times their mean.
_LARGEST = 2


def further_images(config: RunConfig, n_test: int, n_regions: int) -> int:
    """Count the images that options add: the ladder's under each further seed, and one a region."""
    n = ladder_size(config, n_test)
    seeds = (config.generator_seeds - 1) * n if n > 1 else 0
    return seeds + (n_regions if config.roi_analysis else 0)


def moments(
    config: RunConfig, n_train: int, n_test: int, n_voxels: int, gram: int, block: int
) -> tuple[int, ...]:
    """Bytes at the peak of each analysis, beside the training responses.

    Parameters
    ----------
    config : RunConfig
    n_train, n_test, n_voxels : int
    gram : int
        Bytes of the Gram matrix and its factor.
    block : int
        Bytes of a block of targets.

    Returns
    -------
    tuple of int
        ``--cluster-holdout`` holds two operators (test, train), what it makes of them, and four arrays (rows
        left out, train) for the largest cluster; ``--roi-analysis`` the weights (voxels, test) and the test
        responses, with their products.
    """
    found = []
    if config.cluster_holdout and (k := cluster_count(n_test)) > 1:
        left_out = min(n_train, _LARGEST * n_train // k)
        operators = n_test * n_train * (2 * _FLOAT64 + 2 * _FLOAT32)
        found.append(gram + operators + 4 * left_out * n_train * _FLOAT64 + 2 * block)
    if config.roi_analysis:
        weights = 3 * n_voxels * n_test * _FLOAT32 + 2 * n_train * n_test * _FLOAT64
        found.append(gram + weights + 2 * block)
    return tuple(found)


def operations(
    config: RunConfig,
    n_train: int,
    n_test: int,
    n_voxels: int,
    n_dims: int,
    penalties: int,
    region_voxels: Sequence[int],
) -> float:
    """Count what the analyses multiply and add; images are counted by :func:`further_images`.

    Parameters
    ----------
    config : RunConfig
    n_train, n_test, n_voxels : int
    n_dims : int
        Dimensions of all targets together.
    penalties : int
    region_voxels : sequence of int
        Voxels of each region.
    """
    n, m, p = float(n_train), float(n_test), float(n_voxels)
    side = min(n, p)
    factorise = 2 * side**2 * max(n, p) + penalties * side**3 / 3
    total = 0.0
    if config.cluster_holdout and (k := cluster_count(n_test)) > 1:
        each = 2 * side**2 * n + 2 * n * n * (n / k)  # rows of I - H of all clusters, and their solves
        total += factorise + penalties * 2 * each + 2 * n_dims * (2 * m * n + 2 * m * m)
    if config.roi_analysis and region_voxels:
        regions = len(region_voxels)
        synthetic = 2.0 * regions * n * n_dims
        weights = len(config.recipe.targets) * (2 * side**2 * m + 2 * n * p * m) + 2 * n * m * n_dims
        sets = len(config.recipe.targets) * (RANDOM_SETS + 1) * 2 * m * m * sum(region_voxels)
        total += 2 * factorise + synthetic + weights + sets
    return total
