"""The encoding model of the simulated subjects: from a scene to the signal of every voxel.

Early ROI: local oriented energy, luminance and opponent colour, pooled in population receptive fields
whose size grows with eccentricity (after Kay et al. 2008, doi:10.1038/nature06713, and Dumoulin &
Wandell 2008, doi:10.1016/j.neuroimage.2007.09.034). Higher ROI: semantic attributes of the scene, with
sparse category tuning that neighbouring voxels share. Neither uses the latent space of any decoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from bidsapp.demo import scenes
from bidsapp.demo.brain import Brain, smooth_fields
from bidsapp.demo.design import generator

#: Side in pixels of the images that the features are computed from.
INPUT_SIDE = 64
#: Side of the grid that the feature maps live on.
MAP_SIDE = 32
#: Wavelengths of the oriented filters, in pixels of ``INPUT_SIDE``; one octave apart.
WAVELENGTHS = (4.0, 8.0, 16.0, 32.0)
N_ORIENTATIONS = 4
N_ENERGY = len(WAVELENGTHS) * N_ORIENTATIONS
#: Energy channels, then luminance, red-green and blue-yellow.
N_CHANNELS = N_ENERGY + 3

#: Share of the signal's variance that no known feature explains, by ROI: encoding models of measured
#: responses explain early areas better than higher ones.
UNEXPLAINED = {"early": 0.25, "higher": 0.45}

_FADE_PIXELS = 5
_BATCH = 64


def local_features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Compute the maps that early visual voxels pool, from RGB images (n, 64, 64, 3).

    Returns
    -------
    ndarray of float32, shape (n, N_CHANNELS, 32, 32)
        Contrast-normalised amplitude of complex Gabor filters, scale by scale and within a scale
        orientation by orientation (0 = vertical edges); luminance and opponent colours, each 0 for grey.
    """
    rgb = images.astype(np.float32) / 255.0
    luminance = rgb @ np.array([0.299, 0.587, 0.114], np.float32) - np.float32(0.5)
    red_green = rgb[..., 0] - rgb[..., 1]
    blue_yellow = rgb[..., 2] - (rgb[..., 0] + rgb[..., 1]) / 2
    maps = np.empty((len(images), N_CHANNELS, MAP_SIDE, MAP_SIDE), np.float32)
    spectrum = scipy.fft.fft2(luminance * _aperture())
    for s, wavelength in enumerate(WAVELENGTHS):
        energy = np.stack([_amplitude(spectrum, f) for f in _filters(wavelength)], axis=1)
        maps[:, s * N_ORIENTATIONS : (s + 1) * N_ORIENTATIONS] = _normalise(energy, wavelength)
    for c, plane in enumerate((luminance, red_green, blue_yellow), start=N_ENERGY):
        maps[:, c] = _halve(plane)
    return maps


def _aperture() -> NDArray[np.float32]:
    """Fade the border to grey, as on a soft-edged screen, so that no edge appears where the image wraps."""
    ramp = np.minimum(np.arange(INPUT_SIDE), np.arange(INPUT_SIDE)[::-1]) + 0.5
    edge = 0.5 - 0.5 * np.cos(np.pi * np.clip(ramp / _FADE_PIXELS, 0, 1))
    return np.outer(edge, edge).astype(np.float32)


def _filters(wavelength: float) -> NDArray[np.float32]:
    """Transfer functions (N_ORIENTATIONS, 64, 64) of one-sided (complex, quadrature) Gabor filters."""
    cycles = scipy.fft.fftfreq(INPUT_SIDE)
    fy, fx = np.meshgrid(cycles, cycles, indexing="ij")
    width = 0.35 / wavelength  # about 1.2 octaves at half height
    angles = np.arange(N_ORIENTATIONS) * np.pi / N_ORIENTATIONS
    bank = [
        np.exp(-0.5 * ((fx - np.cos(a) / wavelength) ** 2 + (fy - np.sin(a) / wavelength) ** 2) / width**2)
        for a in angles
    ]
    # A Gabor's small response to a uniform field is removed: energy does not depend on mean luminance.
    filters = np.stack(bank)
    filters[:, 0, 0] = 0.0
    return filters.astype(np.float32)


def _amplitude(spectrum: NDArray[np.complex64], transfer: NDArray[np.float32]) -> NDArray[np.float32]:
    """Local amplitude (n, 32, 32): root of the summed squares of the quadrature pair."""
    return _halve(np.abs(scipy.fft.ifft2(spectrum * transfer)))


def _halve(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean of each 2 x 2 block: (n, 64, 64) to (n, 32, 32)."""
    n = len(planes)
    out: NDArray[np.float32] = planes.reshape(n, MAP_SIDE, 2, MAP_SIDE, 2).mean(axis=(2, 4))
    return out


def _normalise(energy: NDArray[np.float32], wavelength: float) -> NDArray[np.float32]:
    """Divide amplitude (n, orientations, 32, 32) by the contrast of its neighbourhood and a constant."""
    spread = max(1.0, wavelength / 4)  # in cells of the 32 x 32 grid: half a wavelength
    steps = np.arange(MAP_SIDE)
    kernel = np.exp(-0.5 * ((steps[:, None] - steps[None, :]) / spread) ** 2)
    kernel = (kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32)
    pool = kernel @ energy.mean(axis=1) @ kernel.T
    semi_saturation = np.float32(0.02)
    out: NDArray[np.float32] = energy / (semi_saturation + pool[:, None])
    # The ratio alone would discard contrast: keep part of it, as a saturating gain.
    out *= np.sqrt(pool / (semi_saturation + pool))[:, None]
    return out


@dataclass(frozen=True)
class EarlyModel:
    """Receptive fields and tuning of the early ROI's voxels.

    Attributes
    ----------
    x, y, size : ndarray of float64, shape (n_voxels,)
        Centre and standard deviation of the population receptive field; the image spans -1 to 1,
        y grows downwards.
    energy : ndarray of float32, shape (n_voxels, N_ENERGY)
        Non-negative weights over scales and orientations, summing to one.
    mixture : ndarray of float32, shape (n_voxels, 4)
        Signed weights of the standardised energy, luminance, red-green and blue-yellow drives; the
        squares sum to one.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    size: NDArray[np.float64]
    energy: NDArray[np.float32]
    mixture: NDArray[np.float32]

    def pooling(self) -> NDArray[np.float32]:
        """Receptive fields as weights over the map grid, (n_voxels, 32 * 32), each summing to one."""
        centres = (np.arange(MAP_SIDE) + 0.5) / MAP_SIDE * 2 - 1
        rows = np.exp(-0.5 * ((centres - self.y[:, None]) / self.size[:, None]) ** 2)
        columns = np.exp(-0.5 * ((centres - self.x[:, None]) / self.size[:, None]) ** 2)
        fields = (rows[:, :, None] * columns[:, None, :]).reshape(len(self.x), -1)
        fields /= fields.sum(axis=1, keepdims=True)
        return np.asarray(fields, np.float32)

    def signal(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Noise-free responses to images (n, 64, 64, 3) as z-scores over them: (n, n_voxels)."""
        pooling = self.pooling()
        drives = np.empty((4, len(images), len(self.x)), np.float32)
        for start in range(0, len(images), _BATCH):
            maps = local_features(images[start : start + _BATCH])
            pooled = (maps.reshape(-1, MAP_SIDE**2) @ pooling.T).reshape(len(maps), N_CHANNELS, -1)
            energy = np.einsum("ncv,vc->nv", pooled[:, :N_ENERGY], self.energy)
            # Compressive spatial summation (Kay et al. 2013, doi:10.1152/jn.00105.2013).
            drives[0, start : start + _BATCH] = np.sqrt(energy)
            drives[1:, start : start + _BATCH] = np.moveaxis(pooled[:, N_ENERGY:], 1, 0)
        drives -= drives.mean(axis=1, keepdims=True)
        drives /= drives.std(axis=1, keepdims=True) + np.float32(1e-6)
        return _standardise(np.einsum("knv,vk->nv", drives, self.mixture))


def make_early_model(seed: int, subject: str, brain: Brain) -> EarlyModel:
    """Lay a retinotopic map over the early ROI and tune the voxels of ``brain.voxels("early")``.

    Eccentricity grows from the back of the ROI forwards with cortical magnification. The visual field is
    crossed (left half in the right hemisphere) and inverted (upper half below). Receptive fields and
    preferences are jittered, so that neighbours are similar but not identical.
    """
    rng = generator(seed, subject, "early")
    place = brain.voxels("early").astype(float)
    n = len(place)
    forwards = _rank(place[:, 1] + rng.normal(0, 0.7, n))
    eccentricity = 0.35 * (np.exp(forwards * np.log(1 + 1.15 / 0.35)) - 1)
    left = place[:, 0] < np.median(place[:, 0])
    up = np.empty(n)
    for side in (left, ~left):
        up[side] = _rank(-place[side, 2] + rng.normal(0, 0.7, int(side.sum())))
    angle = (up - 0.5) * np.pi  # from the lower to the upper vertical meridian
    x = np.where(left, 1, -1) * eccentricity * np.cos(angle) + rng.normal(0, 0.04, n)
    y = -eccentricity * np.sin(angle) + rng.normal(0, 0.04, n)
    x, y = np.clip(x, -0.97, 0.97), np.clip(y, -0.97, 0.97)
    size = (0.07 + 0.13 * eccentricity) * rng.lognormal(0.0, 0.2, n)

    # Finer scales near the centre of gaze; broad orientation tuning, since a voxel pools many neurons.
    octave = np.clip(0.4 + 1.9 * np.sqrt(eccentricity) + rng.normal(0, 0.5, n), 0, 3)
    scale = np.exp(-0.5 * ((np.arange(len(WAVELENGTHS)) - octave[:, None]) / 0.8) ** 2)
    preferred = _neighbourly(rng, brain, "early", 1)[:, 0] * np.pi
    angles = np.arange(N_ORIENTATIONS) * np.pi / N_ORIENTATIONS
    orientation = np.exp(1.2 * np.cos(2 * (angles - preferred[:, None])))
    energy = (scale[:, :, None] * orientation[:, None, :]).reshape(n, N_ENERGY)
    energy /= energy.sum(axis=1, keepdims=True)
    share = rng.dirichlet((2.4, 1.2, 0.7, 0.7), n)
    sign = np.where(rng.random((n, 4)) < 0.5, -1, 1)
    sign[:, 0] = 1
    mixture = sign * np.sqrt(share)
    return EarlyModel(x, y, size, energy.astype(np.float32), mixture.astype(np.float32))


def make_higher_weights(seed: int, subject: str, brain: Brain) -> NDArray[np.float32]:
    """Tune the higher ROI's voxels to the attributes of :func:`bidsapp.demo.scenes.attributes`.

    Every attribute has a spatially smooth random field over the ROI. A voxel keeps the attributes with the
    highest values at its location, so that patches of voxels prefer the same few settings, kinds of object
    or colours, and some of them a kind at a place (left, middle, right).

    Returns
    -------
    ndarray of float32, shape (n_voxels, n_attributes)
        For ``brain.voxels("higher")``, in that order; most entries are zero.
    """
    rng = generator(seed, subject, "higher")
    n_kinds, n_colours, n_places = len(scenes.KINDS), len(scenes.COLOURS), len(scenes.PLACES)
    # per group: number of attributes, how many of them a voxel keeps, and their strength
    groups = (
        (len(scenes.SETTINGS), 2, 0.8),
        (n_kinds, 2, 1.1),
        (n_colours, 1, 0.7),
        (n_kinds * n_places, 3, 0.8),
        (n_kinds * n_colours, 2, 0.5),
        (1, 1, 0.3),
    )
    parts = []
    for size, kept, strength in groups:
        preference = _neighbourly(rng, brain, "higher", size)
        rank = np.argsort(np.argsort(-preference, axis=1), axis=1)
        sign = np.where(rng.random(preference.shape) < 0.15, -1, 1)  # a few are suppressed
        parts.append(np.where(rank < kept, strength * sign * np.abs(preference), 0.0))
    return np.concatenate(parts, axis=1).astype(np.float32)


def higher_signal(attributes: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Noise-free responses of the higher ROI (n, n_voxels), as z-scores over the scenes.

    ``attributes`` (n, n_attributes) are standardised, then weighted by those of :func:`make_higher_weights`.
    The response is zero where a voxel's attributes do not vary.
    """
    centred = attributes - attributes.mean(axis=0)
    spread = centred.std(axis=0)
    standard = centred / np.where(spread > 0, spread, 1)
    return _standardise(standard.astype(np.float32) @ weights.T)


def add_unexplained(
    rng: np.random.Generator, signal: NDArray[np.float32], share: float
) -> NDArray[np.float32]:
    """Replace a share (0 to 1) of the signal's variance by responses that no known feature explains.

    They are the same whenever a scene is shown, so they count as signal, but they are unrelated to the
    scene's content. Their covariance over voxels is that of the signal, so pooling voxels does not average
    them out. Takes and returns z-scores over the scenes (n, n_voxels).
    """
    mixing = rng.standard_normal((len(signal), len(signal)), dtype=np.float32) / np.sqrt(len(signal))
    other = mixing.astype(np.float32) @ signal
    return _standardise(np.sqrt(np.float32(1 - share)) * signal + np.sqrt(np.float32(share)) * other)


def _neighbourly(rng: np.random.Generator, brain: Brain, roi: str, n: int) -> NDArray[np.float64]:
    """Random values (n_voxels, n), standard normal, correlated between neighbouring voxels."""
    index = tuple(brain.voxels(roi).T)
    shared = smooth_fields(rng, brain.shape, n, width=2.0)[(slice(None), *index)].T
    own = rng.standard_normal(shared.shape)
    return np.asarray(np.sqrt(0.8) * shared + np.sqrt(0.2) * own)


def _rank(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks scaled to the open interval 0 to 1."""
    return (np.argsort(np.argsort(values, kind="stable")) + 0.5) / len(values)


def _standardise(signal: NDArray[np.float32]) -> NDArray[np.float32]:
    """Z-score each column in float64 (ddof 0); a constant column becomes zero."""
    wide = signal.astype(np.float64)
    wide -= wide.mean(axis=0)
    spread = wide.std(axis=0)
    return (wide / np.where(spread > 1e-9, spread, 1)).astype(np.float32)
