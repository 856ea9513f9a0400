"""Images per second of stage 2 at full size: Versatile Diffusion's sizes, random weights, several batches.

    python benchmarks/stage2_speed.py [--device cuda] [--dtype auto] [--most 64] [--config tiny] [--json FILE]

Batches double from 1 up to what fits (bidsapp.models.batching), ascending in one process; the best time of
each counts. Steps, strength and guidance are the paper's recipe's. Peak memory is what torch took on a GPU
(weights included), and the process's own on the CPU. A full-size image takes 17 minutes on two cores by its
27 s a step: there ``--config tiny`` runs the same code in seconds.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import RESULTS, megabytes, peak_memory, save, synchronise, table

from bidsapp.config import load_recipe
from bidsapp.models.batching import Batches, Workload
from bidsapp.models.devices import choose_device, choose_dtype, device_name, numerics
from bidsapp.models.generators.dual_attention import add_text_path
from bidsapp.models.generators.latent_diffusion import DiffusionSettings
from bidsapp.models.generators.versatile_diffusion import SCHEDULE, VersatileDiffusion
from bidsapp.system.limits import is_out_of_memory

#: What a GPU of the size that many have holds.
SMALL_GPU = 12e9
#: Sizes of the published models and of tiny ones: UNet, AutoKL, tokens of an image and of a caption.
CONFIGS: dict[str, dict[str, Any]] = {
    "full": {
        "unet": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        "vae": {
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "block_out_channels": (128, 256, 512, 512),
            "layers_per_block": 2,
            "sample_size": 512,
        },
        "vision": (257, 768),
        "text": (77, 768),
    },
    "tiny": {
        "unet": {
            "sample_size": 8,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "cross_attention_dim": 12,
            "attention_head_dim": 2,
        },
        "vae": {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "block_out_channels": (8, 8),
            "norm_num_groups": 4,
            "sample_size": 16,
        },
        "vision": (5, 12),
        "text": (3, 12),
    },
}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", choices=CONFIGS, default="full")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    parser.add_argument("--dtype", choices=["auto", "float32", "float16", "bfloat16"], default="auto")
    parser.add_argument("--most", type=int, default=64, help="the largest batch")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--steps", type=int, help="of the whole schedule (default: the recipe's 50)")
    parser.add_argument("--json", type=Path, default=RESULTS / "stage2_speed.json")
    given = parser.parse_args()
    device = choose_device(given.device)
    dtype = choose_dtype(given.dtype, device)
    settings = settings_of(given.steps)
    model = make_model(given.config, device, dtype)
    parameters = sum(p.numel() for part in (model.unet, model.vae) for p in part.parameters())
    n_run = int(settings.steps * settings.strength)
    print(f"{parameters / 1e6:.1f} M parameters, {dtype} on {device_name(device)}, {n_run} guided steps")
    found = measure(model, given.config, settings, device, given.most, given.repeats)
    rows = [
        [r["batch"], f"{r['seconds']:.2f}", f"{r['images_per_second']:.3f}", megabytes(r["memory_peak"])]
        for r in found
    ]
    print(table(["batch", "seconds", "images/s", "peak MB"], rows))
    best = max(found, key=lambda r: r["images_per_second"])
    fitting = [r["batch"] for r in found if r["memory_peak"] <= SMALL_GPU]
    print(f"best: {best['batch']} at once, {best['images_per_second']:.3f} images/s")
    print(f"under 12 GB: {', '.join(map(str, fitting)) or 'none'} at once")
    results = {
        "configuration": f"{given.config}: {parameters} parameters, random weights",
        "device": device_name(device),
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "guided_steps": n_run,
        "batches": found,
        "best_batch": best["batch"],
    }
    print(f"written: {save(given.json, results, ('torch', 'diffusers'))}")


def settings_of(steps: int | None) -> DiffusionSettings:
    """Give the numbers of the paper's recipe, with another number of steps where asked for."""
    section = load_recipe("brain-diffuser").diffusion
    settings = DiffusionSettings(
        steps=section.steps,
        strength=section.strength,
        guidance=section.guidance,
        text_share=section.text_share,
        noise_one_step_higher=section.noise_one_step_higher,
        sample_posterior=section.sample_posterior,
    )
    return replace(settings, steps=steps) if steps else settings


def make_model(config: str, device: str, dtype: str) -> VersatileDiffusion:
    """Make the dual-guided models with random weights, in the number format that a run would take."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    torch.manual_seed(0)
    sizes, chosen = CONFIGS[config], numerics(device, dtype).transformers
    with torch.device(device):
        unet: Any = UNet2DConditionModel(**sizes["unet"])
        vae: Any = AutoencoderKL(**sizes["vae"])
    add_text_path(unet, sizes["vision"][0])
    # module by module: to() of the whole would speak of parts to be kept in float32, of which there are none
    for part in (unet, vae):
        for module in part.children():
            module.to(chosen)
    return VersatileDiffusion(vae.eval(), unet.eval(), DDIMScheduler(**SCHEDULE))


def measure(
    model: VersatileDiffusion, config: str, settings: DiffusionSettings, device: str, most: int, repeats: int
) -> list[dict[str, Any]]:
    """Time batches of 1, 2, 4 ... images, as long as they fit."""
    largest = min(most, Batches(device).size(Workload("stage 2", model.cost(), most)))
    found: list[dict[str, Any]] = []
    batch = 1
    while batch <= largest:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            run(model, config, replace(settings, steps=2), batch)  # kernels are chosen here
            seconds = [timed(model, config, settings, batch, device) for _ in range(repeats)]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            print(f"{batch} at once do not fit")
            break
        peak = torch.cuda.max_memory_reserved() if device == "cuda" else peak_memory()
        found.append(
            {
                "batch": batch,
                "seconds": min(seconds),
                "all_seconds": seconds,
                "images_per_second": batch / min(seconds),
                "memory_peak": peak,
                "cost_planned": model.cost(),
            }
        )
        batch *= 2
    return found


def timed(
    model: VersatileDiffusion, config: str, settings: DiffusionSettings, batch: int, device: str
) -> float:
    """Seconds of one batch, to the end of its last kernel."""
    synchronise(device)
    start = time.perf_counter()
    run(model, config, settings, batch)
    synchronise(device)
    return time.perf_counter() - start


def run(model: VersatileDiffusion, config: str, settings: DiffusionSettings, batch: int) -> np.ndarray:
    """Make a batch of images from random ones under random tokens."""
    rng, sizes = np.random.default_rng(0), CONFIGS[config]
    initial = rng.integers(0, 256, (batch, 64, 64, 3), dtype=np.uint8)
    seen, read = (rng.normal(size=(batch, *sizes[k])).astype(np.float32) for k in ("vision", "text"))
    generators = [torch.Generator().manual_seed(i) for i in range(batch)]
    nothing = (np.zeros_like(seen[:1]), np.zeros_like(read[:1]))
    return model.image_to_image(initial, seen, read, nothing, generators, settings)


if __name__ == "__main__":
    main()
