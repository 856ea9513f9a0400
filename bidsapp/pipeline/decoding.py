"""The stages that decode: from responses and training targets to predicted targets of the test images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bidsapp.config import RunConfig
from bidsapp.data.targets import TargetRows
from bidsapp.decoding.backends import Backend, choose_backend
from bidsapp.decoding.calibrated import predict_calibrated
from bidsapp.decoding.crossvalidation import AlphaSearch, Selection
from bidsapp.decoding.decoder import RidgeDecoder, alpha_name
from bidsapp.errors import AppError, ExitCode
from bidsapp.pipeline.records import NULL
from bidsapp.seeds import seed_for
from bidsapp.storage.npy import ArrayOnDisk
from bidsapp.storage.stages import StageResult, Stages

LOG = logging.getLogger("bidsapp")


def choose_alphas(
    stages: Stages,
    responses: StageResult,
    targets: Mapping[str, TargetRows],
    targets_key: str,
    config: RunConfig,
) -> dict[str, Selection]:
    """Choose each target's penalty, where the recipe lists several, by held-out training images.

    Array ``<target>`` (2, penalties): those tried, and the mean squared error of each. For a
    target with a single penalty nothing is computed.

    Raises
    ------
    AppError
        Exit code 65 for more folds than training images, or penalties too small for the responses.
    """
    recipe = config.recipe
    lists = {name: t.alphas for name, t in recipe.targets.items() if len(t.alphas) > 1}
    chosen = {name: Selection(t.alphas) for name, t in recipe.targets.items()}
    if not lists:
        return chosen
    n, p = responses["train"].shape
    backend = choose_backend(config.device, n * p * min(n, p))
    folds = recipe.ridge.folds if recipe.ridge.selection == "kfold" else None

    def compute(_: Path) -> dict[str, np.ndarray]:
        decoder = RidgeDecoder(responses["train"], backend=backend)
        try:
            search = AlphaSearch(decoder, sorted({a for alphas in lists.values() for a in alphas}), folds)
            found = {
                name: search.search(targets[name], alphas, what=f"penalty of {name} (blocks of dimensions)")
                for name, alphas in lists.items()
            }
        except ValueError as error:
            raise AppError(
                f"Recipe {recipe.name}: no penalty can be chosen: {error}. Mend [targets] or [ridge] of it.",
                exit_code=ExitCode.BAD_DATA,
            ) from error
        return {name: np.array([s.alphas, s.errors]) for name, s in found.items()}

    inputs = {"after": [responses.key, targets_key], "alphas": lists, "folds": folds, "backend": backend.name}
    done = stages.run("alphas", inputs, compute)
    for name in lists:
        alphas, errors = done[name].tolist()
        chosen[name] = found = Selection(tuple(alphas), tuple(errors))
        LOG.info("%s: penalty %g of %s", name, found.alpha, ", ".join(f"{a:g}" for a in alphas))
        if found.alpha in (min(alphas), max(alphas)):
            end = "smallest" if found.alpha == min(alphas) else "largest"
            LOG.warning("%s: that is the %s of the recipe's list; a wider one may do better", name, end)
    return chosen


def fit_ridge(
    stages: Stages,
    responses: StageResult,
    penalties: Mapping[str, Selection],
    probes: Mapping[str, np.ndarray],
    probes_key: Any,
    config: RunConfig,
) -> StageResult:
    """One Gram matrix for all targets; for each penalty the operators that predict from targets.

    Arrays ``predict_<alpha>`` (test, train) and ``loo_<alpha>`` (sampled train rows, train), and which rows
    those are; for the run's checks of itself ``<probe>_<alpha>`` (its responses, train) for each further
    set of responses, see :func:`bidsapp.analyses.controls.probes`.
    """
    alphas = sorted({s.alpha for s in penalties.values()})
    max_rows = config.recipe.calibration.max_rows
    n, p = responses["train"].shape
    backend = choose_backend(config.device, n * p * min(n, p))

    def compute(folder: Path) -> dict[str, np.ndarray]:
        decoder = RidgeDecoder(responses["train"], backend=backend)
        rng = np.random.default_rng(seed_for(config.seed, "calibration rows"))
        rows = np.sort(rng.permutation(n)[: min(n, max_rows)])
        arrays: dict[str, np.ndarray] = {"loo_rows": rows}
        sets = {"predict": responses["test"], **probes}
        operators = {name: decoder.operators(x, alphas) for name, x in sets.items()}
        for alpha in alphas:  # a penalty's factor serves all sets, and a set's products serve all penalties
            for name in sets:
                key = f"{name}_{alpha_name(alpha)}"
                arrays[key] = _keep(folder, key, next(operators[name]))
            key = _operators(alpha)[1]
            arrays[key] = _keep(folder, key, decoder.loo_operator(alpha, rows))
        return arrays

    inputs = {"after": responses.key, "alphas": alphas, "max_rows": max_rows, "seed": config.seed}
    return stages.run("ridge", inputs | {"backend": backend.name, "probes": probes_key}, compute)


def predict_and_calibrate(
    stages: Stages,
    ridge: StageResult,
    targets: Mapping[str, TargetRows],
    targets_key: str,
    penalties: Mapping[str, Selection],
    config: RunConfig,
    condition: str,
    rows: Sequence[int] | None = None,
    method: str | None = None,
) -> StageResult:
    """Predicted targets of the test images (or some ``rows`` of them), with the training targets' spread.

    The null condition shuffles the pairing of responses and images in training, anew for every test
    image: the same operator meets permuted targets, which is the whole pipeline run on wrong pairs.
    One shuffle for all would send similar responses to the same wrong place, and the scores of a
    null would vary more than those of independent guesses do. Its penalties are those of the brain.

    Arrays ``<target>`` and ``<target>_raw`` (test, dims), and ``<target>_scale``, ``<target>_shift`` (dims)
    of the calibration "train-cv", for the model file: calibrated = scale * raw + shift.
    """
    method = method or config.recipe.calibration.method
    alphas = {name: penalties[name].alpha for name in config.recipe.target_names}
    backends = {
        name: backend_for(config, ridge[_operators(alpha)[0]], targets[name])
        for name, alpha in alphas.items()
    }

    def compute(folder: Path) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for name, alpha in alphas.items():
            predict, loo = (ridge[key] for key in _operators(alpha))
            y = targets[name]
            if rows is not None:
                predict = predict[list(rows)]
            if condition == NULL:
                # Training targets in another order are the operator's columns in another order (the same
                # for every target, since each starts from the same seed).
                rng = np.random.default_rng(seed_for(config.seed, "null pairing"))
                predict, loo = rng.permuted(predict, axis=1), rng.permuted(loo, axis=1)
            shape = (predict.shape[0], y.shape[1])
            made = {key: ArrayOnDisk(folder / f"{key}.npy", shape) for key in (name, f"{name}_raw")}
            constants = predict_calibrated(
                predict,
                loo,
                y,
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
    inputs |= {"rows": None if rows is None else list(rows)}
    inputs |= {"alphas": alphas, "backends": {name: b.name for name, b in backends.items()}}
    return stages.run(f"latents_{condition}", inputs, compute)


def _operators(alpha: float) -> tuple[str, str]:
    """Names of a penalty's operators among the arrays of the stage "ridge"."""
    return f"predict_{alpha_name(alpha)}", f"loo_{alpha_name(alpha)}"


def backend_for(config: RunConfig, operator: np.ndarray, targets: TargetRows) -> Backend:
    """Choose where the products of an operator and targets are made."""
    return choose_backend(config.device, float(operator.size) * targets.shape[1])


def _keep(folder: Path, name: str, array: np.ndarray) -> np.ndarray:
    """Write an array of a stage at once, so that it does not wait for the others in memory."""
    np.save(folder / f"{name}.npy", array, allow_pickle=False)
    kept: np.ndarray = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return kept
