"""Under the null a permutation test's p is uniform, and intervals of the mean cover chance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from bidsapp.metrics.identification import similarity, two_way, two_way_null
from bidsapp.metrics.scoring import score
from bidsapp.metrics.statistics import bootstrap_interval, permutation_p


def null_similarity(seed: int, n: int = 40) -> np.ndarray:
    """Reconstructions that know nothing of their stimuli."""
    rng = np.random.default_rng(seed)
    return similarity(rng.standard_normal((n, 30)), rng.standard_normal((n, 30)))


def test_p_is_uniform_under_the_null():
    ps = []
    for seed in range(300):
        r = null_similarity(seed)
        ps.append(permutation_p(two_way(r).mean, two_way_null(r, seed + 1000, 199)))
    assert kstest(ps, "uniform").pvalue > 0.05
    assert 0.02 <= np.mean(np.array(ps) <= 0.05) <= 0.09


def test_p_is_small_where_there_is_an_effect():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((40, 30))
    r = similarity(truth, truth + 3 * rng.standard_normal((40, 30)))
    assert permutation_p(two_way(r).mean, two_way_null(r, 0, 199)) == 1 / 200


def test_intervals_cover_chance_in_at_least_18_of_20_seeds():
    covered = 0
    for seed in range(20):
        low, high = bootstrap_interval(two_way(null_similarity(seed, 100)).per_image, seed)
        covered += low <= 0.5 <= high
    assert covered >= 18


@pytest.mark.parametrize("better", ["two_way_flat", "pixcorr"])
def test_scores_carry_p_and_the_other_direction(better):
    rng = np.random.default_rng(0)
    stimuli = rng.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    noisy = np.clip(stimuli + rng.normal(0, 30, stimuli.shape), 0, 255).astype(np.uint8)

    def flat(images):
        return images.reshape(len(images), -1).astype(float)

    found = score(noisy, stimuli, {"flat": flat}, 16).summary
    assert found[better].p == pytest.approx(1 / 1001)
    r = similarity(flat(stimuli), flat(noisy))
    assert found["two_way_flat"].reverse == two_way(r.T).mean
    shuffled = score(noisy[::-1], stimuli, {"flat": flat}, 16).summary
    assert shuffled[better].p > 0.05
    assert found["ssim"].p is None
