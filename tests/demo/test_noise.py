"""Signal and noise of the simulated voxels: NSD-like ceilings, realistic covariance."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.demo.brain import ROI_NAMES, Brain, make_brain
from bidsapp.demo.design import SessionDesign
from bidsapp.demo.noise import (
    GLOBAL_SHARE,
    LOCAL_SHARE,
    SIGNAL_LIKE_SHARE,
    SessionNoise,
    VoxelStatistics,
    make_statistics,
)


@pytest.fixture(scope="module")
def brain() -> Brain:
    return make_brain(0, "01")


@pytest.fixture(scope="module")
def statistics(brain: Brain) -> VoxelStatistics:
    return make_statistics(0, "01", brain)


def session_of(label: str, n_trials: int) -> SessionDesign:
    return SessionDesign(label, np.zeros(n_trials, np.int64), np.ones(n_trials, np.int64))


def test_noise_ceiling_is_nsd_s_formula() -> None:
    ncsnr = np.array([[[0.0, 0.5, 1.0]]], np.float32)
    stats = VoxelStatistics(ncsnr, np.ones_like(ncsnr), np.zeros_like(ncsnr))
    assert stats.noise_ceiling(1)[0, 0] == pytest.approx([0, 20, 50])
    assert stats.noise_ceiling(3)[0, 0] == pytest.approx([0, 100 * 0.25 / (0.25 + 1 / 3), 75])


def test_ncsnr_is_distributed_as_in_nsd(brain: Brain, statistics: VoxelStatistics) -> None:
    for roi in ROI_NAMES:
        ncsnr = statistics.ncsnr[tuple(brain.voxels(roi).T)].astype(float)
        single_trial = ncsnr**2 / (1 + ncsnr**2)
        assert 0.45 <= np.median(ncsnr) <= 0.6
        assert np.percentile(ncsnr, 95) > 0.8
        assert np.mean(single_trial > 1 / 3) > 0.15
        assert ncsnr.min() < 0.1
        assert single_trial.max() < 0.55
    assert np.all(statistics.ncsnr[brain.labels == 0] == 0)
    assert np.all(statistics.noise_ceiling(3)[brain.labels == 0] == 0)
    assert np.all(statistics.noise_sd[~brain.inside] == 0)
    assert np.all(statistics.noise_sd[brain.inside] > 0.5)


def test_quality_is_shared_by_neighbours(brain: Brain, statistics: VoxelStatistics) -> None:
    early = brain.labels == 1
    pairs = early[:-1] & early[1:]
    r = np.corrcoef(statistics.ncsnr[:-1][pairs], statistics.ncsnr[1:][pairs])[0, 1]
    assert r > 0.3


def test_noise_has_the_variance_and_covariance_it_should(brain: Brain, statistics: VoxelStatistics) -> None:
    voxels = np.concatenate([brain.voxels(roi) for roi in ROI_NAMES])
    # Two families of voxels with one pattern each: the part of the noise like the signal shows.
    rng = np.random.default_rng(0)
    family = np.arange(len(voxels)) % 2
    patterns = rng.standard_normal((50, 2)).astype(np.float32)
    patterns -= patterns.mean(axis=0)
    patterns[:, 1] -= patterns[:, 0] * (patterns[:, 0] @ patterns[:, 1]) / (patterns[:, 0] @ patterns[:, 0])
    patterns = (patterns / patterns.std(axis=0))[:, family]
    noise = SessionNoise(
        0, "01", session_of("01", 400), statistics=statistics, voxels=voxels, patterns=patterns
    )
    trials = np.concatenate([noise.draw(100) for _ in range(4)]).astype(np.float64)
    assert np.all(trials[:, ~brain.inside] == 0)
    time = np.linspace(-0.5, 0.5, 400)
    flat = trials - trials.mean(axis=0)
    flat -= time[:, None, None, None] * (np.tensordot(time, flat, 1) / (time @ time))
    inside = brain.inside
    ratio = flat.var(axis=0)[inside] / statistics.noise_sd[inside] ** 2
    assert ratio.mean() == pytest.approx(398 / 400, abs=0.01)
    assert ratio.std() < 1.3 * np.sqrt(2 / 400)  # no voxel stands out

    z = flat / np.where(inside, statistics.noise_sd, 1)
    elsewhere = inside & (brain.labels == 0)
    pairs = elsewhere[:-1] & elsewhere[1:]
    beside = np.mean((z[:, :-1] * z[:, 1:])[:, pairs])
    expected = LOCAL_SHARE * np.exp(-1 / 4) + GLOBAL_SHARE  # the wide fluctuations hardly differ there
    assert beside == pytest.approx(expected, abs=0.02)
    inner = z[(slice(None), *voxels.T)]
    r = inner.T @ inner / len(inner)
    far = np.linalg.norm(voxels[:, None] - voxels[None], axis=-1) > 6
    same = family[:, None] == family[None]
    assert r[far & same].mean() - r[far & ~same].mean() == pytest.approx(SIGNAL_LIKE_SHARE, abs=0.02)


def test_sessions_drift_mildly_and_differently(brain: Brain, statistics: VoxelStatistics) -> None:
    voxels = brain.voxels("early")
    patterns = np.random.default_rng(0).standard_normal((20, len(voxels))).astype(np.float32)
    means = []
    for session in ("01", "02"):
        noise = SessionNoise(
            0, "01", session_of(session, 300), statistics=statistics, voxels=voxels, patterns=patterns
        )
        means.append(noise.draw(300).mean(axis=0)[brain.inside] / statistics.noise_sd[brain.inside])
    for mean in means:
        assert 0.15 < mean.std() < 0.27  # 0.2 of drift and 1 / sqrt(300) of sampling
    assert abs(np.corrcoef(means[0], means[1])[0, 1]) < 0.3
