"""How much of a simulated voxel's response is signal, and the noise that is added to every trial.

The strength of the signal is set as a noise-ceiling signal-to-noise ratio, ncsnr = signal standard
deviation / standard deviation of the single-trial noise (Allen et al. 2022,
doi:10.1038/s41593-021-00962-x). A voxel's single-trial explainable variance is
ncsnr^2 / (ncsnr^2 + 1); after averaging n repeats it is ncsnr^2 / (ncsnr^2 + 1 / n).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from bidsapp.demo.brain import ROI_NAMES, Brain, smooth, smooth_fields
from bidsapp.demo.design import SessionDesign, generator

#: The ncsnr of an ROI's voxels follows MAX_NCSNR times a beta distribution with these parameters: median
#: about 0.5, one voxel in ten above 0.83, single-trial explainable variance from 0 to 0.5.
MAX_NCSNR = 1.05
BETA_PARAMETERS = (2.2, 2.4)

#: Shares of the noise variance: common to neighbouring voxels, common to the whole brain, and, in the ROIs,
#: with the covariance of the signal ("information-limiting", Moreno-Bote et al. 2014,
#: doi:10.1038/nn.3807). The rest is independent between voxels.
LOCAL_SHARE, GLOBAL_SHARE, SIGNAL_LIKE_SHARE = 0.25, 0.08, 0.20
LOCAL_WIDTH = 1.0
_N_GLOBAL = 8

#: Standard deviation of a session's mean and of its linear trend, in noise standard deviations.
_SESSION_MEAN, _SESSION_TREND = 0.20, 0.15

#: Median of the single-trial noise's standard deviation, in percent signal change.
_NOISE_PERCENT = 1.6


@dataclass(frozen=True)
class VoxelStatistics:
    """The known signal and noise of every voxel of a brain.

    Attributes
    ----------
    ncsnr : ndarray of float32, shape (x, y, z)
        0 outside the ROIs.
    noise_sd : ndarray of float32, shape (x, y, z)
        Standard deviation of the single-trial noise, percent signal change; 0 outside the brain.
    mean : ndarray of float32, shape (x, y, z)
        Mean response, percent signal change.
    """

    ncsnr: NDArray[np.float32]
    noise_sd: NDArray[np.float32]
    mean: NDArray[np.float32]

    def noise_ceiling(self, repeats: int) -> NDArray[np.float32]:
        """Explainable variance, in percent, of responses averaged over ``repeats`` trials, (x, y, z)."""
        squared = self.ncsnr**2
        return np.asarray(100 * squared / (squared + np.float32(1 / repeats)), np.float32)


def make_statistics(seed: int, subject: str, brain: Brain) -> VoxelStatistics:
    """Set signal and noise of every voxel: smooth over space, NSD-like over the voxels of an ROI."""
    rng = generator(seed, subject, "statistics")
    quality, spread, level = smooth_fields(rng, brain.shape, 3, width=1.2)
    quality = quality + 0.5 * rng.standard_normal(brain.shape, dtype=np.float32)
    ncsnr = np.zeros(brain.shape, np.float32)
    mean = 0.2 * level * brain.inside
    for roi in ROI_NAMES:
        index = tuple(brain.voxels(roi).T)
        rank = (np.argsort(np.argsort(quality[index])) + 0.5) / len(index[0])
        ncsnr[index] = MAX_NCSNR * betaincinv(*BETA_PARAMETERS, rank)
        mean[index] = 1.5 * np.exp(0.4 * level[index])
    noise_sd = _NOISE_PERCENT * np.exp(0.2 * spread) * brain.inside
    return VoxelStatistics(ncsnr, noise_sd.astype(np.float32), mean.astype(np.float32))


class SessionNoise:
    """The noise and drift of one session, drawn block by block in trial order.

    Parameters
    ----------
    session : SessionDesign
        Its label seeds the noise; its number of trials sets the trend.
    statistics : VoxelStatistics
        Of the subject.
    voxels : ndarray of int64, shape (n_voxels, 3)
        Indices of the voxels that have a signal.
    patterns : ndarray of float32, shape (n_scenes, n_voxels)
        Their signal as z-scores over the scenes.
    """

    def __init__(
        self,
        seed: int,
        subject: str,
        session: SessionDesign,
        *,
        statistics: VoxelStatistics,
        voxels: NDArray[np.int64],
        patterns: NDArray[np.float32],
    ) -> None:
        self._sd = statistics.noise_sd
        self._voxels = tuple(voxels.T)
        self._patterns = patterns
        shape = self._sd.shape
        # Whole-brain fluctuations: their spatial pattern is fixed within a subject, their time course is not.
        loadings = smooth_fields(generator(seed, subject, "global noise"), shape, _N_GLOBAL, width=4.0)
        self._loadings = loadings / np.linalg.norm(loadings, axis=0)
        own = np.full(shape, 1 - LOCAL_SHARE - GLOBAL_SHARE, np.float32)
        own[self._voxels] -= np.where(patterns.any(axis=0), np.float32(SIGNAL_LIKE_SHARE), 0)
        self._own = np.sqrt(own)
        self._rng = generator(seed, subject, "noise", session.label)
        drift = smooth_fields(self._rng, shape, 2, width=1.5)
        self._offset, self._trend = _SESSION_MEAN * drift[0], _SESSION_TREND * drift[1]
        self._n_trials, self._done = len(session.scenes), 0

    def draw(self, n: int) -> NDArray[np.float32]:
        """Draw the noise of the next ``n`` trials, with the session's offset and trend.

        Returns
        -------
        ndarray of float32, shape (n, x, y, z)
            Percent signal change.
        """
        shape = self._sd.shape
        out = self._normal(n, *shape)
        out *= self._own
        local = smooth(self._normal(n, *shape), LOCAL_WIDTH)
        local *= np.float32(np.sqrt(LOCAL_SHARE))
        out += local
        course = self._normal(n, _N_GLOBAL) * np.float32(np.sqrt(GLOBAL_SHARE))
        out += (course @ self._loadings.reshape(_N_GLOBAL, -1)).reshape(n, *shape)
        mixing = self._normal(n, len(self._patterns))
        mixing *= np.float32(np.sqrt(SIGNAL_LIKE_SHARE / len(self._patterns)))
        out[(slice(None), *self._voxels)] += mixing @ self._patterns
        time = (self._done + np.arange(n, dtype=np.float32)) / max(1, self._n_trials - 1) - np.float32(0.5)
        out += self._offset + time[:, None, None, None] * self._trend
        self._done += n
        out *= self._sd
        return out

    def _normal(self, *shape: int) -> NDArray[np.float32]:
        return self._rng.standard_normal(shape, dtype=np.float32)
