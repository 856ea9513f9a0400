"""The published evaluation networks: names, written-down features, checkpoints, preprocessing."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.formula_weights import formula_images, formula_state
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from bidsapp.errors import AppError, ExitCode
from bidsapp.metrics.protocols import published_protocols
from bidsapp.metrics.scoring import score
from bidsapp.models.judges.alexnet import AlexNet
from bidsapp.models.judges.efficientnet import EfficientNetB1
from bidsapp.models.judges.inception import InceptionV3
from bidsapp.models.judges.protocol_networks import (
    feature_network,
    find_checkpoint,
    load_network,
    load_protocol_networks,
    missing_files,
)
from bidsapp.models.judges.resnet import ResNet50
from bidsapp.models.preprocessing import MEAN_STD, Preprocessing
from bidsapp.models.weights.checkpoints import load_strictly, read_checkpoint

# Of torchvision 0.28.0, without classifiers: tensors, parameters, and the start of the SHA-256 of the
# sorted lines "name shape".
PUBLISHED_NAMES = {
    AlexNet: (10, 2_469_696, "b1e207d270dfe02f"),
    InceptionV3: (564, 21_785_568, "5c5cb906421dd921"),
    EfficientNetB1: (506, 6_513_184, "f1dd3c4f92eef135"),
    ResNet50: (318, 23_508_032, "c1f7fd3808aa49e7"),
}
# Of torchvision 0.28.0's modules in float64 with the formula weights and images: length; mean of the first
# and second image's features, standard deviation of both; means weighted by cos(0), cos(1), ...
FEATURES: list[tuple[Callable[[], torch.nn.Module], str, str, int, tuple[float, ...]]] = [
    (AlexNet, "features.4", "64", 9408, (0.9003144, 0.9144048, 1.326364, 0.00836597, -0.005166452)),
    (AlexNet, "features.11", "64", 2304, (0.8135184, 0.7866716, 1.197626, -0.01522896, -0.02077335)),
    (InceptionV3, "avgpool", "75", 2048, (0.160428, 0.1811571, 0.3267068, -0.0003540373, -0.0002327088)),
    (EfficientNetB1, "avgpool", "64", 1280, (17.96841, 8.321085, 18.1671, 0.08400336, 0.2089911)),
    (ResNet50, "avgpool", "64", 2048, (2718.221, 2824.222, 2576.915, -26.76998, -31.22945)),
]
ARCHITECTURE = {
    AlexNet: "alexnet",
    InceptionV3: "inception_v3",
    EfficientNetB1: "efficientnet_b1",
    ResNet50: "resnet50",
}


def _use(architecture: str, layer: str, size: int, **more: Any) -> Any:
    resizing = SimpleNamespace(sizes=(size,), resample="bilinear", precision="uint8")
    return SimpleNamespace(
        architecture=architecture, layer=layer, mean_std="imagenet", resizing=resizing, **more
    )


def _alexnet_state() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return formula_state(AlexNet().state_dict())


@pytest.mark.parametrize("kind", PUBLISHED_NAMES)
def test_names_are_the_published_ones(kind):
    with torch.device("meta"):
        model = kind()
    state = model.state_dict()
    lines = "\n".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(state.items()))
    parameters = sum(p.numel() for p in model.parameters())
    got = (len(state), parameters, hashlib.sha256(lines.encode()).hexdigest()[:16])
    assert got == PUBLISHED_NAMES[kind]


@pytest.mark.parametrize(("kind", "layer", "size", "length", "golden"), FEATURES)
def test_features_are_the_written_down_ones(kind, layer, size, length, golden):
    with torch.device("meta"):
        model = kind()
    model.load_state_dict(formula_state(model.state_dict()), assign=True)
    model.eval()
    got = feature_network(model, _use(ARCHITECTURE[kind], layer, int(size)))(formula_images(2, int(size)))
    assert got.dtype == np.float32
    assert got.shape == (2, length)
    wide = got.astype(np.float64)
    weights = np.cos(np.arange(length))
    values = (*wide.mean(axis=1), wide.std(), *(wide * weights).mean(axis=1))
    assert values == pytest.approx(golden, rel=2e-5, abs=2e-6 * wide.std())


def test_alexnets_early_layer_is_its_equations_in_float64():
    state = {k: v.double().numpy() for k, v in _alexnet_state().items()}
    images = formula_images(2, 64)
    x = (images / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    x = x.transpose(0, 3, 1, 2)

    def convolve(x: np.ndarray, name: str, stride: int, padding: int) -> np.ndarray:
        weight, bias = state[f"features.{name}.weight"], state[f"features.{name}.bias"]
        x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))
        windows = windows[:, :, ::stride, ::stride]
        return np.einsum("nchwyx,kcyx->nkhw", windows, weight, optimize=True) + bias[:, None, None]

    first = np.maximum(convolve(x, "0", 4, 2), 0)
    pooled = np.lib.stride_tricks.sliding_window_view(first, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max((4, 5))
    expected = np.maximum(convolve(pooled, "3", 1, 2), 0)
    model = AlexNet()
    model.load_state_dict(_alexnet_state())
    got = feature_network(model.eval(), _use("alexnet", "features.4", 64))(images)
    np.testing.assert_allclose(got, expected.reshape(2, -1), rtol=1e-4, atol=1e-5)


def test_inception_undoes_imagenets_normalisation():
    from bidsapp.models.judges.inception import _to_tensorflow_range

    images = formula_images(2, 8)
    x = _to_tensorflow_range(Preprocessing((8,))(images))
    expected = torch.from_numpy(images / 255).permute(0, 3, 1, 2).float() * 2 - 1
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mean_std", MEAN_STD)
@pytest.mark.parametrize("precision", ["uint8", "float"])
def test_preprocessing_in_closed_form(mean_std, precision):
    colour = np.array([10, 130, 250], np.uint8)
    images = np.broadcast_to(colour, (2, 40, 30, 3))
    got = Preprocessing((25, 50), "bilinear", precision, mean_std)(images)
    assert got.shape == (2, 3, 50, 50)
    assert got.dtype == torch.float32
    mean, std = MEAN_STD[mean_std]
    for channel in range(3):
        value = (colour[channel] / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(got[:, channel], torch.full((2, 50, 50), value), rtol=0, atol=3e-6)


def test_floats_are_antialiased_when_shrinking():
    images = formula_images(1, 60)
    got = Preprocessing((20, 35), "bilinear", "float")(images)
    mean, std = MEAN_STD["imagenet"]
    for channel in range(3):
        plane = Image.fromarray(images[0, ..., channel].astype(np.float32) / 255)
        for size in (20, 35):
            plane = plane.resize((size, size), Image.Resampling.BILINEAR)
        expected = (np.asarray(plane) - mean[channel]) / std[channel]
        np.testing.assert_allclose(got[0, channel].numpy(), expected, atol=1e-5)


@given(size=st.integers(1, 40), side=st.integers(1, 40), precision=st.sampled_from(["uint8", "float"]))
@settings(max_examples=30, deadline=None)
def test_preprocessing_stays_in_range_and_takes_images_one_by_one(size, side, precision):
    images = formula_images(3, side)
    how = Preprocessing((size,), "bilinear", precision)
    together = how(images)
    torch.testing.assert_close(
        together, torch.cat([how(images[i : i + 1]) for i in range(3)]), rtol=0, atol=0
    )
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in MEAN_STD["imagenet"])
    levels = (together * std + mean) * 255
    assert levels.min() >= int(images.min()) - 1e-3
    assert levels.max() <= int(images.max()) + 1e-3
    if size == side:
        np.testing.assert_allclose(levels.permute(0, 2, 3, 1).numpy(), images, atol=1e-3)
    elif precision == "uint8":
        literal = Image.fromarray(images[0]).resize((size, size), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(levels[0].permute(1, 2, 0).numpy(), np.asarray(literal), atol=1e-3)


@pytest.mark.parametrize("wrong", [np.zeros((1, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8)])
def test_preprocessing_takes_bytes_only(wrong):
    with pytest.raises(TypeError, match="uint8"):
        Preprocessing((8,))(wrong)


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="nearest"):
        Preprocessing((8,), "nearest")
    with pytest.raises(ValueError, match="vgg16"):
        load_network("vgg16", Path("nowhere"))
    for architecture, layer in (("alexnet", "avgpool"), ("resnet50", "features.4"), ("vgg", "avgpool")):
        with pytest.raises(ValueError, match="unknown output"):
            feature_network(AlexNet(), _use(architecture, layer, 64))


def test_heads_and_prefix_of_checkpoints_are_left_aside(tmp_path):
    state = _alexnet_state()
    torch.save({**state, "classifier.1.weight": torch.ones(3, 2)}, tmp_path / "plain.pth")
    save_file(state, tmp_path / "safe.safetensors")
    for name in ("plain.pth", "safe.safetensors"):
        model = load_network("alexnet", tmp_path / name)
        assert not model.training
        loaded = model.state_dict()
        assert all(torch.equal(loaded[k], v) for k, v in state.items())
    torch.save({f"module.{k}": v for k, v in state.items()}, tmp_path / "parallel.pth")
    model = AlexNet()
    load_strictly(model, tmp_path / "parallel.pth", prefix="module.")
    assert torch.equal(model.features[0].weight, state["features.0.weight"])


def test_batch_norms_of_old_checkpoints_need_no_counters(tmp_path):
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    old = {k: v + 0.25 for k, v in model.state_dict().items() if not k.endswith("tracked")}
    torch.save(old, tmp_path / "old.pth")
    load_strictly(model, tmp_path / "old.pth", optional=".num_batches_tracked")
    assert torch.equal(model[0].running_mean, old["0.running_mean"])
    assert model[0].num_batches_tracked == 0
    with pytest.raises(AppError, match=r"missing: 0\.num_batches_tracked"):
        load_strictly(model, tmp_path / "old.pth")


def _dropped(state):
    return {k: v for k, v in state.items() if k != "features.3.bias"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_dropped, "missing: features.3.bias"),
        (lambda s: {**s, "features.99.weight": torch.ones(1)}, "unknown: features.99.weight"),
        (lambda s: {**s, "features.0.bias": torch.ones(65)}, r"features.0.bias \(65,\) instead of \(64,\)"),
        (lambda s: {f"module.{k}": v for k, v in s.items()}, "missing.*and 7 more.*unknown: module.feat"),
        (lambda s: {"state_dict": s}, "something other than named tensors"),
        (lambda s: [1, 2], "something other than named tensors"),
    ],
)
def test_other_weights_are_refused(tmp_path, change, words):
    torch.save(change(_alexnet_state()), tmp_path / "weights.pth")
    with pytest.raises(AppError, match=words) as caught:
        load_network("alexnet", tmp_path / "weights.pth")
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert str(tmp_path / "weights.pth") in str(caught.value)


class _Runs:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_checkpoints_run_no_code(tmp_path):
    torch.save({"features.0.weight": _Runs(tmp_path / "made")}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(_Runs(tmp_path / "made"), protocol=2))
    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(AppError, match="cannot be read") as caught:
            read_checkpoint(tmp_path / name)
        assert caught.value.exit_code == ExitCode.BAD_DATA
    assert not (tmp_path / "made").exists()


def test_missing_and_damaged_checkpoints(tmp_path):
    with pytest.raises(AppError, match="missing") as caught:
        read_checkpoint(tmp_path / "none.pth")
    assert caught.value.exit_code == ExitCode.TRY_AGAIN
    torch.save(_alexnet_state(), tmp_path / "whole.pth")
    save_file(_alexnet_state(), tmp_path / "whole.safetensors")
    for whole in (tmp_path / "whole.pth", tmp_path / "whole.safetensors"):
        content = whole.read_bytes()
        for length in (0, 5, 3000, len(content) // 2, len(content) - 1):
            cut = tmp_path / f"cut{whole.suffix}"
            cut.write_bytes(content[:length])
            with pytest.raises(AppError, match="cannot be read") as caught:
                read_checkpoint(cut)
            assert caught.value.exit_code == ExitCode.BAD_DATA


def _tiny_clip() -> torch.nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=224,
        patch_size=56,
        projection_dim=12,
    )
    return CLIPVisionModelWithProjection(config).eval()


@pytest.mark.parametrize("protocol", ["bd2023", "mindeye"])
def test_a_protocol_is_scored_with_the_networks_that_are_there(tmp_path, protocol):
    uses = published_protocols()[protocol].networks
    save_file(_alexnet_state(), tmp_path / "alexnet-owt-7be5be79.safetensors")
    absent = missing_files(uses, tmp_path)
    assert set(absent) == {"inception", "effnet", "swav"}
    assert absent["swav"] == tmp_path / "swav_800ep_pretrain.pth.tar"
    assert list(load_protocol_networks(uses, tmp_path)) == ["alexnet2", "alexnet5"]
    clip = _tiny_clip()
    networks = load_protocol_networks(uses, tmp_path, clip_vision=clip)
    assert list(networks) == ["alexnet2", "alexnet5", "clip"]
    truth, made = formula_images(4, 32)[:2], formula_images(4, 32)[2:]
    side = uses["alexnet2"].resizing.sizes[-1]
    assert networks["alexnet2"](truth).shape == (2, 192 * {224: 27, 256: 31}[side] ** 2)
    got = score(made, truth, networks, protocol=protocol)
    assert list(got.summary)[-3:] == ["two_way_alexnet2", "two_way_alexnet5", "two_way_clip"]
    assert got.skipped == ("two_way_inception", "distance_effnet", "distance_swav")
    # CLIP is given its own normalisation, and the protocol's bilinear square rather than CLIP's own.
    how = uses["clip"].resizing
    pixels = Preprocessing(how.sizes, how.resample, how.precision, "clip")(truth)
    with torch.no_grad():
        expected = clip(pixels).image_embeds.numpy()
    np.testing.assert_allclose(networks["clip"](truth), expected, rtol=1e-5, atol=1e-6)


def test_networks_of_one_checkpoint_share_it(tmp_path, monkeypatch):
    from bidsapp.models.judges import protocol_networks

    loaded = []
    monkeypatch.setattr(
        protocol_networks, "load_network", lambda *a: (loaded.append(a[1].name), AlexNet().eval())[1]
    )
    (tmp_path / "alexnet-owt-7be5be79.pth").touch()
    uses = published_protocols()["bd2023"].networks
    small = {
        name: dataclasses.replace(uses[name], resizing=dataclasses.replace(uses[name].resizing, sizes=(64,)))
        for name in ("alexnet2", "alexnet5")
    }
    networks = load_protocol_networks(small, tmp_path)
    assert loaded == ["alexnet-owt-7be5be79.pth"]
    shapes = {name: network(formula_images(2, 20)).shape for name, network in networks.items()}
    assert shapes == {"alexnet2": (2, 192 * 7 * 7), "alexnet5": (2, 256 * 3 * 3)}


def test_a_converted_checkpoint_is_preferred(tmp_path):
    for file in ("net.pth", "net.pth.tar"):
        assert find_checkpoint(tmp_path, file) == tmp_path / file
    (tmp_path / "net.safetensors").touch()
    for file in ("net.pth", "net.pth.tar"):
        assert find_checkpoint(tmp_path, file) == tmp_path / "net.safetensors"
