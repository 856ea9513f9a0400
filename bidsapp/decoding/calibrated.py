"""Predictions of the test images and their calibration in one pass over the training targets.

Every block of targets is read once: test images and held-out training images are predicted from it, the
calibration of its dimensions follows, and both predictions are written. Dimensions do not depend on each
other, so nothing larger than a block lies in memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bidsapp.decoding import calibration
from bidsapp.decoding.backends import NUMPY, Backend
from bidsapp.decoding.streaming import Predictor, Sliceable, TargetBlocks

Vector = npt.NDArray[np.float64]

METHODS = ("train-cv", "transductive", "none")


def predict_calibrated(
    predict: npt.NDArray[Any],
    held_out: npt.NDArray[Any],
    y: Sliceable,
    method: str,
    *,
    raw: Any,
    calibrated: Any,
    block: int | None = None,
    backend: Backend = NUMPY,
    what: str = "",
) -> tuple[Vector, Vector] | None:
    """Predict all targets of the test images and calibrate them.

    Parameters
    ----------
    predict : ndarray of float, (m, n)
        Operator of the test images (``RidgeDecoder.operator``).
    held_out : ndarray of float, (k, n)
        Leave-one-out operator of training images, which "train-cv" calibrates by.
    y : array-like or HDF5 dataset of float, (n, d)
        Training targets.
    method : {"train-cv", "transductive", "none"}
        See :mod:`bidsapp.decoding.calibration`.
    raw, calibrated : ndarray, HDF5 dataset or ArrayOnDisk of float32, (m, d)
        Where the predictions are written.
    block : int, optional
        Dimensions at once (see ``TargetBlocks``). Results differ between block sizes by
        rounding of float32 sums only (less than 1e-5 of the predictions' spread).
    backend : Backend
    what : str, optional
        Title of the progress shown.

    Returns
    -------
    (scale, shift) : ndarrays of float64, (d,), or None
        For "train-cv", ``calibrated = scale * raw + shift``; the other methods have no such constants
        (or none that another image could use).

    Raises
    ------
    ValueError
        For shapes that do not match, targets that are not finite, an unknown method.
    AppError
        Exit code 65 for "transductive" with a single test image.
    """
    n, d = y.shape
    for operator in (predict, held_out):
        if operator.shape[1] != n:
            raise ValueError(f"targets of shape {(n, d)} given for an operator of shape {operator.shape}")
    if method not in METHODS:
        raise ValueError(f"method {method!r} is not one of {', '.join(METHODS)}")
    of_test = Predictor(predict, backend)
    of_train = Predictor(held_out, backend) if method == "train-cv" else None
    scale, shift = np.empty(d), np.empty(d)
    for part in TargetBlocks(y, block, what):
        predicted = of_test.predict(part)
        raw[:, part.columns] = predicted
        if of_train is not None:
            fitted = calibration.fit(of_train.predict(part), part.moments())
            scale[part.columns] = fitted.scale
            shift[part.columns] = fitted.mean_target - fitted.scale * fitted.mean_pred
            predicted = fitted.apply(predicted)
        elif method == "transductive":
            predicted = calibration.transductive(predicted, part.moments())
        calibrated[:, part.columns] = predicted
    return (scale, shift) if of_train is not None else None
