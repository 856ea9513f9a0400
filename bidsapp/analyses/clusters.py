"""Test images predicted from training images of other clusters only (after Shirakawa et al. 2024).

With training images of the same cluster, a decoder may merely choose among clusters that it knows. Here
each test image is predicted by a ridge that never saw its cluster. That ridge also saw fewer images, so it
is compared with one that left out as many at random. Nothing is refitted: see
:mod:`bidsapp.decoding.holdout` for the formulas.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bidsapp.analyses.checks import stimulus_clusters
from bidsapp.config import RunConfig
from bidsapp.decoding.decoder import RidgeDecoder
from bidsapp.decoding.holdout import about_own_mean, holdout_operator
from bidsapp.decoding.quality import Similarity
from bidsapp.decoding.streaming import TargetBlocks
from bidsapp.evidence import HoldoutScores
from bidsapp.metrics.identification import two_way
from bidsapp.metrics.spuriousness import two_way_by_cluster
from bidsapp.metrics.statistics import mean_with_interval
from bidsapp.pipeline.decoding import backend_for_fit
from bidsapp.pipeline.records import Decoded
from bidsapp.seeds import seed_for
from bidsapp.storage.stages import StageResult

if TYPE_CHECKING:
    from bidsapp.models.suite import Models

LOG = logging.getLogger("bidsapp")
Labels = npt.NDArray[np.int64]


def hold_out_clusters(done: Decoded, models: Models, config: RunConfig) -> tuple[HoldoutScores, ...]:
    """Identify test images by predictions of ridges that never saw their cluster (``--cluster-holdout``).

    Returns
    -------
    tuple of HoldoutScores
        For each target three: all training images, without the cluster, without as many at random. Empty
        without the option, and where test images are too few for clusters.
    """
    if not config.cluster_holdout:
        return ()
    labels = stimulus_clusters(done, models, config.seed)
    if labels is None:
        LOG.warning("--cluster-holdout: skipped, because there are too few test images for clusters")
        return ()
    test, train = labels
    if max(np.count_nonzero(train == c) for c in np.unique(test)) > len(train) - 2:
        LOG.warning("--cluster-holdout: skipped, because one cluster holds all training images")
        return ()
    tables = similarities(done, test, train, config)
    left = [int(np.count_nonzero(train == c)) for c in test]
    found = []
    for name in config.recipe.target_names:
        for trained_on in ("all", "other_clusters", "random_rest"):
            table = done.quality[f"{name}_to_test"] if trained_on == "all" else tables[f"{name}_{trained_on}"]
            # Ground truths in rows, predictions in columns.
            r = np.asarray(table, dtype=np.float64).T
            by_cluster = two_way_by_cluster(r, test)
            found.append(
                HoldoutScores(
                    target=name,
                    trained_on=trained_on,
                    two_way=mean_with_interval(two_way(r).per_image, config.seed),
                    within=mean_with_interval(by_cluster.within, config.seed),
                    between=mean_with_interval(by_cluster.between, config.seed),
                    left_out=0.0 if trained_on == "all" else float(np.mean(left)),
                    n_clusters=len(np.unique(test)),
                    n_images=len(test),
                )
            )
    return tuple(found)


def similarities(done: Decoded, test: Labels, train: Labels, config: RunConfig) -> StageResult:
    """Compute the similarity of each held-out prediction to the test images' targets.

    Arrays ``<target>_other_clusters`` and ``<target>_random_rest`` (predictions, targets): Pearson
    correlation over dimensions. Predictions are taken about the mean of the training images they used.
    """
    fit, responses = done.fit, done.responses
    names = config.recipe.target_names
    alphas = {name: fit.penalties[name].alpha for name in names}
    n, backend = len(train), backend_for_fit(config, responses)
    groups, group = np.unique(test, return_inverse=True)
    clusters = [np.flatnonzero(train == c) for c in groups]
    rng = np.random.default_rng(seed_for(config.seed, "random holdout"))
    random = [np.sort(rng.permutation(n)[: rows.size]) for rows in clusters]
    sets = {"other_clusters": clusters, "random_rest": random}

    def compute(_: Path) -> dict[str, np.ndarray]:
        decoder = RidgeDecoder(responses["train"], backend=backend)
        arrays: dict[str, np.ndarray] = {}
        for alpha in sorted(set(alphas.values())):
            operators: dict[str, npt.NDArray[np.float32]] = {}
            for key, rows in sets.items():
                whole = holdout_operator(decoder, responses["test"], alpha, rows, group)
                operators[key] = about_own_mean(whole, rows, group).astype(np.float32)
            for name in (name for name in names if alphas[name] == alpha):
                found = {key: Similarity(len(test), len(test)) for key in operators}
                for part in TargetBlocks(fit.train[name]):
                    true = np.asarray(fit.test[name][:, part.columns], dtype=np.float64) - part.mean
                    for key, operator in operators.items():
                        found[key].add(operator @ part.centred, true.astype(np.float32))
                arrays |= {f"{name}_{key}": s.result().astype(np.float32) for key, s in found.items()}
        return arrays

    inputs: dict[str, Any] = {"after": [responses.key, fit.targets_key], "alphas": alphas}
    inputs |= {"backend": backend.name, "test": test.tolist(), "train": train.tolist(), "seed": config.seed}
    return fit.stages.run("holdout", inputs, compute)
