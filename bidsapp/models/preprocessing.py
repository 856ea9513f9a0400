"""From 8-bit images to the tensors that evaluation networks take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

#: Mean and standard deviation of RGB in [0, 1]: ImageNet's as torchvision has them, and CLIP's own.
MEAN_STD = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


@dataclass(frozen=True)
class Preprocessing:
    """How images are resized to squares, one size after the other, and normalised.

    The precision ``uint8`` is PIL on 8-bit images, rounded after each step; ``float`` is antialiased resizing
    of tensors in [0, 1].
    """

    sizes: tuple[int, ...]
    resample: str = "bilinear"
    precision: str = "uint8"
    mean_std: str = "imagenet"

    def __post_init__(self) -> None:
        known = (("bilinear", "bicubic"), ("uint8", "float"), tuple(MEAN_STD))
        for value, choices in zip((self.resample, self.precision, self.mean_std), known, strict=True):
            if value not in choices:
                raise ValueError(f"unknown choice {value!r}; choose from {choices}")

    def __call__(self, images: np.ndarray) -> Tensor:
        """Resize and normalise on the CPU, so that every device gets the same numbers.

        Returns
        -------
        Tensor of float32, shape (n, 3, S, S)

        Raises
        ------
        TypeError
            If the images are not uint8 (n, H, W, 3): a float image could be divided by 255 twice.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise TypeError(f"expected uint8 images (n, H, W, 3), got {images.dtype} {images.shape}")
        x = self._by_pillow(images) if self.precision == "uint8" else self._by_torch(images)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in MEAN_STD[self.mean_std])
        return (x - mean) / std

    def _by_pillow(self, images: np.ndarray) -> Tensor:
        kernel = Image.Resampling[self.resample.upper()]
        rows = []
        for array in images:
            image = Image.fromarray(array)
            for size in self.sizes:
                image = image.resize((size, size), kernel)
            rows.append(np.asarray(image))
        return _channels_first(np.stack(rows))

    def _by_torch(self, images: np.ndarray) -> Tensor:
        x = _channels_first(images)
        for size in self.sizes:
            if x.shape[2:] != (size, size):
                # bicubic overshoots [0, 1]
                x = F.interpolate(
                    x, (size, size), mode=self.resample, align_corners=False, antialias=True
                ).clamp(0, 1)
        return x


def _channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float().div(255)
