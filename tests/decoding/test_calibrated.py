"""One pass over the targets gives what separate steps on whole arrays give, for any block size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bidsapp.config import RunConfig, load_recipe
from bidsapp.decoding import calibration, streaming
from bidsapp.decoding.crossvalidation import Selection
from bidsapp.decoding.decoder import RidgeDecoder
from bidsapp.decoding.streaming import Predictor, TargetBlocks, predict_blocks, predict_calibrated
from bidsapp.errors import AppError
from bidsapp.pipeline.decoding import fit_ridge, predict_and_calibrate
from bidsapp.pipeline.records import BRAIN, NULL, Fit
from bidsapp.storage.stages import StageResult, Stages

#: What block sizes may change, relative to the predictions' spread.
BLOCK_TOLERANCE = 1e-5


def data(n: int = 50, p: int = 80, m: int = 12, d: int = 29):
    rng = np.random.default_rng(0)
    x, x_new = rng.normal(size=(n, p)).astype(np.float32), rng.normal(size=(m, p)).astype(np.float32)
    y = (x @ rng.normal(size=(p, d)) / 5 + rng.normal(size=(n, d)) + 4).astype(np.float32)
    y[:, 3] = 1.25  # captions that all read the same
    return x, x_new, y


@pytest.fixture(scope="module")
def operators():
    x, x_new, y = data()
    decoder = RidgeDecoder(x)
    return decoder.operator(x_new, 20.0), decoder.loo_operator(20.0, np.arange(40)), y


def predicted(operators, method: str, block: int | None = None):
    predict, loo, y = operators
    raw, calibrated = (np.full((12, y.shape[1]), np.nan, np.float32) for _ in range(2))
    constants = predict_calibrated(
        Predictor(predict), Predictor(loo), TargetBlocks(y, block), method, raw=raw, calibrated=calibrated
    )
    return raw, calibrated, constants


def test_train_cv_is_calibration_by_held_out_predictions(operators):
    predict, loo, y = operators
    raw, calibrated, (scale, shift) = predicted(operators, "train-cv")
    fitted = calibration.fit(predict_blocks(loo, y), y)
    np.testing.assert_array_equal(raw, predict_blocks(predict, y))
    np.testing.assert_allclose(calibrated, fitted.apply(raw), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(calibrated, raw * scale + shift, rtol=1e-5, atol=1e-5)
    assert scale[3] == 1


def test_the_other_methods(operators):
    raw, calibrated, constants = predicted(operators, "transductive")
    np.testing.assert_allclose(calibrated, calibration.transductive(raw, operators[2]), rtol=1e-6, atol=1e-6)
    assert constants is None
    raw, calibrated, constants = predicted(operators, "none")
    np.testing.assert_array_equal(calibrated, raw)
    assert constants is None
    with pytest.raises(ValueError, match="guess"):
        predicted(operators, "guess")
    predict, loo, y = operators
    whole, held_out = TargetBlocks(y), Predictor(loo)
    one = {key: np.empty((1, y.shape[1]), np.float32) for key in ("raw", "calibrated")}
    with pytest.raises(AppError, match="at least two"):
        predict_calibrated(Predictor(predict[:1]), None, whole, "transductive", **one)
    with pytest.raises(ValueError, match="shape"):
        predict_calibrated(Predictor(predict), held_out, TargetBlocks(y[:7]), "none", **one)
    with pytest.raises(ValueError, match="held-out"):
        predict_calibrated(Predictor(predict), None, whole, "train-cv", **one)


@pytest.mark.parametrize("method", ["train-cv", "transductive", "none"])
@pytest.mark.parametrize("block", [1, 2, 3, 7, 16, 28, 29])
def test_any_block_gives_the_same_latents(operators, method, block):
    raw, calibrated, _ = predicted(operators, method)
    got_raw, got_calibrated, _ = predicted(operators, method, block)
    assert np.abs(got_raw - raw).max() <= BLOCK_TOLERANCE * raw.std()
    assert np.abs(got_calibrated - calibrated).max() <= BLOCK_TOLERANCE * calibrated.std()


def stage_arrays(folder: Path, condition: str) -> dict[str, np.ndarray]:
    """What the pipeline's own stages make of small data, under the embedded recipe."""
    config = RunConfig(folder, folder, folder, load_recipe("embedded"), device="cpu")
    x, x_new, y = data()
    targets = {"vdvae": y, "clip_vision": y[:, :9] * 2, "clip_text": y[:, 5:]}
    stages = Stages(folder)
    penalties = dict.fromkeys(targets, Selection((2000.0,)))
    responses = StageResult("responses", {"train": x, "test": x_new})
    ridge = fit_ridge(stages, responses, penalties, {}, "", config)
    fit = Fit(stages, penalties, ridge, targets, {}, "targets")
    return predict_and_calibrate(fit, config, condition).arrays


@pytest.mark.parametrize("condition", [BRAIN, NULL])
def test_the_stages_latents_do_not_depend_on_the_block(condition, tmp_path, monkeypatch):
    whole = stage_arrays(tmp_path / "whole", condition)
    assert {f"vdvae{part}" for part in ("", "_raw", "_scale", "_shift")} < set(whole)
    for elements in (50, 100, 250):
        monkeypatch.setattr(streaming, "BLOCK", elements)
        cut = stage_arrays(tmp_path / str(elements), condition)
        assert cut.keys() == whole.keys()
        for name, values in whole.items():
            assert np.abs(cut[name] - values).max() <= BLOCK_TOLERANCE * values.std(), name
