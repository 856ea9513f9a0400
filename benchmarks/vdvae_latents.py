"""Latents of VDVAE's first 31 blocks against running all 75: the published configuration, random weights.

    python benchmarks/vdvae_latents.py [--batch 8] [--repeats 3] [--device cpu] [--json FILE]

Both ways run in turn in one process on the same weights and batch; the best time of each counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _measure import RESULTS, save, synchronise

from bidsapp.models.devices import numerics
from bidsapp.models.vdvae import VDVAE, read_config

N_LAYERS = 31


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=RESULTS / "vdvae_latents.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = make_model(options.device)
    size = model.config.image_size
    images = np.random.default_rng(0).integers(0, 256, (options.batch, size, size, 3), dtype=np.uint8)

    def first() -> np.ndarray:
        return model.encode_latents(images, N_LAYERS)

    def everything() -> np.ndarray:
        """All blocks, of which the first are kept: as the public Brain-Diffuser code does."""
        return model.encode_latents(images, model.n_blocks)[:, : sum(model.layer_sizes(N_LAYERS))]

    ways = {f"first {N_LAYERS} blocks": first, f"all {model.n_blocks} blocks": everything}
    seconds, results = measure(ways, options.repeats, options.device)
    one, other = results.values()
    difference = float(np.abs(one - other).max())
    short, long = (min(s) for s in seconds.values())
    print(f"{'':18} {'seconds':>9} {'images/s':>9}")
    for name, times in seconds.items():
        print(f"{name:18} {min(times):9.2f} {options.batch / min(times):9.2f}")
    print(f"ratio {long / short:.2f}; largest difference of the latents {difference:.2g}")
    report = {
        "configuration": "VDVAE ImageNet 64x64, 125005860 parameters, random weights",
        "batch": options.batch,
        "device": options.device,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "ratio": long / short,
        "largest_difference": difference,
    }
    print(f"written: {save(options.json, report, ('torch',))}")


def make_model(device: str) -> VDVAE:
    """Make the published configuration with small random weights."""
    torch.manual_seed(0)
    model = VDVAE(read_config(Path(__file__).parent)).to(device).eval()
    model.half_type = numerics(device).vdvae_half
    return model


def measure(
    ways: dict[str, Callable[[], np.ndarray]], repeats: int, device: str
) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Run the ways in turn, so that a busy machine slows both; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for round_ in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            results[name] = way()
            synchronise(device)
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return seconds, results


if __name__ == "__main__":
    main()
