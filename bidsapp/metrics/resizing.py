"""Resize images, in 8 bits or in floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bidsapp.metrics.protocols import Resizing

Images = npt.NDArray[np.uint8]


def resize(images: Images, size: int, resample: str = "bilinear") -> Images:
    """Resize 8-bit images (n, H, W, 3) to ``size`` x ``size`` pixels (PIL, antialiased).

    Images of that size are returned as they are. ``resample`` is bilinear or bicubic.
    """
    if images.shape[1:3] == (size, size):
        return images
    from PIL import Image

    kernel = Image.Resampling[resample.upper()]
    out = np.empty((images.shape[0], size, size, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        out[i] = np.asarray(Image.fromarray(image).resize((size, size), kernel))
    return out


def apply_resizing(images: Images, how: Resizing) -> npt.NDArray[Any]:
    """Resize 8-bit images (n, H, W, 3) as a protocol does, to (n, S, S, 3).

    The result is uint8, or float32 in [0, 1] where ``how.precision`` is ``float``.
    """
    if how.precision == "uint8":
        for size in how.sizes:
            images = resize(images, size, how.resample)
        return images
    values = images.astype(np.float32) / np.float32(255)
    for size in how.sizes:
        values = _resize_floats(values, size, how.resample)
    return values


def _resize_floats(values: npt.NDArray[np.float32], size: int, resample: str) -> npt.NDArray[np.float32]:
    """Resize in PIL's 32-bit mode, one channel at a time: the kernel of antialiased tensor resizing."""
    if values.shape[1:3] == (size, size):
        return values
    from PIL import Image

    kernel = Image.Resampling[resample.upper()]
    out = np.empty((values.shape[0], size, size, 3), dtype=np.float32)
    for i, image in enumerate(values):
        for channel in range(3):
            plane = Image.fromarray(np.ascontiguousarray(image[..., channel]))
            out[i, ..., channel] = np.asarray(plane.resize((size, size), kernel))
    return out
