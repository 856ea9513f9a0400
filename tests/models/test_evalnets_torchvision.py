"""The evaluation networks and their preprocessing against torchvision's, with random weights.

Run where torchvision can be imported, or give its folder by the environment variable
BIDSAPP_TORCHVISION (``pip install --no-deps --target FOLDER torchvision==0.28.0``).
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.formula_weights import formula_images, formula_state
from PIL import Image

from bidsapp.models.judges.protocol_networks import feature_network, load_network
from bidsapp.models.preprocessing import MEAN_STD, Preprocessing

IMAGENET = dict(zip(("mean", "std"), MEAN_STD["imagenet"], strict=True))
#: ours: torchvision's name, its options, side of the test images, output
NETWORKS: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "alexnet": ("alexnet", {}, 64, "features.4"),
    "inception_v3": ("inception_v3", {"init_weights": False, "transform_input": True}, 75, "avgpool"),
    "efficientnet_b1": ("efficientnet_b1", {}, 64, "avgpool"),
    "resnet50": ("resnet50", {}, 64, "avgpool"),
}
HEADS = ("classifier.", "fc.", "AuxLogits.")


@pytest.fixture(scope="module")
def torchvision() -> Iterator[Any]:
    """Torchvision, imported beside a torch that it was not built for; forgotten again afterwards.

    Its compiled operators then are not there, but importing it needs two of them by name only.
    """
    folder = os.environ.get("BIDSAPP_TORCHVISION")
    before = set(sys.modules)
    library = None
    if folder:
        sys.path.append(folder)
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        yield importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision cannot be imported: {error}")
    finally:
        if folder:
            sys.path.remove(folder)
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "torchvision":
                del sys.modules[name]
        del library


def _use(architecture: str, layer: str, size: int) -> Any:
    resizing = SimpleNamespace(sizes=(size,), resample="bilinear", precision="uint8")
    return SimpleNamespace(architecture=architecture, layer=layer, mean_std="imagenet", resizing=resizing)


@pytest.mark.parametrize("ours", NETWORKS)
def test_features_are_torchvisions(torchvision: Any, tmp_path: Path, ours: str) -> None:
    name, options, size, layer = NETWORKS[ours]
    with torch.device("meta"):
        model = getattr(torchvision.models, name)(weights=None, **options)
    state = formula_state(model.state_dict())
    model.load_state_dict(state, assign=True)
    model.eval()
    path = tmp_path / "weights.pth"
    # As SwAV's checkpoint: a prefix, and heads that are not ours. The heads' size does not matter.
    prefix = "module." if ours == "resnet50" else ""
    stored = {k: torch.zeros(1) if k.startswith(HEADS) else v for k, v in state.items()}
    stored |= {"projection_head.0.weight": torch.ones(2)} if ours == "resnet50" else {}
    torch.save({prefix + k: v for k, v in stored.items()}, path)
    images = formula_images(2, size)
    seen: dict[str, torch.Tensor] = {}
    pixels = torchvision.transforms.functional.normalize(
        torch.stack([torchvision.transforms.functional.to_tensor(Image.fromarray(x)) for x in images]),
        **IMAGENET,
    )
    mine = load_network(ours, path)
    path.unlink()
    layers = ("features.4", "features.11") if ours == "alexnet" else (layer,)
    for each in layers:
        model.get_submodule(each).register_forward_hook(
            lambda _module, _inputs, output, key=each: seen.update({key: output.clone()})
        )
    with torch.inference_mode():
        model(pixels)
    for each in layers:
        got = feature_network(mine, _use(ours, each, size))(images)
        expected = seen[each].flatten(1).numpy()
        assert np.isfinite(expected).all()
        assert expected.std() > 1e-3
        assert not np.allclose(expected[0], expected[1], rtol=1e-3)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("ours", NETWORKS)
def test_names_and_shapes_are_torchvisions(torchvision: Any, ours: str) -> None:
    from bidsapp.models.judges.protocol_networks import _ARCHITECTURES

    name, options, *_ = NETWORKS[ours]
    kind, unused, _ = _ARCHITECTURES[ours]
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(weights=None, **options).state_dict()
        mine = kind().state_dict()
    expected = {k: v.shape for k, v in theirs.items() if not k.startswith(unused)}
    assert list(expected) == list(mine)
    assert expected == {k: v.shape for k, v in mine.items()}
    assert set(theirs) - set(mine) == {k for k in theirs if k.startswith(HEADS)}


@pytest.mark.parametrize("sizes", [(50,), (80, 33), (96,), (120, 61)])
@pytest.mark.parametrize("precision", ["uint8", "float"])
def test_preprocessing_is_torchvisions(torchvision: Any, sizes: tuple[int, ...], precision: str) -> None:
    functional = torchvision.transforms.functional
    images = formula_images(2, 96)
    expected = []
    for array in images:
        x: Any = Image.fromarray(array)
        if precision == "float":
            x = functional.to_tensor(x)
        for size in sizes:
            x = functional.resize(x, [size, size])
        if precision == "uint8":
            x = functional.to_tensor(x)
        expected.append(functional.normalize(x, **IMAGENET))
    got = Preprocessing(sizes, "bilinear", precision)(images)
    torch.testing.assert_close(got, torch.stack(expected), rtol=0, atol=2e-6)
