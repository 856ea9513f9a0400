"""The networks of the published evaluation protocols, from their published checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bidsapp.metrics.protocols import NetworkUse
from bidsapp.models import costs
from bidsapp.models.batching import Batches, Workload, in_batches
from bidsapp.models.judges import alexnet, efficientnet, inception, resnet
from bidsapp.models.judges.evalnets import FeatureNetwork, remembered
from bidsapp.models.preprocessing import Preprocessing
from bidsapp.models.weights.checkpoints import load_strictly

CLIP = "clip_vit_l14"
#: Images that go through a network at once where memory is not the limit.
_BATCH = 16
#: Counters that batch norms of old checkpoints lack, and that features do not depend on.
_COUNTERS = ".num_batches_tracked"
#: architecture: class, names of the checkpoint without use here, prefix of its names
_ARCHITECTURES: dict[str, tuple[type[nn.Module], tuple[str, ...], str]] = {
    "alexnet": (alexnet.AlexNet, alexnet.UNUSED, ""),
    "efficientnet_b1": (efficientnet.EfficientNetB1, efficientnet.UNUSED, ""),
    "inception_v3": (inception.InceptionV3, inception.UNUSED, ""),
    "resnet50": (resnet.ResNet50, resnet.UNUSED, resnet.PREFIX),
}


def missing_files(uses: Mapping[str, NetworkUse], folder: Path) -> dict[str, Path]:
    """Checkpoints of networks that are not in the folder, by the networks' names."""
    paths = {name: find_checkpoint(folder, use.file) for name, use in uses.items() if use.file}
    return {name: path for name, path in paths.items() if not path.is_file()}


def find_checkpoint(folder: Path, file: str) -> Path:
    """Path of a checkpoint: as published, or with the ending ``.safetensors`` if that exists."""
    stem = file.removesuffix(".tar").removesuffix(".pth")
    converted = folder / f"{stem}.safetensors"
    return converted if converted.is_file() else folder / file


def load_protocol_networks(
    uses: Mapping[str, NetworkUse],
    folder: Path,
    *,
    clip_vision: nn.Module | None = None,
    device: str = "cpu",
    batches: Batches | None = None,
) -> dict[str, FeatureNetwork]:
    """Load the networks of a protocol, without those whose weights are missing.

    Parameters
    ----------
    folder : Path
        Holds the checkpoints under their published names, or converted to ``.safetensors``.
    clip_vision : transformers CLIPVisionModelWithProjection, optional
        OpenAI's ViT-L/14; without it the protocol's CLIP is left out.
    batches : Batches, optional
        Decides how many images go through a network at once.

    Returns
    -------
    dict of str to callable
        In the order of ``uses``; each takes uint8 images (n, H, W, 3) and returns float32 features
        (n, d). Networks without their weights are left out; :func:`missing_files` names them.

    Raises
    ------
    AppError
        Exit code 65 for a checkpoint that is damaged or of another network.
    ValueError
        For an unknown architecture or layer.
    """
    batches = batches or Batches(device)
    absent = missing_files(uses, folder)
    loaded: dict[tuple[str, str], nn.Module] = {}
    networks: dict[str, FeatureNetwork] = {}
    for name, use in uses.items():
        if name in absent or (use.architecture == CLIP and clip_vision is None):
            continue
        key = (use.architecture, use.file)
        if key not in loaded:
            loaded[key] = _load(use, folder, clip_vision, device)
        features = feature_network(loaded[key], use, device)
        work = Workload(name, _cost(loaded[key], use), _BATCH)
        networks[name] = remembered(in_batches(features, batches, work))
    return networks


def _cost(model: Any, use: NetworkUse) -> int:
    """Bytes of one image's pass."""
    if use.architecture == CLIP:
        return costs.clip_vision(model.config, model.dtype.itemsize)
    return costs.evaluation_network(use.resizing.sizes[-1])


def _load(use: NetworkUse, folder: Path, clip_vision: nn.Module | None, device: str) -> nn.Module:
    if use.architecture == CLIP and clip_vision is not None:
        return clip_vision.to(device).eval()
    return load_network(use.architecture, find_checkpoint(folder, use.file), device)


def load_network(architecture: str, path: Path, device: str = "cpu") -> nn.Module:
    """Load an evaluation network, strictly, in evaluation mode.

    The checkpoint is a torch state dict, read with ``weights_only``, or safetensors. Classifiers, auxiliary
    classifiers and SwAV's projection head are skipped.

    Raises
    ------
    AppError
        Exit code 75 if the file is missing, 65 if it is damaged or of another network.
    ValueError
        For an unknown architecture.
    """
    if architecture not in _ARCHITECTURES:
        raise ValueError(f"unknown architecture {architecture!r}; choose from {sorted(_ARCHITECTURES)}")
    kind, unused, prefix = _ARCHITECTURES[architecture]
    with torch.device("meta"):
        model = kind()
    model.to_empty(device="cpu")
    for name, counter in model.named_buffers():
        if name.endswith(_COUNTERS):
            counter.zero_()
    load_strictly(model, path, unused=unused, prefix=prefix, optional=_COUNTERS)
    return model.to(device).eval()


def feature_network(model: nn.Module, use: NetworkUse, device: str = "cpu") -> FeatureNetwork:
    """Give the function from uint8 images (n, H, W, 3) to float32 features (n, d) of a loaded model."""
    how = use.resizing
    preprocess = Preprocessing(how.sizes, how.resample, how.precision, use.mean_std)
    layer = _layer(model, use)

    @torch.inference_mode()
    def features(images: np.ndarray) -> np.ndarray:
        result: np.ndarray = layer(preprocess(images).to(device)).flatten(1).float().cpu().numpy()
        return result

    return features


def _layer(model: Any, use: NetworkUse) -> Callable[[Tensor], Tensor]:
    if use.architecture == CLIP and use.layer == "image_embeds":
        return lambda x: model(x.to(model.dtype)).image_embeds
    if use.architecture == "alexnet" and use.layer.startswith("features."):
        return partial(model, layer=int(use.layer.removeprefix("features.")))
    if use.architecture in _ARCHITECTURES and use.architecture != "alexnet" and use.layer == "avgpool":
        return partial(model)
    raise ValueError(f"unknown output {use.layer!r} of {use.architecture!r}")
