"""Every choice that depends on the device, in one place."""

from __future__ import annotations

from bidsapp.errors import AppError, ExitCode


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
