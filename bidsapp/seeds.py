"""The only source of randomness: seeds derived from the run's seed and their purpose."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_for(run_seed: int, *parts: str) -> int:
    """Derive a 63-bit seed from the run's seed and every part, and from nothing else."""
    text = "\x1f".join([str(run_seed), *parts])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def image_generators(
    run_seed: int, subject: str, stimulus_ids: Sequence[str], purpose: str
) -> list[torch.Generator]:
    """Make a CPU generator for each image, so that no image depends on its position in the list."""
    import torch

    return [
        torch.Generator().manual_seed(seed_for(run_seed, subject, stimulus, purpose))
        for stimulus in stimulus_ids
    ]
