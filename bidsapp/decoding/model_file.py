"""Read a model file and predict targets of new responses with it.

>>> from bidsapp.decoding.model_file import load                               # doctest: +SKIP
>>> with load("sub-01_task-nsdcore_desc-ridge_model.h5") as model:             # doctest: +SKIP
...     responses = model.responses(volumes)       # (images, X, Y, Z) -> (images, voxels)
...     targets = model.predict(responses)         # {"vdvae": (images, 91168), ...}

Responses have the units of the betas that the model was fitted to, averaged over repeats. For the layout of
the file see :mod:`bidsapp.decoding.model_writer`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from bidsapp.decoding.compact import features, row_blocks
from bidsapp.decoding.model_writer import FORMAT, VERSION
from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.hdf5 import DAMAGED, find_array

Array = npt.NDArray[np.float32]


class RidgeModel:
    """An open model file; as a context manager, it closes the file.

    Predictions are made in blocks of dimensions: memory is the result, the features (images x components)
    and a block of coefficients.

    Attributes
    ----------
    targets : tuple of str
        Names of the targets that it predicts.
    voxel_index : ndarray of int64, (v,)
        Positions of the voxels in the volume, flattened in Fortran order.
    """

    def __init__(self, path: Path, file: Any) -> None:
        self.path = path
        self._file = file
        if file.attrs.get("format") != FORMAT or int(file.attrs.get("version", 0)) != VERSION:
            raise _bad(path, f"this is not a model file of this version ({FORMAT}, {VERSION})")
        index = self._find(file, "voxel_index", 1)
        self.volume_shape = tuple(int(n) for n in index.attrs["shape"])
        self.voxel_index = np.asarray(index[:], dtype=np.int64)
        self._mean, self._std, self._train_mean = (
            np.asarray(self._find(file, name, 1, (self.n_voxels,))[:], dtype=np.float64)
            for name in ("voxel_mean", "voxel_std", "train_mean")
        )
        size = int(np.prod(self.volume_shape))
        if len(self.volume_shape) != 3 or not ((self.voxel_index >= 0) & (self.voxel_index < size)).all():
            raise _bad(path, f"it has voxels outside its volume of shape {self.volume_shape}")
        self.targets = tuple(sorted(self._group(file, "targets")))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def n_voxels(self) -> int:
        """Number of voxels."""
        return int(self.voxel_index.size)

    def alpha(self, target: str) -> float:
        """Penalty of a target."""
        return float(self._target(target).attrs["alpha"])

    def error(self, target: str) -> tuple[float, float]:
        """Give the largest and the typical error measured when the file was written.

        They are relative to the spread of a dimension's predictions over test images.
        """
        attributes = self._target(target).attrs
        return float(attributes["largest_error"]), float(attributes["typical_error"])

    def responses(self, volumes: npt.ArrayLike) -> npt.NDArray[Any]:
        """Take the model's voxels from volumes.

        Parameters
        ----------
        volumes : array-like, (X, Y, Z) or (images, X, Y, Z)

        Returns
        -------
        ndarray, (images, voxels)
        """
        array = np.asarray(volumes)
        if array.ndim not in (3, 4) or array.shape[-3:] != self.volume_shape:
            raise ValueError(f"volumes have shape {array.shape}; expected (images, *{self.volume_shape})")
        x, y, z = np.unravel_index(self.voxel_index, self.volume_shape, order="F")
        taken: npt.NDArray[Any] = array.reshape(-1, *self.volume_shape)[:, x, y, z]
        return taken

    def predict(
        self,
        responses: npt.ArrayLike,
        targets: Sequence[str] | None = None,
        *,
        zscored: bool = False,
        calibrated: bool = True,
    ) -> dict[str, Array]:
        """Predict targets of new responses.

        Parameters
        ----------
        responses : array-like, (m, voxels)
            In the units of the betas, one row per image.
        targets : sequence of str, optional
            All by default.
        zscored : bool
            The responses are already z-scored by the training images' mean and standard deviation.
        calibrated : bool
            Give predictions the mean and spread of the training targets, if the file has the constants
            (calibration train-cv); otherwise predictions are those of the ridge.

        Returns
        -------
        dict of ndarray of float32, (m, dims)

        Raises
        ------
        ValueError
            For another number of voxels, values that are not finite, or an unknown target.
        AppError
            Exit code 65 for a damaged file.
        """
        x = np.asarray(responses)
        if x.ndim != 2 or x.shape[1] != self.n_voxels:
            raise ValueError(f"responses have shape {x.shape}; expected (images, {self.n_voxels})")
        if not np.isfinite(x).all():
            raise ValueError("the responses contain NaN or infinite values")
        if not zscored:
            x = ((x - self._mean) / self._std).astype(np.float32)
        made: dict[str, Array] = {}
        new: dict[str, Array] = {}
        for name in self.targets if targets is None else targets:
            group = self._target(name)
            key = str(group.attrs["projection"])
            if key not in new:
                new[key] = features(x, self._train_mean, self._projection(key))
            made[name] = self._predict(group, new[key], calibrated)
        return made

    def weights(self, target: str, dims: slice = slice(None)) -> Array:
        """Give the weights of some dimensions for z-scored responses, float32 (dims, voxels).

        They are read from the file if it was written with ``--save-weights``, else computed. Those of all
        dimensions can be large.
        """
        group = self._target(target)
        if "weights" in group:
            saved = self._find(group, "weights", 2)
            return np.asarray(saved[dims], dtype=np.float32)
        coefficients = self._coefficients(group, dims)
        projection = self._projection(str(group.attrs["projection"]))
        out = np.empty((len(coefficients), self.n_voxels), dtype=np.float32)
        for voxels in row_blocks(self.n_voxels, coefficients.shape[1]):
            out[:, voxels] = coefficients @ np.asarray(projection[voxels]).T
        return out

    def _predict(self, group: Any, new: Array, calibrated: bool) -> Array:
        coefficients = self._find(group, "coefficients", 2)
        n_dims, rank = coefficients.shape
        if rank != new.shape[1]:
            raise _bad(self.path, f"{group.name} has {rank} components, its projection {new.shape[1]}")
        mean = np.asarray(self._find(group, "mean", 1, (n_dims,))[:])
        out = np.empty((len(new), n_dims), dtype=np.float32)
        for dims in row_blocks(n_dims, rank):
            out[:, dims] = new @ self._coefficients(group, dims).T
        out += mean
        if calibrated and "calibration_scale" in group:
            for name in ("scale", "shift"):
                constants = np.asarray(self._find(group, f"calibration_{name}", 1, (n_dims,))[:])
                out = (out * constants if name == "scale" else out + constants).astype(np.float32)
        return out

    def _coefficients(self, group: Any, dims: slice) -> Array:
        stored = self._find(group, "coefficients", 2)
        values = np.asarray(stored[dims], dtype=np.float32)
        if stored.dtype.kind == "i":
            values *= np.asarray(self._find(group, "factors", 1, (stored.shape[0],))[dims])[:, None]
        return values

    def _projection(self, key: str) -> Any:
        projection = self._find(self._group(self._file, "projections"), key, 2)
        if projection.shape[0] != self.n_voxels:
            rows = projection.shape[0]
            raise _bad(self.path, f"projections/{key} has {rows} rows, but there are {self.n_voxels} voxels")
        return projection

    def _target(self, name: str) -> Any:
        if name not in self.targets:
            raise ValueError(f"{self.path}: no target {name!r}; choose from {', '.join(self.targets)}")
        return self._group(self._group(self._file, "targets"), name)

    def _group(self, parent: Any, name: str) -> Any:
        import h5py

        link = parent.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink) or not isinstance(parent[name], h5py.Group):
            raise _bad(self.path, f"the group {name!r} is missing in {parent.name}")
        return parent[name]

    def _find(self, parent: Any, name: str, n_axes: int, shape: tuple[int, ...] | None = None) -> Any:
        array = find_array(parent, self.path, name, n_axes)
        if shape is not None and array.shape != shape:
            raise _bad(self.path, f"{parent.name}/{name} has shape {array.shape}; expected {shape}")
        return array


def load(path: str | os.PathLike[str]) -> RidgeModel:
    """Open a model file.

    Close the model, or use it in a ``with`` block.

    Parameters
    ----------
    path : path
        A ``*_desc-ridge_model.h5`` file.

    Raises
    ------
    AppError
        Exit code 66 for a missing file, 65 for one that is damaged or not a model file.
    """
    import h5py

    where = Path(path)
    if not where.is_file():
        raise AppError(f"{where}: no such file.", exit_code=ExitCode.NO_INPUT, path=where)
    try:
        file = h5py.File(where, "r", locking=False)
    except DAMAGED as error:
        raise _bad(where, f"the file is not HDF5, or is truncated ({error})") from error
    try:
        return RidgeModel(where, file)
    except AppError:
        file.close()
        raise
    except DAMAGED as error:
        file.close()
        raise _bad(where, f"the file is damaged ({error})") from error


def _bad(path: Path, what: str) -> AppError:
    text = f"{path}: {what}. Give another model file, or write it again."
    return AppError(text, exit_code=ExitCode.BAD_DATA, path=path)
