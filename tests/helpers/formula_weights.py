"""Weights and images that are the same everywhere, for values written down in tests."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def formula_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Fill a state dict's tensors with values that depend on their names and shapes only."""
    return {name: _fill(name, tensor) for name, tensor in state.items()}


def _fill(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    # Raw bits of a generator are the one thing of it that never changes between releases.
    bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw(tensor.numel()) >> np.uint64(40)
    uniform = bits.astype(np.float32) / np.float32(1 << 24)
    if tensor.ndim > 1:
        fan_in = tensor[0].numel()
        values = (2 * uniform - 1) * np.float32((6 / fan_in) ** 0.5)
    elif name.endswith(("weight", "running_var")):
        values = uniform + np.float32(0.5)
    else:
        values = (uniform - np.float32(0.5)) / np.float32(5)
    return torch.from_numpy(values.reshape(tuple(tensor.shape)))


def formula_images(n: int, size: int) -> np.ndarray:
    """Images of coarse and fine detail, uint8 (n, size, size, 3)."""
    coarse = np.random.PCG64(5).random_raw(n * 25 * 3).reshape(n, 5, 5, 3) >> np.uint64(56)
    fine = np.random.PCG64(6).random_raw(n * size * size * 3).reshape(n, size, size, 3) >> np.uint64(57)
    place = np.arange(size) * 5 // size
    return (coarse[:, place][:, :, place] // np.uint64(2) + fine).astype(np.uint8)
