"""The noise schedule is the published one, whatever a scheduler file leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from helpers.tiny_diffusion import N_VISION, write_models

from bidsapp.models.generators.latent_diffusion import DiffusionSettings
from bidsapp.models.generators.versatile_diffusion import SCHEDULE, VersatileDiffusion


def test_a_scheduler_file_without_its_numbers_changes_nothing(tmp_path: Path) -> None:
    whole = VersatileDiffusion.load(write_models(tmp_path / "whole"), N_VISION)
    bare = write_models(tmp_path / "bare")
    path = bare / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in SCHEDULE}))
    stripped = VersatileDiffusion.load(bare, N_VISION)
    torch.testing.assert_close(stripped.scheduler.alphas_cumprod, whole.scheduler.alphas_cumprod)
    assert stripped.scheduler.final_alpha_cumprod == whole.scheduler.final_alpha_cumprod
    assert stripped.scheduler.config.clip_sample is False
    timesteps, noised_to = stripped.schedule(DiffusionSettings())
    assert (int(noised_to), int(timesteps[0]), int(timesteps[-1]), len(timesteps)) == (741, 721, 1, 37)
