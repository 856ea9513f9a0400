"""Every choice that depends on the device, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bidsapp.errors import AppError, ExitCode
from bidsapp.system.resources import available_memory, resident_memory

if TYPE_CHECKING:
    import torch


#: Relative drift of an answer, and by how much each format rounds more than float32 on the CPU.
_TOLERANCE = {"float32": 1e-2, "float16": 3e-2, "bfloat16": 1e-1}


@dataclass(frozen=True)
class Numerics:
    """Number formats and memory layout of a device."""

    #: weights of the UNet, AutoKL and CLIP; latents and guidance are float32 everywhere
    transformers: torch.dtype
    #: type that the VDVAE's convolutions run in (autocast); its weights and sums are float32
    vdvae_half: torch.dtype | None
    #: store the weights of convolutions channels last
    channels_last: bool
    #: relative difference within which a model's answer counts as the same as on another device
    tolerance: float


def numerics(device: str, dtype: str = "auto") -> Numerics:
    """Choose the number formats of a device; ``dtype`` is auto, float32, float16 or bfloat16."""
    import torch

    name = _format_of(device, dtype)
    chosen: torch.dtype = getattr(torch, name)
    half = None if name == "float32" else chosen
    exact = name == "float32" and _kind(device) == "cpu"
    return Numerics(chosen, half, _kind(device) == "cuda", 1e-3 if exact else _TOLERANCE[name])


def _format_of(device: str, dtype: str) -> str:
    """Resolve ``auto``: float16 on CUDA, as in the public code, with long sums in float32.

    The CPU and Apple's MPS compute in float32: half precision is slow on the first, and others got black
    images on the second.
    """
    if dtype != "auto":
        return dtype
    return "float16" if _kind(device) == "cuda" else "float32"


def _kind(device: str) -> str:
    return device.partition(":")[0]


def choose_dtype(name: str, device: str) -> str:
    """Resolve ``auto`` for a device, and check that the device supports the format.

    Raises
    ------
    AppError
        Exit code 64 if it does not.
    """
    import torch

    chosen = _format_of(device, name)
    if (
        chosen == "bfloat16"
        and _kind(device) == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise AppError(
            f"--dtype bfloat16: {torch.cuda.get_device_name()} does not support bfloat16. Use "
            "--dtype float16, or --dtype float32 (twice the memory).",
            exit_code=ExitCode.USAGE,
        )
    return chosen


def other_format(dtype: torch.dtype | None, device: str) -> str:
    """Advise what to try if a model's values in ``dtype`` are not finite (None: float32)."""
    name = str(dtype).rpartition(".")[2] if dtype else "float32"
    if name == "float16":
        return (
            "float16 overflows beyond 65504. Run again with --dtype bfloat16, which has the range of "
            "float32, or with --dtype float32, which takes twice the memory."
        )
    if name == "bfloat16":
        return "Run again with --dtype float32, which takes twice the memory."
    if _kind(device) != "cpu":
        return "float32 should hold them. Run again with --dtype float32 --device cpu."
    return (
        "float32 on the CPU (--dtype float32) should hold them, so the weights or the inputs are damaged. "
        "Fetch the weights again."
    )


def choose_device(name: str) -> str:
    """Resolve ``auto`` (CUDA where available, else the CPU), and check that the device exists.

    Apple's MPS is used only when asked for: it was not tried for this project, and others got black images
    in half precision.

    Raises
    ------
    AppError
        Exit code 64 if the device is not available.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    exists = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not exists.get(name, False):
        usable = ", ".join(k for k, v in exists.items() if v)
        raise AppError(
            f"--device {name}: not available on this machine or in this build of torch. Choose from: "
            f"{usable}. In a container, pass the GPU in (docker --gpus all, apptainer --nv).",
            exit_code=ExitCode.USAGE,
        )
    return name


def device_name(device: str) -> str:
    """Name a device and its GPU or processor, for records."""
    import platform

    import torch

    if _kind(device) == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{_kind(device)} ({platform.machine()})"


def free_memory(device: str, limit: int | None = None) -> int | None:
    """Count the bytes that networks may still take on a device; None if unknown.

    ``limit`` is the number of bytes that the process should stay under (``--mem``). It does not apply to
    CUDA, which has its own memory.
    """
    import torch

    if _kind(device) == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # memory that torch keeps for later is free for torch, but the driver counts it as used
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    found = [available_memory()]
    if _kind(device) == "mps":
        found.append(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    held = resident_memory()
    if limit is not None and held is not None:
        found.append(limit - held)
    return min((max(0, n) for n in found if n is not None), default=None)


def fuses_attention(device: str) -> bool:
    """Whether torch has attention kernels that never hold a whole matrix of scores."""
    return _kind(device) in ("cpu", "cuda")


def empty_cache(device: str) -> None:
    """Return the memory of deleted tensors."""
    import gc

    import torch

    gc.collect()
    if _kind(device) == "cuda":
        torch.cuda.empty_cache()
    elif _kind(device) == "mps":
        torch.mps.empty_cache()


def set_threads(n_cpus: int) -> None:
    """Limit torch's threads; the same number gives the same bytes."""
    import torch

    torch.set_num_threads(n_cpus)
