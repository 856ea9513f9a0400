"""Every choice that depends on the device, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bidsapp.errors import AppError, ExitCode

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Numerics:
    """Number formats and memory layout of a device.

    Attributes
    ----------
    transformers : torch.dtype
        Weights of the UNet, AutoKL and CLIP. Latents and guidance are float32 everywhere.
    vdvae_half : torch.dtype or None
        Type that the VDVAE's convolutions run in (autocast); its weights and sums are float32.
    channels_last : bool
        Store the weights of convolutions channels last.
    tolerance : float
        Relative difference within which a model's answer counts as the same as on another device.
    """

    transformers: torch.dtype
    vdvae_half: torch.dtype | None
    channels_last: bool
    tolerance: float


def numerics(device: str) -> Numerics:
    """Choose the number formats of a device.

    The CPU and Apple's MPS compute in float32: half precision is slow on the first, and gave others
    black images on the second. CUDA computes in float16, as the public code does, with sums in float32
    where they are long.

    Parameters
    ----------
    device : {"cpu", "cuda", "mps"}

    Returns
    -------
    Numerics
    """
    import torch

    if device.partition(":")[0] == "cuda":
        return Numerics(torch.float16, torch.float16, True, 3e-2)
    return Numerics(torch.float32, None, False, 1e-3 if device == "cpu" else 1e-2)


def choose_device(name: str) -> str:
    """Resolve ``auto``, and check that the device asked for is there.

    ``auto`` takes CUDA where there is one, else the CPU. Apple's MPS is taken only when asked for:
    half precision gave black images there for others, and it was not tried for this project.

    Raises
    ------
    AppError
        Exit code 64 if the device is not available.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(name, False):
        usable = ", ".join(k for k, v in there.items() if v)
        raise AppError(
            f"--device {name}: this machine (or this build of torch) has none; usable here: {usable}. "
            "In a container, was the GPU passed in (docker --gpus all, apptainer --nv)?",
            exit_code=ExitCode.USAGE,
        )
    return name


def set_threads(n_cpus: int) -> None:
    """Bound torch's threads; the same number gives the same bytes."""
    import torch

    torch.set_num_threads(n_cpus)
