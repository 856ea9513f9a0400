"""Contributions of regions to predictions: synthetic activations, and voxels set to their mean.

Predictions are linear in the responses, so a region's contribution needs no refit and no weights of all
targets.

*Synthetic activation*: a response of 1 in a region's voxels and 0 elsewhere, passed through the ridge
weights W = X^T (K + alpha I)^-1 Y (X and Y about their means), is the operator of that response times Y.

*Part of the voxels*: two-way identification compares, for a prediction p = x W, the correlations with true
targets z_i. With z_i about its mean over dimensions and of length 1, the correlation is p . z_i up to a
factor that depends on p alone, so only ``x (W z_i)`` is needed. ``W Z^T`` (voxels x test images) is itself
the weights of a ridge, for the targets ``Y Z^T`` (training images x test images). With it, any set of voxels
costs one product of ``x[:, set]`` and ``(W Z^T)[set]``, and hundreds of random sets can be compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bidsapp.decoding.backends import NUMPY, Backend
from bidsapp.decoding.calibration import Calibration
from bidsapp.decoding.decoder import RidgeDecoder
from bidsapp.decoding.streaming import Predictor, Sliceable, TargetBlocks

Array = npt.NDArray[np.float32]

#: A target whose spread is below this share of the training targets' varies by rounding only.
_CONSTANT = 1e-6


def synthetic_targets(
    operator: npt.NDArray[Any],
    y: Sliceable,
    norm: float,
    calibrated_norm: float = 0.0,
    backend: Backend = NUMPY,
) -> Array:
    """Compute the targets of synthetic activations, scaled to a fixed length.

    As in the code published with Brain-Diffuser (``roi_generate_features.py``), the activation times the
    weights is scaled to ``norm``, then the intercept is added. With ``calibrated_norm``, each dimension's
    mean and spread over the activations are replaced by those over training images, and the result is
    scaled to that length. This compares regions, so a single one is not calibrated.

    Parameters
    ----------
    operator : ndarray of float, (k, n)
        Of the activations (``RidgeDecoder.operator``).
    y : array-like or HDF5 dataset of float, (n, d)
        Training targets.
    norm : float
        Euclidean length over all dimensions; 0 for the training targets' own (root mean square distance
        from their mean).
    calibrated_norm : float
        0 for no calibration.

    Returns
    -------
    ndarray of float32, (k, d)
    """
    k, d = len(operator), y.shape[1]
    away = np.empty((k, d))
    mean, std = np.empty(d), np.empty(d)
    predictor = Predictor(operator, backend)
    for part in TargetBlocks(y):
        away[:, part.columns] = predictor.predict(part) - part.mean
        mean[part.columns] = part.mean
        std[part.columns] = part.centred.std(axis=0, dtype=np.float64)
    length = norm or float(np.sqrt((std**2).sum()))
    made = _of_length(away, length) + mean
    if calibrated_norm and k > 1:
        calibrated = Calibration(made.mean(axis=0), made.std(axis=0), mean, std, floor=0.0)
        made = _of_length(calibrated.apply(made.astype(np.float32)), calibrated_norm)
    return made.astype(np.float32)


def _of_length(rows: npt.NDArray[Any], length: float) -> npt.NDArray[np.float64]:
    """Scale each row to a length; rows of zeros stay zero."""
    size = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(rows * (length / np.where(size > 0, size, 1.0)))


def similarity_weights(
    decoder: RidgeDecoder, y: Sliceable, true: Sliceable, alpha: float
) -> npt.NDArray[Any]:
    """Compute the weights from voxels to the similarity with each test image's target.

    Parameters
    ----------
    decoder : RidgeDecoder
        Of n training rows and p voxels.
    y, true : array-like or HDF5 dataset of float, (n, d) and (m, d)
        Targets of training and test images.

    Returns
    -------
    ndarray of float, (p, m)
        ``x @ weights``, x about the training mean, is the covariance over dimensions of the prediction and
        each test target, both about the training mean, divided by the target's spread; 0 for a target
        without spread about that mean.
    """
    n, m = y.shape[0], true.shape[0]
    d = y.shape[1]
    products = np.zeros((n, m))
    sums_y, sums, squares, ordinary = np.zeros(n), np.zeros(m), np.zeros(m), 0.0
    for part in TargetBlocks(y):
        z = (np.asarray(true[:, part.columns], dtype=np.float64) - part.mean).astype(np.float32)
        products += part.centred @ z.T
        sums_y += part.centred.sum(axis=1, dtype=np.float64)
        sums += z.sum(axis=1, dtype=np.float64)
        squares += np.einsum("ij,ij->i", z, z, dtype=np.float64)
        ordinary += float(np.einsum("ij,ij->", part.centred, part.centred, dtype=np.float64)) / n
    products -= np.outer(sums_y, sums) / d
    spread = np.sqrt(np.maximum(squares - sums**2 / d, 0))
    spread[spread <= _CONSTANT * np.sqrt(ordinary)] = np.inf
    products /= spread
    return decoder.weights(products, alpha)


def part_similarity(
    x: npt.NDArray[Any], weights: npt.NDArray[Any], inside: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """Similarity of true targets (rows) to predictions from some voxels (columns), others at their mean.

    Parameters
    ----------
    x : ndarray of float, (m, p)
        Test responses about the training mean.
    weights : ndarray of float, (p, m)
        From :func:`similarity_weights`.
    inside : ndarray of bool (p,), or of int
        The voxels.

    Returns
    -------
    ndarray of float64, (m, m)
        Up to a positive factor per column. It is additive: that of all voxels minus that of some voxels is
        that of the others.
    """
    return np.asarray((x[:, inside] @ weights[inside]).T, dtype=np.float64)


def with_ties(similarity: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Round to 5 decimals of each column's largest value, so that equal targets tie."""
    size = np.abs(similarity).max(axis=0)
    return np.asarray(np.round(similarity / np.where(size > 0, size, 1.0), 5))
