"""Stages that decode: from responses and training targets to predicted targets of the test images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bidsapp.config import RunConfig
from bidsapp.data.targets import StoredTargets
from bidsapp.decoding.backends import Backend, choose_backend
from bidsapp.decoding.crossvalidation import AlphaSearch, Selection
from bidsapp.decoding.decoder import RidgeDecoder, alpha_name
from bidsapp.decoding.streaming import Predictor, TargetBlocks, predict_calibrated
from bidsapp.errors import AppError, ExitCode
from bidsapp.pipeline.records import NULL, Fit
from bidsapp.seeds import seed_for
from bidsapp.storage.npy import ArrayOnDisk
from bidsapp.storage.stages import StageResult, Stages

LOG = logging.getLogger("bidsapp")


def choose_alphas(
    stages: Stages,
    responses: StageResult,
    targets: Mapping[str, StoredTargets],
    targets_key: str,
    config: RunConfig,
) -> dict[str, Selection]:
    """Choose each target's penalty by held-out training images, where the recipe lists several.

    Array ``<target>`` (2, penalties): the penalties tried, and the mean squared error of each. Nothing
    is computed for a target with a single penalty.

    Raises
    ------
    AppError
        Exit code 65 for more folds than training images, or a penalty that is too small.
    """
    recipe = config.recipe
    lists = {name: t.alphas for name, t in recipe.targets.items() if len(t.alphas) > 1}
    chosen = {name: Selection(t.alphas) for name, t in recipe.targets.items()}
    if not lists:
        return chosen
    backend = backend_for_fit(config, responses)
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
                f"Recipe {recipe.name}: cannot choose a ridge penalty: {error}. "
                "Change [targets] or [ridge] in the recipe.",
                exit_code=ExitCode.BAD_DATA,
            ) from error
        return {name: np.array([s.alphas, s.errors]) for name, s in found.items()}

    inputs = {"after": [responses.key, targets_key], "alphas": lists, "folds": folds, "backend": backend.name}
    done = stages.run("alphas", inputs, compute)
    for name in lists:
        alphas, errors = done[name].tolist()
        chosen[name] = found = Selection(tuple(alphas), tuple(errors))
        LOG.info("%s: penalty %g chosen from %s", name, found.alpha, ", ".join(f"{a:g}" for a in alphas))
        if found.alpha in (min(alphas), max(alphas)):
            end = "smallest" if found.alpha == min(alphas) else "largest"
            LOG.warning("%s: this is the %s in the recipe's list; a wider list may do better", name, end)
    return chosen


def fit_ridge(
    stages: Stages,
    responses: StageResult,
    penalties: Mapping[str, Selection],
    probes: Mapping[str, np.ndarray],
    probes_key: Any,
    config: RunConfig,
) -> StageResult:
    """Factorise the Gram matrix once for all targets, and make the operators that predict from targets.

    Arrays, for each penalty: ``predict_<alpha>`` (test, train), ``loo_<alpha>`` (sampled training rows,
    train), and ``<probe>_<alpha>`` (rows of the probe, train) for each further set of responses, see
    :func:`bidsapp.analyses.controls.probe_responses`. ``loo_rows`` are the sampled training rows.
    """
    alphas = sorted({s.alpha for s in penalties.values()})
    n, max_rows = len(responses["train"]), config.recipe.calibration.max_rows
    backend = backend_for_fit(config, responses)

    def compute(folder: Path) -> dict[str, np.ndarray]:
        decoder = RidgeDecoder(responses["train"], backend=backend)
        rng = np.random.default_rng(seed_for(config.seed, "calibration rows"))
        rows = np.sort(rng.permutation(n)[: min(n, max_rows)])
        arrays: dict[str, np.ndarray] = {"loo_rows": rows}
        sets = {"predict": responses["test"], **probes}
        operators = {name: decoder.operators(x, alphas) for name, x in sets.items()}
        for alpha in alphas:  # the factor is made once per penalty, the products once per set
            for name in sets:
                key = f"{name}_{alpha_name(alpha)}"
                arrays[key] = _keep(folder, key, next(operators[name]))
            key = _operators(alpha)[1]
            arrays[key] = _keep(folder, key, decoder.loo_operator(alpha, rows))
        return arrays

    inputs = {"after": responses.key, "alphas": alphas, "max_rows": max_rows, "seed": config.seed}
    return stages.run("ridge", inputs | {"backend": backend.name, "probes": probes_key}, compute)


def predict_and_calibrate(
    fit: Fit,
    config: RunConfig,
    condition: str,
    rows: Sequence[int] | None = None,
    method: str | None = None,
) -> StageResult:
    """Predict the targets of the test images (or some ``rows`` of them), and calibrate them.

    The null condition shuffles the pairing of training responses and images, differently for each test
    image: the whole pipeline is run on wrong pairs, with the penalties chosen for the right ones. A single
    shuffle would send similar responses to the same wrong images, and scores of the null would vary more
    than those of independent guesses.

    Arrays ``<target>`` and ``<target>_raw`` (test, dims), and, with the calibration "train-cv",
    ``<target>_scale`` and ``<target>_shift`` (dims): calibrated = scale * raw + shift.
    """
    method = method or config.recipe.calibration.method
    alphas = {name: fit.penalties[name].alpha for name in config.recipe.target_names}
    backends = {
        name: backend_for(config, fit.ridge[_operators(alpha)[0]], fit.train[name])
        for name, alpha in alphas.items()
    }

    def compute(folder: Path) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for name, alpha in alphas.items():
            predict, loo = (fit.ridge[key] for key in _operators(alpha))
            y = fit.train[name]
            if rows is not None:
                predict = predict[list(rows)]
            if condition == NULL:
                # Shuffling the operator's columns is shuffling the training targets; the same seed gives
                # every target the same shuffle.
                rng = np.random.default_rng(seed_for(config.seed, "null pairing"))
                predict, loo = rng.permuted(predict, axis=1), rng.permuted(loo, axis=1)
            shape = (predict.shape[0], y.shape[1])
            made = {key: ArrayOnDisk(folder / f"{key}.npy", shape) for key in (name, f"{name}_raw")}
            constants = predict_calibrated(
                Predictor(predict, backends[name]),
                Predictor(loo, backends[name]) if method == "train-cv" else None,
                TargetBlocks(y, what=f"predicting {name}, {condition} (blocks of dimensions)"),
                method,
                raw=made[f"{name}_raw"],
                calibrated=made[name],
            )
            arrays |= {key: array.read() for key, array in made.items()}
            if constants is not None:
                arrays[f"{name}_scale"], arrays[f"{name}_shift"] = constants
        return arrays

    inputs = {"after": [fit.ridge.key, fit.targets_key], "method": method, "seed": config.seed}
    inputs |= {"rows": None if rows is None else list(rows)}
    inputs |= {"alphas": alphas, "backends": {name: b.name for name, b in backends.items()}}
    return fit.stages.run(f"latents_{condition}", inputs, compute)


def _operators(alpha: float) -> tuple[str, str]:
    """Names of a penalty's operators among the arrays of the stage "ridge"."""
    return f"predict_{alpha_name(alpha)}", f"loo_{alpha_name(alpha)}"


def backend_for(config: RunConfig, operator: np.ndarray, targets: StoredTargets) -> Backend:
    """Choose where the products of an operator and targets are computed."""
    return choose_backend(config.device, float(operator.size) * targets.shape[1])


def backend_for_fit(config: RunConfig, responses: StageResult) -> Backend:
    """Choose where the Gram matrix of the training responses is computed and factorised."""
    n, p = responses["train"].shape
    return choose_backend(config.device, n * p * min(n, p))


def _keep(folder: Path, name: str, array: np.ndarray) -> np.ndarray:
    """Write an array of a stage now, so that it does not stay in memory until the others are made."""
    np.save(folder / f"{name}.npy", array, allow_pickle=False)
    kept: np.ndarray = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return kept
