"""Parts of a training loop: averaged weights, a schedule, and the loop itself."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator

import torch
from torch import nn


class Average:
    """Exponential moving average of a model's weights."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = copy.deepcopy(model), decay
        self.step = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the weights of ``model``; the first steps move further."""
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        for mine, theirs in zip(self.model.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs, 1 - decay)


def schedule(step: int, n_steps: int, peak: float, warm_up: int = 100) -> float:
    """Linear warm-up, then cosine decay to a fiftieth."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, n_steps - warm_up)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def optimise(
    model: nn.Module,
    n_steps: int,
    peak: float,
    average: Average,
    clip: float = 1.0,
    weight_decay: float = 0.0,
) -> Iterator[tuple[int, torch.optim.Optimizer]]:
    """Yield once a step; the caller calls backward, this steps the optimiser."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=weight_decay, betas=(0.9, 0.99))
    start = time.time()
    for step in range(n_steps):
        for group in optimiser.param_groups:
            group["lr"] = schedule(step, n_steps, peak)
        optimiser.zero_grad(set_to_none=True)
        yield step, optimiser
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
        if torch.isfinite(norm):
            optimiser.step()
            average.update(model)
        if step % 50 == 0:
            print(f"{step}/{n_steps} {time.time() - start:.0f}s", end=" ", flush=True)


def half_precision() -> torch.autocast:
    """bfloat16 where the arithmetic allows; weights and losses stay float32."""
    return torch.autocast("cpu", torch.bfloat16)


def count(model: nn.Module) -> str:
    """Say how many parameters a model has."""
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters"
