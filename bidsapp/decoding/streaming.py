"""Predictions of any number of targets, a block of targets at a time.

With an operator A (rows to predict x training images), which does not depend on the targets,

    prediction = mean(Y) + A (Y - mean(Y)),

so a block of targets (training images x some dimensions) is read, centred, multiplied and written before the
next, which is read in the meantime. Dimensions do not depend on each other, so nothing larger than a block is
held in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bidsapp.decoding import calibration
from bidsapp.decoding.backends import NUMPY, Backend
from bidsapp.decoding.calibration import Moments
from bidsapp.system.logging import track

Array = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float64]

#: Dimensions of a block, where a target is cut into blocks: as wide as the chunks of the target store.
WIDTH = 4096
#: Targets of at most this many elements (64 MiB of float32) are one block; no block has more than four times
#: as many.
BLOCK = 1 << 24
#: Columns of a block that are checked against float64, where the operator is float64.
_CHECKED = 4
#: Largest error of a checked column, relative to its spread, that float32 may have.
_TOLERANCE = 2e-5


class Sliceable(Protocol):
    """What targets must provide: an array, a memory map or an HDF5 dataset of shape (n, d)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(images, targets)."""

    def __getitem__(self, key: Any, /) -> Any:
        """Give ``y[:, a:b]`` as an array."""


@dataclass(frozen=True)
class TargetBlock:
    """Some dimensions of the training targets.

    Attributes
    ----------
    columns : slice
        Which dimensions.
    values : ndarray of float, (n, b)
        As read.
    mean : ndarray of float64, (b,)
    centred : ndarray of float32, (n, b)
    """

    columns: slice
    values: npt.NDArray[Any]
    mean: npt.NDArray[np.float64]
    centred: Array

    def moments(self, rows: int = 256) -> Moments:
        """Mean and standard deviation of each dimension over the training images.

        Squares are summed in float32 over ``rows`` images, and these sums in float64: accurate to about
        1e-7 of the result, in a tenth of the time that float64 takes.
        """
        total = np.zeros(self.mean.size)
        for start in range(0, len(self.centred), rows):
            some = self.centred[start : start + rows]
            total += np.einsum("ij,ij->j", some, some)
        return Moments(self.mean, np.sqrt(total / len(self.centred)))


class TargetBlocks:
    """Targets by blocks of dimensions; a thread reads and centres the next block in the meantime.

    Parameters
    ----------
    y : array-like or HDF5 dataset of float, (n, d)
        ``y[:, a:b]`` is read in turn.
    block : int, optional
        Dimensions at once. By default all, where that is at most 64 MiB of float32; else 4096, or as many
        as fit in 256 MiB.
    what : str, optional
        Title of the progress bar, which is shown where there are several blocks; none by default.

    Raises
    ------
    ValueError
        For a block size below 1; while iterating, for targets that are not finite.
    """

    def __init__(self, y: Sliceable, block: int | None = None, what: str = "") -> None:
        n, d = y.shape
        step = block if block is not None else _width(n, d)
        if step < 1:
            raise ValueError("block must be at least 1")
        self._y, self._what = y, what
        self.shape: tuple[int, int] = (n, d)
        self._parts = [slice(start, min(start + step, d)) for start in range(0, d, step)]

    def __iter__(self) -> Iterator[TargetBlock]:
        if len(self._parts) == 1:
            yield _read(self._y, self._parts[0])
            return
        with ThreadPoolExecutor(1, thread_name_prefix="targets") as reader:
            coming = [reader.submit(_read, self._y, part) for part in self._parts[:1]]
            following = [*self._parts[1:], None]
            for after in track(following, self._what) if self._what else following:
                here = coming.pop().result()
                if after is not None:
                    coming.append(reader.submit(_read, self._y, after))
                yield here


def _width(n: int, d: int) -> int:
    """Choose how many of d dimensions of n rows are processed at once."""
    return d if n * d <= BLOCK else min(WIDTH, max(1, 4 * BLOCK // n))


def _read(y: Sliceable, columns: slice) -> TargetBlock:
    values = np.asarray(y[:, columns])
    mean = values.mean(axis=0, dtype=np.float64)
    if not np.isfinite(mean).all():
        raise ValueError("the targets contain NaN or infinite values")
    centred = np.empty(values.shape, dtype=np.float32)
    np.subtract(values, mean, out=centred, casting="same_kind")
    return TargetBlock(columns, values, mean, centred)


class Predictor:
    """An operator, ready to predict blocks of targets.

    Parameters
    ----------
    operator : ndarray of float, (m, n)
        From ``RidgeDecoder.operator`` or ``loo_operator``. Where it is float64 (which means that the fit
        is badly conditioned), some columns of each block are also predicted in float64, and the whole
        block where float32 is not accurate enough.
    """

    def __init__(self, operator: npt.NDArray[Any], backend: Backend = NUMPY) -> None:
        self._exact = operator if operator.dtype == np.float64 else None
        self._backend = backend
        self._operator = backend.put(np.asarray(operator, dtype=np.float32))
        self.shape: tuple[int, int] = operator.shape

    def predict(self, block: TargetBlock) -> Array:
        """Predict a block: float32 (m, b)."""
        product = self._backend.take(self._operator @ self._backend.put(block.centred))
        if self._exact is not None and not self._accurate(product, block):
            exact: npt.NDArray[np.float64] = self._exact @ (block.values - block.mean) + block.mean
            return exact.astype(np.float32)
        product += block.mean.astype(np.float32)
        return product

    def _accurate(self, product: Array, block: TargetBlock) -> bool:
        d = block.mean.size
        some = np.unique(np.linspace(0, d - 1, min(_CHECKED, d)).astype(int))
        assert self._exact is not None
        centred = block.values[:, some] - block.mean[some]
        expected = self._exact @ centred
        error = np.abs(product[:, some] - expected).max(axis=0)
        # The spread of a single row, or of targets that cannot be predicted, means little.
        scale = np.maximum(expected.std(axis=0), 1e-3 * centred.std(axis=0))
        return bool((error <= _TOLERANCE * scale).all())


def predict_blocks(
    operator: npt.NDArray[Any],
    y: Sliceable,
    *,
    block: int | None = None,
    out: Any | None = None,
    backend: Backend = NUMPY,
) -> Array:
    """Predict all targets, a block of targets at a time.

    Parameters
    ----------
    operator : ndarray of float, (m, n)
        See :class:`Predictor`.
    y : array-like or HDF5 dataset of float, (n, d)
        Training targets.
    block : int, optional
        See :class:`TargetBlocks`. Results differ between block sizes by rounding only (a few units in the
        last place of float32).
    out : ndarray, HDF5 dataset or ArrayOnDisk of float32, (m, d), optional
        Where to write.

    Returns
    -------
    ndarray of float32, (m, d)
        ``mean(y) + operator @ (y - mean(y))``; ``out`` where it was given.
    """
    m, n = operator.shape
    if len(y.shape) != 2 or y.shape[0] != n:
        raise ValueError(f"targets have shape {tuple(y.shape)}; expected ({n}, d)")
    d = int(y.shape[1])
    result: Any = np.empty((m, d), dtype=np.float32) if out is None else out
    if tuple(result.shape) != (m, d):
        raise ValueError(f"out has shape {tuple(result.shape)}; expected {(m, d)}")
    predictor = Predictor(operator, backend)
    for part in TargetBlocks(y, block):
        result[:, part.columns] = predictor.predict(part)
    return result  # type: ignore[no-any-return]


def predict_calibrated(
    predictor: Predictor,
    held_out: Predictor | None,
    targets: TargetBlocks,
    method: str,
    *,
    raw: Any,
    calibrated: Any,
) -> tuple[Vector, Vector] | None:
    """Predict all targets of the test images and calibrate them, in one pass over the training targets.

    Parameters
    ----------
    predictor : Predictor, (m, n)
        Of the test images.
    held_out : Predictor, (k, n), or None
        Leave-one-out predictor of training images, which "train-cv" calibrates by.
    targets : TargetBlocks, (n, d)
        Training targets. Results differ between block sizes by rounding of float32 sums only (less than
        1e-5 of the predictions' spread).
    method : {"train-cv", "transductive", "none"}
        See :mod:`bidsapp.decoding.calibration`.
    raw, calibrated : ndarray, HDF5 dataset or ArrayOnDisk of float32, (m, d)
        Where the predictions are written.

    Returns
    -------
    (scale, shift) : ndarrays of float64, (d,), or None
        With "train-cv", ``calibrated = scale * raw + shift``. Other methods have no constants that apply
        to other images.

    Raises
    ------
    ValueError
        For shapes that do not match, targets that are not finite, or an unknown method.
    AppError
        Exit code 65 for "transductive" with a single test image.
    """
    n, d = targets.shape
    for shape in (p.shape for p in (predictor, held_out) if p is not None):
        if shape[1] != n:
            raise ValueError(f"targets have shape {(n, d)}; expected ({shape[1]}, d)")
    if method not in ("train-cv", "transductive", "none"):
        raise ValueError(f"unknown calibration {method!r}; choose train-cv, transductive or none")
    if method == "train-cv" and held_out is None:
        raise ValueError("calibration by train-cv needs predictions of held-out training images")
    scale, shift = np.empty(d), np.empty(d)
    for part in targets:
        predicted = predictor.predict(part)
        raw[:, part.columns] = predicted
        if method == "train-cv" and held_out is not None:
            fitted = calibration.fit(held_out.predict(part), part.moments())
            scale[part.columns] = fitted.scale
            shift[part.columns] = fitted.mean_target - fitted.scale * fitted.mean_pred
            predicted = fitted.apply(predicted)
        elif method == "transductive":
            predicted = calibration.transductive(predicted, part.moments())
        calibrated[:, part.columns] = predicted
    return (scale, shift) if method == "train-cv" else None
