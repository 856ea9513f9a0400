"""The model file predicts new responses as the run did, and refuses other files."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from bidsapp.decoding import gram, streaming
from bidsapp.decoding.compact import CompactForm, quantise
from bidsapp.decoding.decoder import RidgeDecoder
from bidsapp.decoding.model_file import load
from bidsapp.decoding.model_writer import (
    TOLERANCE,
    FittedModel,
    FittedTarget,
    VoxelScaling,
    made_from,
    write_model,
)
from bidsapp.decoding.streaming import TargetBlocks, predict_blocks
from bidsapp.errors import AppError
from bidsapp.records import Mask

SHAPE = (6, 5, 7)


def make(folder, n=50, p=90, *, alphas=(20.0, 300.0), strong=0.0, save_weights=False, block=7):
    """A model file of two targets, and what it should predict."""
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=p), rng.uniform(1, 2, size=p)
    x = rng.normal(size=(n + 8, p)) + strong * rng.normal(size=(n + 8, 1)) * rng.normal(size=p)
    x = (x / x[:n].std(0)).astype(np.float32)
    train, test = x[:n], x[n:]
    y = {
        "vdvae": (train @ rng.normal(size=(p, 23)) / 5 + rng.normal(size=(n, 23)) + 3).astype(np.float32),
        "clip": rng.normal(size=(n, 9)).astype(np.float32),
    }
    y["clip"][:, 4] = 2.5
    decoder = RidgeDecoder(train)
    targets, expected = {}, {}
    for (name, values), alpha in zip(y.items(), alphas, strict=True):
        raw = predict_blocks(decoder.operator(test, alpha), values)
        scale, shift = rng.uniform(1, 2, values.shape[1]), rng.normal(size=values.shape[1])
        targets[name] = FittedTarget(alpha, values, raw, scale, shift, {"note": "kept"})
        expected[name] = (raw, raw * scale + shift)
    index = np.sort(rng.permutation(np.prod(SHAPE))[:p])
    path = folder / "model.h5"
    inside = np.isin(np.arange(np.prod(SHAPE)), index).reshape(SHAPE, order="F")
    voxels = VoxelScaling(Mask(inside, np.eye(4)), mean, std)
    with pytest.MonkeyPatch.context() as patch:
        if block:  # dimensions at once
            patch.setattr(streaming, "BLOCK", 2 * n)
            patch.setattr(streaming, "WIDTH", block)
        write_model(path, FittedModel(decoder, voxels, targets, test), save_weights=save_weights)
    return path, test, test * std + mean, expected, targets, decoder


@pytest.mark.parametrize("small", [0, 4096], ids=["float32", "float64"])
@pytest.mark.parametrize(("n", "p"), [(50, 90), (90, 50)])
def test_it_predicts_what_the_run_predicted(n, p, small, tmp_path, monkeypatch):
    monkeypatch.setattr(gram, "SMALL", small)
    monkeypatch.setattr(gram, "BLOCK", 1000)  # several blocks of voxels
    path, test, betas, expected, _, _ = make(tmp_path, n, p)
    with load(path) as model:
        assert model.targets == ("clip", "vdvae")
        raw = model.predict(test, zscored=True, calibrated=False)
        calibrated = model.predict(betas)
        for name, (should, should_calibrated) in expected.items():
            varies = should.std(0) > 1e-6
            assert raw[name].dtype == np.float32
            error = np.abs(raw[name] - should)[:, varies] / should.std(0)[varies]
            largest, typical = model.error(name)
            assert error.max() < TOLERANCE
            assert 0 < typical < largest
            np.testing.assert_allclose(largest, error.max(), rtol=0.05)
            np.testing.assert_allclose(typical, np.sqrt((error**2).mean()), rtol=0.05)
            assert np.abs(calibrated[name] - should_calibrated).max() < 2 * TOLERANCE * should.std()
        np.testing.assert_allclose(raw["clip"][:, 4], 2.5, rtol=1e-6)
        assert set(model.predict(test, ["clip"])) == {"clip"}
        assert model.alpha("vdvae") == 20.0


def test_sixteen_bits_are_stored_and_no_training_data(tmp_path):
    path, *_ = make(tmp_path)
    with h5py.File(path) as file:
        assert file["targets/vdvae/coefficients"].dtype == np.int16
        assert file["targets/vdvae/coefficients"].shape == (23, 50)
        assert file["targets/vdvae"].attrs["note"] == "kept"
        assert sorted(file["projections"]) == ["20", "300"]
        names = []
        file.visit(names.append)
    assert not any("train" in n.lower() and n != "train_mean" for n in names)
    assert not any("weights" in n for n in names)


def test_targets_of_one_penalty_share_a_projection(tmp_path):
    path, test, _, expected, _, _ = make(tmp_path, alphas=(40.0, 40.0))
    with load(path) as model:
        got = model.predict(test, zscored=True, calibrated=False)
    with h5py.File(path) as file:
        assert list(file["projections"]) == ["40"]
    assert np.abs(got["vdvae"] - expected["vdvae"][0]).max() < TOLERANCE * expected["vdvae"][0].std()


@pytest.mark.parametrize("strong", [0.0, 30.0])
def test_a_strong_direction_does_not_magnify_rounding(strong, tmp_path):
    """A condition of 1e4 and more: rounding dual coefficients alike would cost far more than 1e-3."""
    path, test, _, expected, targets, decoder = make(tmp_path, 60, 200, alphas=(50.0, 50.0), strong=strong)
    with load(path) as model:
        got = model.predict(test, zscored=True, calibrated=False)["vdvae"]
    raw = expected["vdvae"][0].astype(np.float64)
    assert (np.abs(got - raw) / raw.std(0)).max() < TOLERANCE
    x, y = decoder.gram.x.astype(np.float64), targets["vdvae"].y.astype(np.float64)
    centred = x - x.mean(0)
    dual = np.linalg.solve(centred @ centred.T + 50.0 * np.eye(len(x)), y - y.mean(0))
    levels, factors = quantise(dual.T.astype(np.float32))
    rounded = (test - x.mean(0)) @ centred.T @ (levels.T * factors) + y.mean(0)
    assert ((np.abs(rounded - raw) / raw.std(0)).max() > 2 * TOLERANCE) == (strong > 0)


def test_float32_is_kept_where_sixteen_bits_are_not_enough(tmp_path, monkeypatch):
    from bidsapp.decoding import model_writer

    monkeypatch.setattr(model_writer, "TOLERANCE", 1e-5)
    path, test, _, expected, _, _ = make(tmp_path)
    with h5py.File(path) as file:
        assert file["targets/vdvae/coefficients"].dtype == np.float32
        assert "factors" not in file["targets/vdvae"]
    with load(path) as model:
        got = model.predict(test, zscored=True, calibrated=False)["vdvae"]
        assert model.error("vdvae")[0] < 1e-5
    np.testing.assert_allclose(got, expected["vdvae"][0], rtol=1e-5, atol=1e-5)


def test_a_late_block_that_is_too_coarse_is_reported(tmp_path, monkeypatch, caplog):
    from bidsapp.decoding import model_writer

    path, test, _, expected, _, _ = make(tmp_path, block=1)
    raw = expected["vdvae"][0]
    with load(path) as model:
        errors = np.abs(model.predict(test, ["vdvae"], zscored=True, calibrated=False)["vdvae"] - raw)
    errors = errors.max(0) / raw.std(0)
    # The limit lies far from both: errors differ a little between processors.
    assert errors.max() > 2 * errors[0]
    monkeypatch.setattr(model_writer, "TOLERANCE", np.sqrt(errors[0] * errors.max()))
    with caplog.at_level("WARNING", logger="bidsapp"):
        path, *_ = make(tmp_path, block=1)
    assert "vdvae: predictions from the model file differ from the run's own" in caplog.text
    with h5py.File(path) as file:
        assert file["targets/vdvae/coefficients"].dtype == np.int16


@pytest.mark.parametrize(("n", "p"), [(50, 90), (90, 50)])
def test_weights_are_saved_when_asked_and_made_when_not(n, p, tmp_path):
    path, _, _, _, targets, decoder = make(tmp_path, n, p, save_weights=True)
    expected = decoder.weights(targets["vdvae"].y, 20.0).T
    with load(path) as model:
        saved = model.weights("vdvae")
        np.testing.assert_allclose(saved, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
        np.testing.assert_array_equal(model.weights("vdvae", slice(3, 9)), saved[3:9])
    with h5py.File(path, "a") as file:
        assert file["targets/vdvae/weights"].shape == (23, p)
        del file["targets/vdvae/weights"]
    with load(path) as model:
        made = model.weights("vdvae", slice(3, 9))
    assert np.abs(made - saved[3:9]).max() < 1e-3 * np.abs(saved).max()


def test_blocks_do_not_matter(tmp_path):
    first, test, *_ = make(tmp_path, block=7)
    with load(first) as model:
        expected = model.predict(test, zscored=True)
    for block in (1, 5, None):
        path, *_ = make(tmp_path, block=block)
        with load(path) as model:
            got = model.predict(test, zscored=True)
        for name, values in expected.items():
            assert np.abs(got[name] - values).max() < 2e-4 * values.std()


def test_responses_are_taken_from_volumes(tmp_path):
    path, *_ = make(tmp_path)
    volumes = np.random.default_rng(0).normal(size=(3, *SHAPE))
    with load(path) as model:
        got = model.responses(volumes)
        flat = np.stack([v.ravel(order="F") for v in volumes])
        np.testing.assert_array_equal(got, flat[:, model.voxel_index])
        np.testing.assert_array_equal(model.responses(volumes[1]), got[1:2])
        with pytest.raises(ValueError, match="shape"):
            model.responses(volumes[..., :-1])


def test_what_can_not_be_predicted_is_refused(tmp_path):
    path, test, *_ = make(tmp_path)
    with load(path) as model:
        with pytest.raises(ValueError, match="shape"):
            model.predict(test[:, :5])
        with pytest.raises(ValueError, match="NaN"):
            model.predict(np.where(test > 2, np.nan, test))
        with pytest.raises(ValueError, match="no target 'sound'"):
            model.predict(test, ["sound"])


def test_rounding_to_sixteen_bits():
    values = np.random.default_rng(0).normal(size=(5, 400)).astype(np.float32)
    values[1] = 0
    values[2] *= 1e-30
    values[3, 7] = 1e4
    levels, factors = quantise(values)
    assert levels.dtype == np.int16
    assert np.abs(levels.astype(int)).max(axis=1).tolist() == [32767, 0, 32767, 32767, 32767]
    error = np.abs(levels * factors[:, None].astype(np.float64) - values)
    assert (error <= 0.501 * factors[:, None]).all()


def test_the_two_factors_multiply_to_the_weights():
    rng = np.random.default_rng(0)
    for n, p in ((30, 50), (50, 30)):
        x, y = rng.normal(size=(n, p)), rng.normal(size=(n, 6))
        decoder = RidgeDecoder(x, precision="float64")
        form = CompactForm(decoder, 5.0)
        projection = np.vstack([values for _, values in form.projection()])
        (block,) = TargetBlocks(y)
        weights = projection @ form.coefficients(block).T
        np.testing.assert_allclose(weights, decoder.weights(y, 5.0), rtol=1e-3, atol=1e-5)


def damage_version(file):
    file.attrs["version"] = 99


def damage_projection(file):
    del file["projections/20"]


def damage_shape(file):
    del file["targets/vdvae/mean"]
    file["targets/vdvae/mean"] = np.zeros(3)


def damage_link(file):
    del file["targets/vdvae/coefficients"]
    file["targets/vdvae/coefficients"] = h5py.ExternalLink("/etc/other.h5", "x")


def damage_group_link(file):
    del file["targets/vdvae"]
    file["targets/vdvae"] = h5py.ExternalLink("/etc/other.h5", "x")


def damage_rank(file):
    del file["projections/20"]
    file["projections/20"] = np.zeros((90, 3), np.float32)


def damage_voxels(file):
    file["voxel_index"][3] = 10**6


DAMAGES = [
    damage_version,
    damage_projection,
    damage_shape,
    damage_link,
    damage_group_link,
    damage_rank,
    damage_voxels,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused_by_name(damage, tmp_path):
    path, test, *_ = make(tmp_path)
    with h5py.File(path, "a") as file:
        damage(file)
    with pytest.raises(AppError, match=r"model\.h5") as caught, load(path) as model:
        model.predict(test)
    assert caught.value.exit_code == 65


def test_a_file_says_what_it_was_made_from(tmp_path):
    path, *_ = make(tmp_path)
    assert made_from(path) == ""
    with h5py.File(path, "a") as file:
        file.attrs["made_from"] = "abc"
    assert made_from(path) == "abc"
    path.write_bytes(path.read_bytes()[:-5000])
    assert made_from(path) is None
    assert made_from(tmp_path / "none.h5") is None


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(AppError, match="no such file") as caught:
        load(tmp_path / "none.h5")
    assert caught.value.exit_code == 66
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(AppError, match="not HDF5") as caught:
        load(tmp_path / "text.h5")
    assert caught.value.exit_code == 65
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1]
    with pytest.raises(AppError, match="not a model file"):
        load(tmp_path / "other.h5")
