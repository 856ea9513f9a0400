"""Write the model file, which predicts targets of new responses without training data or refitting.

Layout (HDF5), with v voxels, r = min(training images, v) components and d dimensions of a target:

===============================  ================  ================================================
``voxel_index``                  int64 (v,)        positions in the volume; attributes order, shape
``voxel_mean``, ``voxel_std``    float64 (v,)      of the training responses, to z-score new ones
``train_mean``                   float64 (v,)      mean of the z-scored training responses, nearly 0
``projections/<alpha>``          float32 (v, r)    P
``targets/<name>/coefficients``  int16 (d, r)      C, transposed; float32 where int16 is not enough
``.../factors``                  float32 (d,)      C = coefficients * factors (none for float32)
``.../mean``                     float32 (d,)      of the training targets
``.../calibration_scale, _shift``  float64 (d,)    with the calibration train-cv
``.../weights``                  float32 (d, v)    with ``--save-weights``; for z-scored responses
===============================  ================  ================================================

With x new responses, z-scored: targets = ``mean + ((x - train_mean) @ P) @ C``, then calibrated
``scale * targets + shift``. See :mod:`bidsapp.decoding.compact` for P and C, and
:mod:`bidsapp.decoding.model_file`, which reads it.

Attributes of a target: ``alpha``; ``projection``, the name of its P; ``largest_error`` and
``typical_error`` (root mean square): the difference between predictions from this file and the run's own on
up to 64 test images, relative to the spread of a dimension's predictions over them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bidsapp.decoding.compact import CompactForm, features, quantise, row_blocks
from bidsapp.decoding.decoder import RidgeDecoder, alpha_name
from bidsapp.decoding.streaming import Sliceable, TargetBlock, TargetBlocks
from bidsapp.records import Mask
from bidsapp.storage.hdf5 import write_hdf5

LOG = logging.getLogger("bidsapp")

FORMAT, VERSION = "bidsapp-recon ridge model", 2
#: Test images on which predictions from the file are checked.
_CHECKED = 64
#: Largest error, relative to a dimension's spread, that 16-bit coefficients may have.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class VoxelScaling:
    """Where the responses come from, and how new ones are z-scored.

    Attributes
    ----------
    mask : Mask
        Of the v voxels used.
    mean, std : ndarray of float64, (v,)
        Of the training responses.
    """

    mask: Mask
    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]


@dataclass(frozen=True)
class FittedTarget:
    """One target of the fit.

    Attributes
    ----------
    y : array-like or HDF5 dataset of float, (n, d)
        Training targets.
    raw : array-like of float32, (m, d)
        The run's uncalibrated predictions of the test images, against which the file is checked.
    scale, shift : ndarray of float64, (d,), or None
        Calibration.
    about : mapping
        Further attributes of its group in the file.
    """

    alpha: float
    y: Sliceable
    raw: Any
    scale: npt.NDArray[np.float64] | None = None
    shift: npt.NDArray[np.float64] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FittedModel:
    """A fit with all its targets.

    Attributes
    ----------
    decoder : RidgeDecoder
        Of the z-scored training responses.
    targets : mapping of str to FittedTarget
        Targets with the same alpha share P.
    x_test : ndarray of float32, (m, v)
        Z-scored test responses.
    """

    decoder: RidgeDecoder
    voxels: VoxelScaling
    targets: Mapping[str, FittedTarget]
    x_test: npt.NDArray[np.float32]


def write_model(path: Path, model: FittedModel, *, save_weights: bool = False, key: str = "") -> None:
    """Write the model file, a block of targets at a time.

    Parameters
    ----------
    path : Path
        An existing file is overwritten (give a temporary path).
    save_weights : bool
        Also write the weights, float32 (d, v) per target.
    key : str, optional
        Identifies what the file is made from, for :func:`made_from`.

    Raises
    ------
    OSError
        Where the disk is full.
    """
    decoder, voxels, targets = model.decoder, model.voxels, model.targets
    with write_hdf5(path) as (file, check):
        file.attrs["format"], file.attrs["version"], file.attrs["made_from"] = FORMAT, VERSION, key
        file["voxel_index"] = voxels.mask.flat_index
        file["voxel_index"].attrs["order"] = "Fortran"
        file["voxel_index"].attrs["shape"] = voxels.mask.shape
        file["voxel_mean"], file["voxel_std"] = voxels.mean, voxels.std
        file["train_mean"] = decoder.x_mean
        checked = np.asarray(model.x_test[:_CHECKED])
        # Ordered by alpha, so that each factor is computed once.
        for alpha in sorted({t.alpha for t in targets.values()}):
            form = CompactForm(decoder, alpha)
            key = alpha_name(alpha)
            projection = file.create_dataset(f"projections/{key}", (form.n_features, form.rank), "f4")
            for rows, values in form.projection():
                projection[rows] = values
                check()
            new = features(checked, decoder.x_mean, projection)
            for name, target in targets.items():
                if target.alpha == alpha:
                    writer = _TargetWriter(file.create_group(f"targets/{name}"), target, form, new)
                    writer.group.attrs["projection"] = key
                    for part in TargetBlocks(target.y, what=f"model file, {name} (blocks of dimensions)"):
                        writer.add(part)
                        if save_weights:
                            writer.add_weights(part, projection)
                        check()
                    writer.finish(name)


def made_from(path: Path) -> str | None:
    """Give the key with which a model file was written; None if it is missing or damaged."""
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            return str(file.attrs["made_from"])
    except (OSError, KeyError, ValueError, RuntimeError):
        return None


class _TargetWriter:
    """Writes one target's coefficients and measures their error."""

    def __init__(self, group: Any, target: FittedTarget, form: CompactForm, new: npt.NDArray[Any]) -> None:
        self.group, self._target, self._form, self._new = group, target, form, new
        self._n_dims = int(target.y.shape[1])
        self._exact = False
        self._coefficients: npt.NDArray[np.float32] = np.empty((0, form.rank), np.float32)
        self._largest, self._squares, self._count = 0.0, 0.0, 0
        group.attrs["alpha"] = target.alpha
        for key, value in target.about.items():
            group.attrs[key] = value
        group.create_dataset("mean", (self._n_dims,), "f4")
        for key, constants in (("scale", target.scale), ("shift", target.shift)):
            if constants is not None:
                group[f"calibration_{key}"] = np.asarray(constants, dtype=np.float64)

    def add(self, part: TargetBlock) -> None:
        """Write a block; the first one decides whether 16 bits are enough for this target."""
        self._coefficients = self._form.coefficients(part)
        levels, factors = quantise(self._coefficients)
        if part.columns.start == 0:
            rounded = self._new @ (levels.T * factors)
            self._exact = self._errors(rounded, part)[0] > TOLERANCE
            shape = (self._n_dims, self._form.rank)
            self.group.create_dataset("coefficients", shape, "f4" if self._exact else "i2")
            if not self._exact:
                self.group.create_dataset("factors", (self._n_dims,), "f4")
        self.group["mean"][part.columns] = part.mean
        if self._exact:
            self.group["coefficients"][part.columns] = self._coefficients
            predicted = self._new @ self._coefficients.T
        else:
            self.group["coefficients"][part.columns] = levels
            self.group["factors"][part.columns] = factors
            predicted = (self._new @ levels.T.astype(np.float32)) * factors
        largest, squares, count = self._errors(predicted, part)
        self._largest = max(self._largest, largest)
        self._squares += squares
        self._count += count

    def add_weights(self, part: TargetBlock, projection: Any) -> None:
        """Write the weights of the block last added, from its unrounded coefficients."""
        if "weights" not in self.group:
            self.group.create_dataset("weights", (self._n_dims, self._form.n_features), "f4")
        weights = np.empty((len(self._coefficients), self._form.n_features), dtype=np.float32)
        for voxels in row_blocks(self._form.n_features, self._form.rank):
            weights[:, voxels] = self._coefficients @ np.asarray(projection[voxels]).T
        self.group["weights"][part.columns] = weights

    def finish(self, name: str) -> None:
        """Write the errors that were measured."""
        self.group.attrs["largest_error"] = self._largest
        self.group.attrs["typical_error"] = float(np.sqrt(self._squares / max(1, self._count)))
        if self._largest > TOLERANCE:
            LOG.warning(
                "%s: predictions from the model file differ from the run's own by up to %.1g of their spread",
                name,
                self._largest,
            )

    def _errors(self, predicted: npt.NDArray[Any], part: TargetBlock) -> tuple[float, float, int]:
        """Largest error relative to the spread, sum of squares and count, of dimensions that vary."""
        raw = np.asarray(self._target.raw[: len(predicted), part.columns])
        spread = raw.std(axis=0, dtype=np.float64)
        varies = spread > 1e-6 * np.abs(part.mean)
        if not varies.any():
            return 0.0, 0.0, 0
        error = (predicted + part.mean - raw)[:, varies] / spread[varies]
        return float(np.abs(error).max()), float((error**2).sum()), error.size
