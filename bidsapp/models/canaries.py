"""Canaries: each model answers a tiny fixed input when it is loaded.

An answer that is not finite, or of another shape, or other than the one that is recorded with the
weights, stops the run with the name of the model, before hours go into images of nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bidsapp.errors import AppError, ExitCode
from bidsapp.models.devices import numerics
from bidsapp.models.latent_diffusion import DiffusionSettings
from bidsapp.models.weights_lock import LOCK, Lock

LOG = logging.getLogger("bidsapp")
CAPTION = "a photograph of a dog on a beach"
#: Two steps, so that one denoises from the middle of the schedule.
SETTINGS = DiffusionSettings(steps=2, strength=1.0, guidance=2.0, noise_one_step_higher=False)
#: Values of an answer that are recorded, beside its mean and its standard deviation.
_KEPT = 14


def image(side: int) -> np.ndarray:
    """Give the fixed picture: two ramps and rings, uint8 (1, side, side, 3)."""
    y, x = np.mgrid[:side, :side] / (side - 1)
    rings = 0.5 + 0.5 * np.cos(20 * np.hypot(x - 0.4, y - 0.6))
    return np.round(255 * np.stack([x, y, rings], axis=-1)).astype(np.uint8)[None]


def tokens(shape: tuple[int, ...]) -> np.ndarray:
    """Give fixed conditions of a shape, float32, of unit norm along the last axis."""
    values = np.cos(np.arange(np.prod(shape)) * 0.7).reshape(shape)
    unit: np.ndarray = (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)
    return unit


def generators() -> list[torch.Generator]:
    """Give the fixed generator of the one image."""
    return [torch.Generator().manual_seed(0)]


#: how many grey levels each kept value of an image may differ by
_GREY_LEVELS = 2.0


def check(
    name: str,
    where: Path,
    answer: Callable[[], np.ndarray],
    shape: tuple[int, ...],
    device: str,
    lock: Lock | None,
    dtype: str = "auto",
) -> None:
    """Let a model answer, and compare the answer with the recorded one.

    Without a recorded answer this one is recorded, in the models folder or in the user's own record.

    Parameters
    ----------
    name : str
        Of the model in the lock: its folder, ``#``, and what it is.
    where : Path
        Its weights, for messages.
    answer : callable
        Gives the model's answer to the fixed input, on ``device``.
    shape : tuple of int
        That the answer must have.
    device : str
    lock : Lock or None
        None for weights that are part of the package: they have no lock.
    dtype : str
        Number format that the model runs in, as :func:`~bidsapp.models.devices.numerics` takes it.

    Raises
    ------
    AppError
        Exit code 65 if the answer is not finite, of another shape, or not the recorded one.
    """
    raw = np.asarray(answer())
    values = raw.astype(np.float64)
    what = name.partition("#")[2]
    mend = (
        "The weights are damaged or were exchanged, or the device computes wrongly: fetch them again, or try "
        "--device cpu."
    )
    if values.shape != shape:
        raise _wrong(f"{where}: {what} answers with shape {values.shape}, not {shape}. {mend}")
    if not np.isfinite(values).all():
        raise _wrong(f"{where}: {what} answers with values that are not finite on {device}. {mend}")
    if lock is None:
        return
    kept = [float(f"{v:.7g}") for v in _summary(values)]
    recorded = lock.canaries.get(name)
    if recorded is None:
        record = {"device": device, "dtype": dtype, "shape": list(shape), "values": kept}
        if lock.record_canary(name, record) is None:
            LOG.debug("%s: its answer is not recorded: no place can be written to", name)
        return
    if recorded.get("shape") != list(shape) or len(recorded.get("values", ())) != len(kept):
        raise _wrong(f"{where}: {what} is not the model that {lock.root / LOCK} recorded. {mend}")
    reference = np.asarray(recorded["values"], dtype=np.float64)
    drift = float(np.linalg.norm(reference - kept) / max(float(np.linalg.norm(reference)), 1e-12))
    other = numerics(str(recorded["device"]), str(recorded.get("dtype", "auto")))
    allowed = max(numerics(device, dtype).tolerance, other.tolerance)
    if raw.dtype == np.uint8:  # rounding to grey levels can turn a harmless difference into a whole one
        allowed += _GREY_LEVELS * len(kept) ** 0.5 / max(float(np.linalg.norm(reference)), 1e-12)
    if not drift <= allowed:
        raise _wrong(
            f"{where}: {what} answers otherwise than when it was recorded in {lock.root / LOCK}: relative "
            f"difference {drift:.2g}, allowed {allowed:.2g} on {device}. {mend} If the change was meant, "
            "delete its entry under canaries there."
        )


def _summary(values: np.ndarray) -> np.ndarray:
    """Evenly spaced values, the mean and the standard deviation."""
    flat = values.ravel()
    places = np.linspace(0, flat.size - 1, _KEPT).round().astype(int)
    return np.append(flat[places], [flat.mean(), flat.std()])


def _wrong(message: str) -> AppError:
    return AppError(message, exit_code=ExitCode.BAD_DATA)
