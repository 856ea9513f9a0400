"""The stages of a run's checks of itself: probes of the decoder, and the quality of its predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bidsapp.config import RunConfig
from bidsapp.data.targets import TargetRows
from bidsapp.decoding import calibration
from bidsapp.decoding.crossvalidation import Selection
from bidsapp.decoding.decoder import alpha_name
from bidsapp.decoding.quality import score_latents
from bidsapp.decoding.streaming import Predictor, TargetBlocks
from bidsapp.pipeline.decoding import backend_for, predict_and_calibrate
from bidsapp.seeds import seed_for
from bidsapp.storage.npy import ArrayOnDisk
from bidsapp.storage.stages import StageResult, Stages


def probes(halves: StageResult, n_random: int, seed: int) -> dict[str, np.ndarray]:
    """Make the responses that a run is checked with, each (rows, voxels).

    ``half1`` and ``half2`` are halves of the test images' repeats, ``random`` independent normal numbers, and
    ``mean`` a row of zeros, whose prediction is the training images' mean target.
    """
    first = halves["first"]
    noise = np.random.default_rng(seed_for(seed, "random responses"))
    return {
        "half1": first,
        "half2": halves["second"],
        "random": noise.standard_normal((n_random, first.shape[1]), dtype=np.float32),
        "mean": np.zeros((1, first.shape[1]), dtype=np.float32),
    }


def probe_latents(
    stages: Stages,
    ridge: StageResult,
    brain: StageResult,
    targets: Mapping[str, TargetRows],
    targets_key: str,
    penalties: Mapping[str, Selection],
    config: RunConfig,
    probe: str,
) -> StageResult:
    """Predicted targets of responses that no image evoked: ``random``, or ``mean`` (zeros).

    Random responses are calibrated as the brain's are; the mean prediction is the training mean, and has
    nothing to calibrate.
    """
    method = config.recipe.calibration.method if probe == "random" else "none"

    def compute(folder: Path) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for name in config.recipe.target_names:
            operator = ridge[f"{probe}_{alpha_name(penalties[name].alpha)}"]
            made = ArrayOnDisk(folder / f"{name}.npy", (operator.shape[0], targets[name].shape[1]))
            predictor = Predictor(operator, backend_for(config, operator, targets[name]))
            for part in TargetBlocks(targets[name]):
                predicted = predictor.predict(part)
                if method == "transductive":
                    predicted = calibration.transductive(predicted, part.moments())
                elif method == "train-cv":
                    scale, shift = (brain[f"{name}_{c}"][part.columns] for c in ("scale", "shift"))
                    predicted = scale * predicted + shift
                made[:, part.columns] = predicted
            arrays[name] = made.read()
        return arrays

    inputs = {"after": [ridge.key, brain.key, targets_key], "method": method}
    return stages.run(f"latents_{probe}", inputs, compute)


def other_calibration(method: str) -> str:
    """Name the calibration that is shown beside a recipe's own."""
    return "transductive" if method == "train-cv" else "train-cv"


def recalibrated_latents(
    stages: Stages,
    ridge: StageResult,
    brain: StageResult,
    targets: Mapping[str, TargetRows],
    targets_key: str,
    penalties: Mapping[str, Selection],
    config: RunConfig,
    rows: Sequence[int],
) -> StageResult:
    """Give the brain's predictions of some test images under the other calibration."""
    if other_calibration(config.recipe.calibration.method) == "train-cv":
        name = "recalibrated"
        return predict_and_calibrate(
            stages, ridge, targets, targets_key, penalties, config, name, rows=rows, method="train-cv"
        )

    def compute(folder: Path) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for name in config.recipe.target_names:
            raw = brain[f"{name}_raw"]
            made = ArrayOnDisk(folder / f"{name}.npy", (len(rows), raw.shape[1]))
            for part in TargetBlocks(targets[name]):
                # Its mean and spread are those of all test images' predictions.
                whole = calibration.transductive(np.asarray(raw[:, part.columns]), part.moments())
                made[:, part.columns] = whole[list(rows)]
            arrays[name] = made.read()
        return arrays

    inputs = {"after": [brain.key, targets_key], "rows": list(rows)}
    return stages.run("latents_recalibrated", inputs, compute)


def score_predictions(
    stages: Stages,
    ridge: StageResult,
    brain: StageResult,
    train: Mapping[str, TargetRows],
    test: Mapping[str, TargetRows],
    targets_key: str,
    penalties: Mapping[str, Selection],
    config: RunConfig,
) -> StageResult:
    """How well targets are predicted, before any picture.

    Arrays ``<target>_r``, ``<target>_r2``, ``<target>_ceiling`` (dims; no ceiling where fewer than three test
    images were repeated), ``<target>_to_test`` (test, test) and ``<target>_to_training`` (test, train).
    """

    def compute(_: Path) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for name in config.recipe.target_names:
            alpha = alpha_name(penalties[name].alpha)
            first, second = ridge[f"half1_{alpha}"], ridge[f"half2_{alpha}"]
            scores = score_latents(
                brain[f"{name}_raw"],
                test[name],
                train[name],
                (first, second) if len(first) > 2 else None,
                backend=backend_for(config, first, train[name]),
            )
            arrays |= {f"{name}_r": scores.r, f"{name}_r2": scores.r2}
            if scores.ceiling is not None:
                arrays[f"{name}_ceiling"] = scores.ceiling
            arrays[f"{name}_to_test"] = scores.to_test.astype(np.float32)
            arrays[f"{name}_to_training"] = scores.to_training.astype(np.float32)
        return arrays

    inputs = {"after": [ridge.key, brain.key, targets_key]}
    return stages.run("quality", inputs, compute)
