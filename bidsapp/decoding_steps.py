"""The stages that decode: from responses and training targets to predicted targets of the test images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bidsapp.config import RunConfig
from bidsapp.data.targets import TargetRows
from bidsapp.decoding.backends import Backend, choose_backend
from bidsapp.decoding.calibrated import predict_calibrated
from bidsapp.decoding.decoder import RidgeDecoder
from bidsapp.decoding.streaming import ArrayOnDisk
from bidsapp.seeds import seed_for
from bidsapp.stages import StageResult, Stages
from bidsapp.steps import NULL


def fit_ridge(stages: Stages, responses: StageResult, config: RunConfig) -> StageResult:
    """One Gram matrix for all targets; for each penalty the operator that predicts from targets.

    Arrays ``predict_<alpha>`` (test, train) and ``loo_<alpha>`` (sampled train rows, train), and which rows
    those are.
    """
    alphas = sorted({t.alpha for t in config.recipe.targets.values()})
    max_rows = config.recipe.calibration.max_rows
    n, p = responses["train"].shape
    backend = choose_backend(config.device, n * p * min(n, p))

    def compute(folder: Path) -> dict[str, np.ndarray]:
        decoder = RidgeDecoder(responses["train"], backend=backend)
        rng = np.random.default_rng(seed_for(config.seed, "calibration rows"))
        rows = np.sort(rng.permutation(n)[: min(n, max_rows)])
        arrays: dict[str, np.ndarray] = {"loo_rows": rows}
        for alpha in alphas:
            predict, loo = f"predict_{alpha:g}", f"loo_{alpha:g}"
            arrays[predict] = _keep(folder, predict, decoder.operator(responses["test"], alpha))
            arrays[loo] = _keep(folder, loo, decoder.loo_operator(alpha, rows))
        return arrays

    inputs = {"after": responses.key, "alphas": alphas, "max_rows": max_rows, "seed": config.seed}
    return stages.run("ridge", inputs | {"backend": backend.name}, compute)


def predict_and_calibrate(
    stages: Stages,
    ridge: StageResult,
    targets: Mapping[str, TargetRows],
    targets_key: str,
    config: RunConfig,
    condition: str,
) -> StageResult:
    """Predicted targets of the test images, with the spread of the training targets.

    The null condition shuffles the pairing of responses and images in training, anew for every test
    image: the same operator meets permuted targets, which is the whole pipeline run on wrong pairs.
    One shuffle for all would send similar responses to the same wrong place, and the scores of a
    null would vary more than those of independent guesses do.

    Arrays ``<target>`` and ``<target>_raw`` (test, dims), and ``<target>_scale``, ``<target>_shift`` (dims)
    of the calibration "train-cv", for the model file: calibrated = scale * raw + shift.
    """
    method = config.recipe.calibration.method
    alphas = {name: config.recipe.targets[name].alpha for name in config.recipe.target_names}
    backends = {name: _backend(config, ridge[f"predict_{a:g}"], targets[name]) for name, a in alphas.items()}

    def compute(folder: Path) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for name, alpha in alphas.items():
            predict, loo = ridge[f"predict_{alpha:g}"], ridge[f"loo_{alpha:g}"]
            rows = targets[name]
            if condition == NULL:
                # Training targets in another order are the operator's columns in another order (the same
                # for every target, since each starts from the same seed).
                rng = np.random.default_rng(seed_for(config.seed, "null pairing"))
                predict, loo = rng.permuted(predict, axis=1), rng.permuted(loo, axis=1)
            shape = (predict.shape[0], rows.shape[1])
            made = {key: ArrayOnDisk(folder / f"{key}.npy", shape) for key in (name, f"{name}_raw")}
            constants = predict_calibrated(
                predict,
                loo,
                rows,
                method,
                raw=made[f"{name}_raw"],
                calibrated=made[name],
                backend=backends[name],
                what=f"predicting {name}, {condition} (blocks of dimensions)",
            )
            arrays |= {key: array.read() for key, array in made.items()}
            if constants is not None:
                arrays[f"{name}_scale"], arrays[f"{name}_shift"] = constants
        return arrays

    inputs = {"after": [ridge.key, targets_key], "method": method, "seed": config.seed}
    inputs |= {"alphas": alphas, "backends": {name: b.name for name, b in backends.items()}}
    return stages.run(f"latents_{condition}", inputs, compute)


def _backend(config: RunConfig, operator: np.ndarray, targets: TargetRows) -> Backend:
    """Choose where the products of an operator and targets are made."""
    return choose_backend(config.device, float(operator.size) * targets.shape[1])


def _keep(folder: Path, name: str, array: np.ndarray) -> np.ndarray:
    """Write an array of a stage at once, so that it does not wait for the others in memory."""
    np.save(folder / f"{name}.npy", array, allow_pickle=False)
    kept: np.ndarray = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return kept
