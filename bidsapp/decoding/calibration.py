"""Calibration: give predicted targets the mean and spread that true targets have.

Ridge predictions are shrunken towards the mean, but generative decoders expect latents and tokens of
natural spread. Per target dimension,

    calibrated = (prediction - mean_pred) / std_pred * std_target + mean_target      (``ddof=0``),

where mean_target and std_target are those of the training targets. There are two sources for mean_pred and
std_pred:

- :func:`fit`: leave-one-out predictions of training images. The result for an image depends on nothing
  but itself and the training set.
- :func:`transductive`: the test predictions themselves, as in the code published with Brain-Diffuser
  (Ozcelik & VanRullen 2023, arXiv:2303.05334). Each result then depends on which other test images there are.

A dimension whose predictions hardly vary is not scaled, since this would amplify noise (or give NaN): where
``std_pred <= floor * std_target`` the scale is 1, so that only the mean is shifted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bidsapp.errors import AppError, ExitCode

Array = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float64]

#: Elements processed at once.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation (``ddof=0``) of each dimension, each float64 (d,)."""

    mean: Vector
    std: Vector


@dataclass(frozen=True)
class Calibration:
    """Means and standard deviations of predictions and targets, each float64 (d,), and the floor.

    Attributes
    ----------
    mean_pred, std_pred : ndarray of float64, (d,)
        Of the predictions that calibrate (``ddof=0``).
    mean_target, std_target : ndarray of float64, (d,)
        Of the training targets (``ddof=0``).
    floor : float
        Predictions whose standard deviation is at most this share of the target's are not scaled.
    """

    mean_pred: Vector
    std_pred: Vector
    mean_target: Vector
    std_target: Vector
    floor: float = 1e-3

    @property
    def unscaled(self) -> npt.NDArray[np.bool_]:
        """Dimensions whose spread is not changed, (d,)."""
        flat: npt.NDArray[np.bool_] = self.std_pred <= self.floor * self.std_target
        return flat

    @property
    def scale(self) -> Vector:
        """Factor of each dimension, (d,): ``std_target / std_pred``, 1 where ``unscaled``."""
        flat = self.unscaled | (self.std_pred == 0)
        return np.where(flat, 1.0, self.std_target / np.where(flat, 1.0, self.std_pred))

    def apply(self, pred: npt.NDArray[np.float32]) -> Array:
        """Calibrate predictions, (m, d); float32."""
        d = self.mean_pred.size
        if pred.ndim != 2 or pred.shape[1] != d:
            raise ValueError(f"predictions have shape {pred.shape}; expected (m, {d})")
        scale = self.scale
        out = np.empty(pred.shape, dtype=np.float32)
        step = max(1, _BLOCK // max(1, pred.shape[0]))
        for start in range(0, d, step):
            c = slice(start, start + step)
            out[:, c] = (pred[:, c] - self.mean_pred[c]) * scale[c] + self.mean_target[c]
        return out


def fit(
    loo_predictions: npt.NDArray[np.float32], targets: npt.NDArray[np.float32] | Moments, floor: float = 1e-3
) -> Calibration:
    """Fit a calibration to leave-one-out predictions of training images.

    Parameters
    ----------
    loo_predictions : ndarray of float32, (k, d)
        Predictions of training images by models that did not see them; a sample of rows is enough.
    targets : ndarray or HDF5 dataset of float32, (n, d), or Moments
        Training targets, read in blocks of dimensions; or their moments, where those are known.
    floor : float
        See :class:`Calibration`.

    Raises
    ------
    ValueError
        For fewer than two rows, different numbers of dimensions, or values that are not finite.
    """
    if floor < 0:
        raise ValueError("floor must not be negative")
    of_target = targets if isinstance(targets, Moments) else _moments(targets, "targets")
    if loo_predictions.shape[1:] != of_target.mean.shape:
        shape, d = loo_predictions.shape, of_target.mean.size
        raise ValueError(f"predictions have shape {shape}; the targets have {d} dimensions")
    of_pred = _moments(loo_predictions, "predictions")
    return Calibration(of_pred.mean, of_pred.std, of_target.mean, of_target.std, floor)


def transductive(
    pred: npt.NDArray[np.float32], targets: npt.NDArray[np.float32] | Moments, floor: float = 0.0
) -> Array:
    """Calibrate test predictions by their own mean and spread, as Brain-Diffuser's published code does.

    With the default floor, only exactly constant dimensions are not scaled; the published code turns these
    into NaN.

    Parameters
    ----------
    pred : ndarray of float32, (m, d)
        Predictions of all test images.
    targets, floor
        As in :func:`fit`.

    Returns
    -------
    ndarray of float32, (m, d)

    Raises
    ------
    AppError
        Exit code 65 for a single test image, which has no spread.
    """
    if pred.shape[0] < 2:
        raise AppError(
            f"Transductive calibration needs at least two test images, but there are {pred.shape[0]}. "
            "Use the calibration 'train-cv', which calibrates each image separately.",
            exit_code=ExitCode.BAD_DATA,
        )
    return fit(pred, targets, floor).apply(pred)


def _moments(a: npt.NDArray[np.float32], what: str) -> Moments:
    """Mean and standard deviation (ddof=0) of each column, in float64."""
    if len(a.shape) != 2 or a.shape[0] < 2:
        raise ValueError(f"{what} have shape {a.shape}; expected (rows >= 2, d)")
    n, d = a.shape
    mean, std = np.empty(d), np.empty(d)
    step = max(1, _BLOCK // n)
    for start in range(0, d, step):
        c = slice(start, start + step)
        block = np.asarray(a[:, c], dtype=np.float64)
        mean[c] = np.add.reduce(block, axis=0) / n
        std[c] = np.sqrt(np.add.reduce((block - mean[c]) ** 2, axis=0) / n)
    if not (np.isfinite(mean).all() and np.isfinite(std).all()):
        raise ValueError(f"the {what} contain NaN or infinite values")
    return Moments(mean, std)
