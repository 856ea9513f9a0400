"""Stages for a run's control conditions, and the one that scores its predicted targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bidsapp.config import RunConfig
from bidsapp.decoding import calibration
from bidsapp.decoding.decoder import alpha_name
from bidsapp.decoding.quality import score_latents
from bidsapp.decoding.streaming import Predictor, TargetBlocks
from bidsapp.pipeline.decoding import backend_for, predict_and_calibrate
from bidsapp.pipeline.records import Decoded, Fit
from bidsapp.seeds import seed_for
from bidsapp.storage.npy import ArrayOnDisk
from bidsapp.storage.stages import StageResult


def probe_responses(halves: StageResult, n_random: int, seed: int) -> dict[str, np.ndarray]:
    """Make the responses that the decoder is checked with, each (rows, voxels).

    ``half1`` and ``half2`` are halves of the test images' repeats; ``random`` holds independent standard
    normal numbers; ``mean`` is one row of zeros, whose prediction is the training images' mean target.
    """
    first = halves["first"]
    noise = np.random.default_rng(seed_for(seed, "random responses"))
    return {
        "half1": first,
        "half2": halves["second"],
        "random": noise.standard_normal((n_random, first.shape[1]), dtype=np.float32),
        "mean": np.zeros((1, first.shape[1]), dtype=np.float32),
    }


def probe_latents(done: Decoded, config: RunConfig, probe: str) -> StageResult:
    """Predict targets from responses that no image evoked: ``random``, or ``mean`` (zeros).

    Predictions from random responses are calibrated as the brain's are. The prediction from zeros is the
    training mean, which needs no calibration.
    """
    fit, brain = done.fit, done.latents
    method = config.recipe.calibration.method if probe == "random" else "none"

    def compute(folder: Path) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for name in config.recipe.target_names:
            operator, y = fit.ridge[f"{probe}_{alpha_name(fit.penalties[name].alpha)}"], fit.train[name]
            made = ArrayOnDisk(folder / f"{name}.npy", (operator.shape[0], y.shape[1]))
            predictor = Predictor(operator, backend_for(config, operator, y))
            for part in TargetBlocks(y):
                predicted = predictor.predict(part)
                if method == "transductive":
                    predicted = calibration.transductive(predicted, part.moments())
                elif method == "train-cv":
                    scale, shift = (brain[f"{name}_{c}"][part.columns] for c in ("scale", "shift"))
                    predicted = scale * predicted + shift
                made[:, part.columns] = predicted
            arrays[name] = made.read()
        return arrays

    inputs = {"after": [fit.ridge.key, brain.key, fit.targets_key], "method": method}
    return fit.stages.run(f"latents_{probe}", inputs, compute)


def recalibrated_latents(done: Decoded, config: RunConfig, rows: Sequence[int]) -> StageResult:
    """Give the brain's predictions of some test images under the calibration that the recipe does not use."""
    fit, brain = done.fit, done.latents
    if config.recipe.calibration.method != "train-cv":
        return predict_and_calibrate(fit, config, "recalibrated", rows, method="train-cv")

    def compute(folder: Path) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for name in config.recipe.target_names:
            raw = brain[f"{name}_raw"]
            made = ArrayOnDisk(folder / f"{name}.npy", (len(rows), raw.shape[1]))
            for part in TargetBlocks(fit.train[name]):
                # Mean and spread are those of all test images' predictions.
                whole = calibration.transductive(np.asarray(raw[:, part.columns]), part.moments())
                made[:, part.columns] = whole[list(rows)]
            arrays[name] = made.read()
        return arrays

    inputs = {"after": [brain.key, fit.targets_key], "rows": list(rows)}
    return fit.stages.run("latents_recalibrated", inputs, compute)


def score_predictions(fit: Fit, brain: StageResult, config: RunConfig) -> StageResult:
    """Score how well targets are predicted, before any image is made.

    Arrays ``<target>_r``, ``<target>_r2``, ``<target>_ceiling`` (dims; no ceiling with fewer than three
    repeated test images), ``<target>_to_test`` (test, test) and ``<target>_to_training`` (test, train).
    """

    def compute(_: Path) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for name in config.recipe.target_names:
            alpha = alpha_name(fit.penalties[name].alpha)
            first, second = fit.ridge[f"half1_{alpha}"], fit.ridge[f"half2_{alpha}"]
            scores = score_latents(
                brain[f"{name}_raw"],
                fit.test[name],
                fit.train[name],
                (first, second) if len(first) > 2 else None,
                backend=backend_for(config, first, fit.train[name]),
            )
            arrays |= {f"{name}_r": scores.r, f"{name}_r2": scores.r2}
            if scores.ceiling is not None:
                arrays[f"{name}_ceiling"] = scores.ceiling
            arrays[f"{name}_to_test"] = scores.to_test.astype(np.float32)
            arrays[f"{name}_to_training"] = scores.to_training.astype(np.float32)
        return arrays

    inputs = {"after": [fit.ridge.key, brain.key, fit.targets_key]}
    return fit.stages.run("quality", inputs, compute)
