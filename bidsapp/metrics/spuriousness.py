"""What can make reconstructions look better than they are: training images, and clusters of stimuli.

After Shirakawa et al. 2024 (arXiv 2405.10078): where test images have near duplicates in training, or fall
into few clusters, a decoder that only picks a cluster, and a generator that only repeats its training images,
score well. Similarities are cosines of image embeddings.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bidsapp.metrics.identification import comparisons

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]

#: Decimals, relative to the largest deviation from the mean, to which features of one caption agree.
_ALIKE = 4


class Nearest(NamedTuple):
    """The most similar candidate of each row: its similarity and row."""

    similarity: Vector
    row: npt.NDArray[np.intp]


def cosine(a: npt.ArrayLike, b: npt.ArrayLike) -> Matrix:
    """Cosine of the angle between each row of a, (n, d), and each of b, (m, d); 0 for zero rows."""
    return np.asarray(_unit(a) @ _unit(b).T)


def nearest(embeddings: npt.ArrayLike, candidates: npt.ArrayLike) -> Nearest:
    """Find the most similar candidate, (m, d), of each embedding, (n, d)."""
    table = cosine(embeddings, candidates)
    index = table.argmax(axis=1)
    return Nearest(table[np.arange(len(table)), index], index)


def own_similarity(reconstructions: npt.ArrayLike, stimuli: npt.ArrayLike) -> Vector:
    """Cosine of each reconstruction's embedding with its own stimulus', both (n, d)."""
    return np.asarray((_unit(reconstructions) * _unit(stimuli)).sum(axis=1))


def clusters(features: npt.ArrayLike, n_clusters: int, seed: int) -> npt.NDArray[np.int64]:
    """Cluster stimuli by k-means (scikit-learn, 4 starts), into at most as many clusters as distinct rows.

    Parameters
    ----------
    features : array-like of float, (n, d)
        One row per stimulus, such as its mean CLIP text token.

    Returns
    -------
    ndarray of int64, (n,)
        Cluster of each stimulus, from 0. Rows that differ by rounding only, as those of equal captions may,
        count as one.
    """
    from sklearn.cluster import KMeans

    x = np.asarray(features, dtype=np.float64)
    size = float(np.abs(x - x.mean(axis=0)).max()) or 1.0
    distinct = len(np.unique(np.round((x - x.mean(axis=0)) / size, _ALIKE), axis=0))
    found = KMeans(n_clusters=min(n_clusters, distinct), n_init=4, random_state=seed).fit_predict(x)
    return np.asarray(found, dtype=np.int64)


class ClusterScores(NamedTuple):
    """Two-way identification of each reconstruction among some of the stimuli; NaN without any."""

    within: Vector
    between: Vector


def two_way_by_cluster(r: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> ClusterScores:
    """Two-way identification against stimuli of the same cluster, and of other clusters.

    A decoder that gets the cluster right and nothing else scores 1 between and 0.5 within clusters.

    Parameters
    ----------
    r : ndarray of float, (n, n)
        From :func:`~bidsapp.metrics.identification.similarity`; stimuli in rows.
    labels : ndarray of int, (n,)
        Cluster of each stimulus.

    Returns
    -------
    ClusterScores
        Each (n,): the share of the compared stimuli that are less similar to reconstruction j than its
        own. Ties count one half.
    """
    n = len(labels)
    if r.shape != (n, n):
        raise ValueError(f"similarities of shape {r.shape} for {n} stimuli")
    wins = comparisons(r)
    same = labels[:, None] == labels
    mates = same & ~np.eye(n, dtype=bool)
    return ClusterScores(_share(wins, mates), _share(wins, ~same))


def _share(wins: Matrix, among: npt.NDArray[np.bool_]) -> Vector:
    counts = among.sum(axis=0)
    share = np.full(len(counts), np.nan)
    np.divide((wins * among).sum(axis=0), counts, out=share, where=counts > 0)
    return share


def _unit(x: npt.ArrayLike) -> Matrix:
    rows = np.asarray(x, dtype=np.float64)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.zeros_like(rows)
    np.divide(rows, norm, out=unit, where=norm > 0)
    return unit
