"""Training images and clusters, against literal loops and decoders whose scores are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from bidsapp.metrics import spuriousness
from bidsapp.metrics.identification import similarity, two_way


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_cosines_and_nearest_as_scipy(rng):
    a, b = rng.standard_normal((7, 12)), rng.standard_normal((9, 12))
    distances = cdist(a, b, "cosine")
    np.testing.assert_allclose(spuriousness.cosine(a, b), 1 - distances, atol=1e-12)
    found = spuriousness.nearest(a, b)
    assert found.row.tolist() == distances.argmin(axis=1).tolist()
    np.testing.assert_allclose(found.similarity, 1 - distances.min(axis=1), atol=1e-12)
    np.testing.assert_allclose(spuriousness.own_similarity(a, b[:7]), 1 - np.diagonal(distances), atol=1e-12)
    assert (spuriousness.cosine(np.zeros((1, 12)), b) == 0).all()


def test_within_and_between_equal_loops_and_add_up_to_the_whole(rng):
    labels = rng.integers(0, 4, 20)
    r = similarity(rng.standard_normal((20, 9)), rng.standard_normal((20, 9)))
    found = spuriousness.two_way_by_cluster(r, labels)
    for j in range(20):
        mates = [i for i in range(20) if i != j and labels[i] == labels[j]]
        others = [i for i in range(20) if labels[i] != labels[j]]
        np.testing.assert_allclose(found.within[j], np.mean([r[i, j] < r[j, j] for i in mates]))
        np.testing.assert_allclose(found.between[j], np.mean([r[i, j] < r[j, j] for i in others]))
        whole = (found.within[j] * len(mates) + found.between[j] * len(others)) / 19
        np.testing.assert_allclose(whole, two_way(r).per_image[j])


def test_a_decoder_of_the_cluster_alone_is_at_chance_within_clusters(rng):
    labels = np.repeat(np.arange(5), 20)
    centres = rng.standard_normal((5, 30)) * 5
    stimuli = centres[labels] + rng.standard_normal((100, 30))
    guesses = centres[labels] + rng.standard_normal((100, 30))  # knows the cluster, not the image
    found = spuriousness.two_way_by_cluster(similarity(stimuli, guesses), labels)
    assert found.between.mean() > 0.99
    assert abs(found.within.mean() - 0.5) < 0.08
    assert two_way(similarity(stimuli, guesses)).mean > 0.85


def test_alone_in_its_cluster_has_no_score_within():
    r = np.array([[0.9, 0.1, 0.2], [0.1, 0.8, 0.3], [0.2, 0.3, 0.7]])
    found = spuriousness.two_way_by_cluster(r, np.array([0, 0, 1]))
    assert np.isnan(found.within).tolist() == [False, False, True]
    assert not np.isnan(found.between).any()
    with pytest.raises(ValueError, match="shape"):
        spuriousness.two_way_by_cluster(r, np.array([0, 1]))


def test_at_most_as_many_clusters_as_distinct_rows(rng, recwarn):
    rows = rng.standard_normal((3, 8))
    x = np.repeat(rows, 10, axis=0) * (1 + rng.uniform(-1e-7, 1e-7, (30, 1)))
    found = spuriousness.clusters(x, 7, seed=0)
    assert len(np.unique(found)) == 3
    assert (found.reshape(3, 10) == found[::10, None]).all()
    assert (spuriousness.clusters(np.ones((5, 4)), 2, seed=0) == 0).all()
    assert not recwarn.list


def test_clusters_find_blobs_and_are_reproducible(rng):
    truth = np.repeat(np.arange(3), 15)
    x = (rng.standard_normal((3, 8)) * 10)[truth] + rng.standard_normal((45, 8))
    found = spuriousness.clusters(x, 3, seed=1)
    assert (found == spuriousness.clusters(x, 3, seed=1)).all()
    same = truth[:, None] == truth
    assert ((found[:, None] == found) == same).all()
