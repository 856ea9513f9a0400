"""The encoding model: energy, colour, receptive fields, semantic tuning."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from bidsapp.demo import scenes
from bidsapp.demo.brain import Brain, make_brain
from bidsapp.demo.encoding import (
    N_CHANNELS,
    N_ENERGY,
    N_ORIENTATIONS,
    WAVELENGTHS,
    EarlyModel,
    add_unexplained,
    higher_signal,
    local_features,
    make_early_model,
    make_higher_weights,
)


@pytest.fixture(scope="module")
def brain() -> Brain:
    return make_brain(0, "01")


@pytest.fixture(scope="module")
def early(brain: Brain) -> EarlyModel:
    return make_early_model(0, "01", brain)


def grating(wavelength: float, angle: float, phase: float = 0.0, contrast: float = 0.8) -> NDArray[np.uint8]:
    y, x = np.mgrid[:64, :64]
    wave = np.cos(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / wavelength + phase)
    grey = np.rint(127.5 * (1 + contrast * wave)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def centre_energy(images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Mean energy (n, scales, orientations) over the middle of the image."""
    maps = local_features(np.stack(images))[:, :N_ENERGY, 8:24, 8:24].mean(axis=(2, 3))
    return maps.reshape(len(images), len(WAVELENGTHS), N_ORIENTATIONS)


@pytest.mark.parametrize("scale", range(3))
@pytest.mark.parametrize("orientation", range(N_ORIENTATIONS))
def test_a_grating_drives_its_own_scale_and_orientation_most(scale: int, orientation: int) -> None:
    energy = centre_energy([grating(WAVELENGTHS[scale], orientation * np.pi / N_ORIENTATIONS)])[0]
    assert np.argmax(energy[scale]) == orientation
    assert energy[scale, orientation] > 2 * np.sort(energy[scale])[-2]
    # Contrast normalisation works within a scale, so scales are compared by the tuned response.
    assert np.argmax(energy.max(axis=1) - energy.min(axis=1)) == scale


def test_energy_is_blind_to_phase_and_saturates_with_contrast() -> None:
    phases = centre_energy([grating(8, 0.0, phase) for phase in np.linspace(0, np.pi, 7)])[:, 1, 0]
    assert np.ptp(phases) < 0.03 * phases.mean()
    weak, middle, strong = centre_energy([grating(8, 0.0, contrast=c) for c in (0.05, 0.4, 0.8)])[:, 1, 0]
    assert weak < middle < strong < 1.5 * middle


def test_a_uniform_field_has_brightness_and_colour_but_no_energy() -> None:
    images = np.empty((3, 64, 64, 3), np.uint8)
    images[0], images[1], images[2] = 128, (255, 0, 0), (0, 0, 255)
    maps = local_features(images)
    assert maps.shape == (3, N_CHANNELS, 32, 32)
    inner = maps[:, :, 12:20, 12:20]
    assert np.abs(inner[0, :N_ENERGY]).max() < 0.1  # 128 is a trace off grey at the faded border
    luminance, red_green, blue_yellow = (inner[:, N_ENERGY + c].mean(axis=(1, 2)) for c in range(3))
    assert luminance == pytest.approx([128 / 255 - 0.5, 0.299 - 0.5, 0.114 - 0.5], abs=1e-5)
    assert red_green == pytest.approx([0, 1, 0], abs=1e-6)
    assert blue_yellow == pytest.approx([0, -0.5, 1], abs=1e-6)


def test_colour_maps_are_block_means_of_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    blocks = (image.astype(float) / 255).reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    maps = local_features(image)[0]
    assert maps[N_ENERGY + 1] == pytest.approx(blocks[..., 0] - blocks[..., 1], abs=1e-6)
    assert maps[N_ENERGY] == pytest.approx(blocks @ [0.299, 0.587, 0.114] - 0.5, abs=1e-6)


def test_receptive_fields_are_where_they_should_be(early: EarlyModel, brain: Brain) -> None:
    pooling = early.pooling().reshape(-1, 32, 32).astype(float)
    assert pooling.sum(axis=(1, 2)) == pytest.approx(np.ones(len(pooling)), abs=1e-5)
    centres = (np.arange(32) + 0.5) / 16 - 1
    inner = (np.hypot(early.x, early.y) < 0.4) & (early.size < 0.15)
    assert inner.sum() > 50
    assert pooling.sum(axis=1)[inner] @ centres == pytest.approx(early.x[inner], abs=0.01)
    assert pooling.sum(axis=2)[inner] @ centres == pytest.approx(early.y[inner], abs=0.01)
    eccentricity = np.hypot(early.x, early.y)
    assert np.corrcoef(eccentricity, early.size)[0, 1] > 0.7
    # The visual field is crossed and upside down in the brain.
    voxels = brain.voxels("early")
    side = voxels[:, 0] < np.median(voxels[:, 0])
    assert np.median(early.x[side]) > 0.1
    assert np.median(early.x[~side]) < -0.1
    assert np.corrcoef(voxels[:, 2], early.y)[0, 1] > 0.5
    assert early.energy.sum(axis=1) == pytest.approx(np.ones(len(voxels)), abs=1e-5)
    assert np.all(early.energy >= 0)
    assert (early.mixture.astype(float) ** 2).sum(axis=1) == pytest.approx(np.ones(len(voxels)), abs=1e-5)
    # All of the image is covered, the corners least.
    coverage = pooling.sum(axis=0)
    assert coverage.min() > 0.01 * coverage.mean()
    assert coverage[12:20, 12:20].mean() > 2 * coverage.mean()


def test_a_voxel_responds_to_its_own_part_of_the_image(early: EarlyModel) -> None:
    images = np.stack([scenes.draw(scenes.make_scene(20_000, i), 64) for i in range(24)])
    changed = images.copy()
    changed[0, :, :26] = 255 - changed[0, :, :26]  # the left third of one image
    change = np.abs(early.signal(changed)[0] - early.signal(images)[0])
    assert change[early.x < -0.4].mean() > 3 * change[early.x > 0.4].mean()


def test_early_signal_is_the_formula_in_float64(early: EarlyModel) -> None:
    images = np.stack([scenes.draw(scenes.make_scene(20_000, i), 64) for i in range(70)])
    signal = early.signal(images)  # more images than one batch
    maps = local_features(images).astype(float).reshape(70, N_CHANNELS, -1)
    for v in (0, 100, 500):
        pooled = maps @ early.pooling()[v].astype(float)
        drives = np.column_stack([np.sqrt(pooled[:, :N_ENERGY] @ early.energy[v]), pooled[:, N_ENERGY:]])
        drives = (drives - drives.mean(axis=0)) / (drives.std(axis=0) + 1e-6)
        expected = drives @ early.mixture[v]
        expected = (expected - expected.mean()) / expected.std()
        assert signal[:, v] == pytest.approx(expected, abs=2e-3)


def test_higher_tuning_is_sparse_and_shared_by_neighbours(brain: Brain) -> None:
    weights = make_higher_weights(0, "01", brain).astype(float)
    voxels = brain.voxels("higher")
    assert weights.shape == (len(voxels), len(scenes.attributes(scenes.make_scene(1, 0))))
    assert np.all(np.count_nonzero(weights, axis=1) == 11)
    seen = np.count_nonzero(weights, axis=0)
    single = len(scenes.SETTINGS) + len(scenes.KINDS) + len(scenes.COLOURS)
    assert seen[:single].min() > 0
    assert np.mean(seen > 0) > 0.8
    unit = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    alike = unit @ unit.T
    distance = np.linalg.norm(voxels[:, None] - voxels[None], axis=-1)
    assert alike[distance == 1].mean() > 2 * abs(alike[distance > 6].mean()) + 0.1
    assert not np.allclose(weights[:600], make_higher_weights(0, "02", brain)[:600])


def test_higher_signal_is_the_formula_in_float64() -> None:
    rng = np.random.default_rng(0)
    attributes = rng.random((30, 6)).astype(np.float32)
    attributes[:, 5] = 1.0  # never varies
    weights = rng.standard_normal((4, 6)).astype(np.float32)
    weights[3, :5] = 0.0  # this voxel looks at nothing that varies
    signal = higher_signal(attributes, weights)
    wide = attributes.astype(float)[:, :5]
    expected = ((wide - wide.mean(axis=0)) / wide.std(axis=0)) @ weights[:3, :5].T.astype(float)
    expected = (expected - expected.mean(axis=0)) / expected.std(axis=0)
    assert signal[:, :3] == pytest.approx(expected, abs=1e-4)
    assert np.all(signal[:, 3] == 0)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_unexplained_share_keeps_variance_and_covariance(share: float) -> None:
    rng = np.random.default_rng(1)
    signal = rng.standard_normal((3000, 3)).astype(np.float32)
    signal[:, 1] = 0.8 * signal[:, 0] + 0.6 * signal[:, 1]
    signal = (signal - signal.mean(axis=0)) / signal.std(axis=0)
    mixed = add_unexplained(rng, signal, share)
    assert mixed.std(axis=0) == pytest.approx(np.ones(3), abs=1e-5)
    assert np.corrcoef(mixed.T) == pytest.approx(np.corrcoef(signal.T), abs=0.06)
    kept = [np.corrcoef(signal[:, v], mixed[:, v])[0, 1] for v in range(3)]
    assert kept == pytest.approx([np.sqrt(1 - share)] * 3, abs=0.06)
