"""A small simulated brain volume per subject: an ellipsoid with an early and a higher visual ROI."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bidsapp.demo.design import generator

#: Names of the labels of the segmentation, in the order of their numbers from 1.
ROI_NAMES = ("early", "higher")

VOXEL_MM = 3.0

_BASE_SHAPE = (24, 28, 18)
_BASE_VOXELS = 700


@dataclass(frozen=True)
class Brain:
    """The anatomy of one simulated subject.

    Attributes
    ----------
    affine : ndarray of float64, shape (4, 4)
        Voxel indices to mm, right-anterior-superior.
    inside : ndarray of bool, shape (x, y, z)
        The brain.
    labels : ndarray of int16, shape (x, y, z)
        0 elsewhere, 1 early, 2 higher visual ROI.
    """

    affine: NDArray[np.float64]
    inside: NDArray[np.bool_]
    labels: NDArray[np.int16]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y and z."""
        x, y, z = self.labels.shape
        return x, y, z

    def voxels(self, roi: str) -> NDArray[np.int64]:
        """Return the indices (n_voxels, 3) of the voxels of ``roi``, one of ``ROI_NAMES``, in C order."""
        return np.argwhere(self.labels == 1 + ROI_NAMES.index(roi))


def make_brain(seed: int, subject: str) -> Brain:
    """Make a subject's brain: about 24 x 28 x 18 voxels of 3 mm, with ROIs of 650 to 750 voxels each.

    Shape, affine, location of the ROIs and voxel counts differ between subjects.
    """
    rng = generator(seed, subject, "brain")
    shape = tuple(int(n + rng.integers(-1, 3)) for n in _BASE_SHAPE)
    grid = _unit_grid(shape)
    radius = np.sqrt(np.sum((grid / rng.uniform(0.90, 0.97, size=3)) ** 2, axis=-1))
    inside = radius < 1.0

    # Early: at the back, on the midline. Higher: one patch per hemisphere, further forward and lower.
    bumps = 0.12 * smooth_fields(rng, shape, len(ROI_NAMES), width=2.0)
    early = _distance(grid, (0.0, -0.72, -0.05), (1.1, 1.0, 1.0)) + bumps[0]
    side = float(rng.uniform(0.45, 0.52))
    higher = np.minimum(
        _distance(grid, (-side, -0.05, -0.35), (1.0, 0.7, 1.0)),
        _distance(grid, (side, -0.05, -0.35), (1.0, 0.7, 1.0)),
    )
    higher = higher + bumps[1]
    labels = np.zeros(shape, dtype=np.int16)
    for number, distance in enumerate((early, higher), start=1):
        wanted = int(rng.integers(_BASE_VOXELS - 50, _BASE_VOXELS + 51))
        cost = np.where(inside & (labels == 0), distance, np.inf)
        labels.flat[np.argsort(cost, axis=None, kind="stable")[:wanted]] = number
    return Brain(_affine(rng, shape), inside, labels)


def smooth_fields(
    rng: np.random.Generator, shape: tuple[int, ...], n: int, width: float
) -> NDArray[np.float32]:
    """Draw ``n`` spatially smooth Gaussian fields of zero mean and unit variance at every voxel.

    ``shape`` is (x, y, z); ``width`` is the standard deviation of the smoothing kernel, in voxels.
    """
    return smooth(rng.standard_normal((n, *shape), dtype=np.float32), width)


def smooth(fields: NDArray[np.float32], width: float) -> NDArray[np.float32]:
    """Smooth white noise (n, x, y, z) along its three axes, keeping a variance of one.

    Each axis is smoothed by a matrix whose rows have unit norm, so the variance is exact at the borders too.
    """
    n, x, y, z = fields.shape
    kx, ky, kz = (_smoothing_matrix(side, width) for side in (x, y, z))
    out = fields.reshape(n, x * y, z) @ kz.T
    out = ky @ out.reshape(n, x, y, z)
    out = kx @ out.reshape(n, x, y * z)
    return out.reshape(n, x, y, z)


def _smoothing_matrix(side: int, width: float) -> NDArray[np.float32]:
    steps = np.arange(side)
    kernel = np.exp(-0.5 * ((steps[:, None] - steps[None, :]) / width) ** 2)
    kernel /= np.linalg.norm(kernel, axis=1, keepdims=True)
    return kernel.astype(np.float32)


def _unit_grid(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Coordinates (x, y, z, 3) of the voxel centres, -1 to 1 along each axis."""
    axes = [(np.arange(n) + 0.5) / n * 2 - 1 for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def _distance(
    grid: NDArray[np.float64], centre: tuple[float, float, float], squeeze: tuple[float, float, float]
) -> NDArray[np.float64]:
    offset = (grid - np.asarray(centre)) * np.asarray(squeeze)
    return np.asarray(np.sqrt(np.sum(offset**2, axis=-1)))


def _affine(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Voxel indices to mm: 3 mm voxels, the head slightly rotated, the origin near the middle."""
    pitch, yaw = np.deg2rad(rng.uniform(-8, 8, size=2))
    turn_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    turn_z = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn_z @ turn_x * VOXEL_MM
    middle = (np.asarray(shape) - 1) / 2
    affine[:3, 3] = np.round(rng.uniform(-4, 4, size=3), 2) - affine[:3, :3] @ middle
    # NIfTI headers hold float32: rounded here, the affine is the same in all files of a subject.
    return affine.astype(np.float32).astype(np.float64)
