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

#: How MPS, cuBLAS, cuDNN and the CPU's allocator say that there is no more memory.
_NO_MEMORY = ("out of memory", "alloc_failed", "can't allocate memory", "cannot allocate memory")


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


def numerics(device: str, dtype: str = "auto") -> Numerics:
    """Choose the number formats of a device.

    Parameters
    ----------
    device : {"cpu", "cuda", "mps"}
    dtype : {"auto", "float32", "float16", "bfloat16"}

    Returns
    -------
    Numerics
    """
    import torch

    name = _format_of(device, dtype)
    chosen: torch.dtype = getattr(torch, name)
    half = None if name == "float32" else chosen
    exact = name == "float32" and _kind(device) == "cpu"
    return Numerics(chosen, half, _kind(device) == "cuda", 1e-3 if exact else _TOLERANCE[name])


def _format_of(device: str, dtype: str) -> str:
    """Resolve ``auto``.

    The CPU and Apple's MPS compute in float32: half precision is slow on the first, and gave others
    black images on the second. CUDA computes in float16, as the public code does, with sums in float32
    where they are long.
    """
    if dtype != "auto":
        return dtype
    return "float16" if _kind(device) == "cuda" else "float32"


def _kind(device: str) -> str:
    return device.partition(":")[0]


def choose_dtype(name: str, device: str) -> str:
    """Resolve ``auto`` for a device, and check that the device has the format asked for.

    Raises
    ------
    AppError
        Exit code 64 if it has not.
    """
    import torch

    chosen = _format_of(device, name)
    if (
        chosen == "bfloat16"
        and _kind(device) == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise AppError(
            f"--dtype bfloat16: {torch.cuda.get_device_name()} has no bfloat16. Take --dtype float16, or "
            "--dtype float32 (twice the memory).",
            exit_code=ExitCode.USAGE,
        )
    return chosen


def other_format(dtype: torch.dtype | None, device: str) -> str:
    """Advise what to try where a model's values in ``dtype`` are not finite (None: float32)."""
    name = str(dtype).rpartition(".")[2] if dtype else "float32"
    if name == "float16":
        return (
            "Half precision overflows beyond 65504: run again with --dtype bfloat16, which has the range of "
            "float32, or with --dtype float32, which takes twice the memory."
        )
    if name == "bfloat16":
        return "Run again with --dtype float32, which takes twice the memory."
    if _kind(device) != "cpu":
        return "This is float32, which should hold them: run again with --dtype float32 --device cpu."
    return (
        "This is float32 on the CPU (--dtype float32), which should hold them: the weights or the inputs are "
        "damaged. Fetch the weights again."
    )


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


def describe(device: str) -> str:
    """Name a device so that another GPU or processor has another name."""
    import platform

    import torch

    if _kind(device) == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{_kind(device)} ({platform.machine()})"


def free_memory(device: str, limit: int | None = None) -> int | None:
    """Count the bytes that networks may still take on a device.

    Parameters
    ----------
    device : str
    limit : int, optional
        Bytes that the whole process is to stay under (``--mem``); it does not hold for CUDA, which has
        memory of its own.

    Returns
    -------
    int or None
        None where nothing is known.
    """
    import torch

    if _kind(device) == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # what torch keeps for later is free for it, and used for the driver
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    found = [available_memory()]
    if _kind(device) == "mps":
        found.append(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    held = resident_memory()
    if limit is not None and held is not None:
        found.append(limit - held)
    return min((max(0, n) for n in found if n is not None), default=None)


def fuses_attention(device: str) -> bool:
    """Whether attention is known never to hold a whole matrix of scores: torch has kernels for it."""
    return _kind(device) in ("cpu", "cuda")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice; not all devices have a type of error for it."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)


def empty_cache(device: str) -> None:
    """Give back the memory of tensors that are no more."""
    import gc

    import torch

    gc.collect()
    if _kind(device) == "cuda":
        torch.cuda.empty_cache()
    elif _kind(device) == "mps":
        torch.mps.empty_cache()


def synchronise(device: str) -> None:
    """Wait until a device has done what it was given; the CPU has."""
    import torch

    if _kind(device) == "cuda":
        torch.cuda.synchronize(device)
    elif _kind(device) == "mps":
        torch.mps.synchronize()


def set_threads(n_cpus: int) -> None:
    """Bound torch's threads; the same number gives the same bytes."""
    import torch

    torch.set_num_threads(n_cpus)
