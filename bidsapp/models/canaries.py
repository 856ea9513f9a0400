"""Canaries: each model answers a tiny fixed input before a run begins.

An answer that is not finite, of another shape, of one value all over, or other than the one that is recorded
with the weights stops the run with the name of the model, before hours go into images of nothing. So does a
picture that reaches a model darker or brighter than it was. :mod:`bidsapp.models.startup` asks the models.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bidsapp.errors import AppError, ExitCode
from bidsapp.models.devices import numerics, other_format
from bidsapp.models.generators.latent_diffusion import DiffusionSettings
from bidsapp.models.weights.lock import LOCK, Lock

LOG = logging.getLogger("bidsapp")
CAPTION = "a photograph of a dog on a beach"
#: Two steps, so that one denoises from the middle of the schedule.
SETTINGS = DiffusionSettings(steps=2, strength=1.0, guidance=2.0, noise_one_step_higher=False)
#: Values of an answer that are recorded, beside its mean and its standard deviation.
_KEPT = 14
#: How many grey levels each kept value of an image may differ by.
_GREY_LEVELS = 2.0
#: An image whose grey levels deviate by less is one flat colour.
_FLAT = 0.5
#: How much of the way from black to white a model must be given of the fixed picture, which has all of it.
#: Resizing takes a little off its rings; an image that is divided by 255 twice spans 0.004.
_SPAN = (0.8, 1.25)
MEND = (
    "The weights are damaged or were exchanged, or the device computes wrongly: fetch them again, or try "
    "--device cpu."
)


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


@contextmanager
def given_to(module: nn.Module) -> Iterator[list[Tensor]]:
    """Keep what a module is given: a list that fills with its first arguments."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    try:
        yield seen
    finally:
        hook.remove()


def check_input(what: str, where: Path, given: Sequence[Tensor], std: Sequence[float]) -> None:
    """Check that a model is given the fixed picture from black to white.

    The field's most reported fault is an image that is divided by 255 twice on its way into CLIP: almost
    black, and every answer nearly the same, finite and of the right shape.

    Parameters
    ----------
    what, where : str, Path
        The model and its weights, for messages.
    given : sequence of Tensor, shapes (1, 3, H, W)
        What went into its first layer (:func:`given_to`).
    std : sequence of 3 float
        By which the channels of an RGB image in [0, 1] are divided in its preprocessing.

    Raises
    ------
    AppError
        Exit code 70 if a channel does not span the way from black to white, or nothing was given.
    """
    spans = [
        float(channel.max() - channel.min()) * scale
        for x in given
        for channel, scale in zip(x[0].float().cpu(), std, strict=True)
    ]
    wrong = [span for span in spans if not _SPAN[0] <= span <= _SPAN[1]]
    if wrong or not spans:
        found = f"{wrong[0]:.3g} of the way" if wrong else "nothing"
        raise AppError(
            f"{where}: the picture given to {what} spans {found} from black to white, where all of it "
            "should be. It is rescaled twice on the way, or not at all. This is a fault of the program or of "
            "the version of a library, not of your data: install the versions that the package asks for, "
            "and report it.",
            exit_code=ExitCode.INTERNAL,
        )


def check(
    name: str,
    where: Path,
    answer: Callable[[], np.ndarray],
    shape: tuple[int, ...],
    device: str,
    lock: Lock | None,
    dtype: str = "auto",
) -> np.ndarray:
    """Let a model answer, and compare the answer with the recorded one.

    Without a recorded answer this one is recorded, where the models folder can be written to.

    Parameters
    ----------
    name : str
        Of the model in the lock: its folder, ``#``, and what it is.
    where : Path
        Its weights, for messages.
    answer : callable
        Gives the model's answer to the fixed input, on ``device``.
    shape : tuple of int
        That the answer must have; -1 is any length. Pictures are uint8 (1, H, W, 3).
    device : str
    lock : Lock or None
        None for weights that are part of the package: they have no lock.
    dtype : str
        Number format that the model runs in, as :func:`~bidsapp.models.devices.numerics` takes it.

    Returns
    -------
    ndarray
        The answer.

    Raises
    ------
    AppError
        Exit code 65 if the answer is not finite, of another shape, of one value all over, or not the
        recorded one.
    """
    what = name.partition("#")[2]
    try:
        raw = np.asarray(answer())
    except AppError as error:  # that it is not finite may be found on the way
        raise AppError(f"{where}: {what}: {error}", exit_code=error.exit_code) from error
    values = raw.astype(np.float64)
    if len(values.shape) != len(shape) or any(
        wanted not in (-1, n) for n, wanted in zip(values.shape, shape, strict=True)
    ):
        raise _wrong(f"{where}: {what} answers with shape {values.shape}, not {shape}. {MEND}")
    formats = numerics(device, dtype)
    if not np.isfinite(values).all():
        advice = other_format(formats.transformers, device)
        raise _wrong(f"{where}: {what} answers with values that are not finite on {device}. {advice}")
    picture = raw.dtype == np.uint8
    spread = values.std(axis=(1, 2)).max() if picture else values.std()
    if spread <= (_FLAT if picture else 0):
        kind = "a picture of one colour" if picture else "the same value all over"
        raise _wrong(f"{where}: {what} answers with {kind} on {device}. {MEND}")
    if lock is not None:
        _compare(name, where, raw, device, dtype, lock)
    return raw


def _compare(name: str, where: Path, raw: np.ndarray, device: str, dtype: str, lock: Lock) -> None:
    """Compare an answer with the recorded one, or record it."""
    what, shape = name.partition("#")[2], list(raw.shape)
    kept = [float(f"{v:.7g}") for v in _summary(raw.astype(np.float64))]
    recorded = lock.canaries.get(name)
    if recorded is None:
        record = {"device": device, "dtype": dtype, "shape": shape, "values": kept}
        if lock.record_canary(name, record) is None:
            LOG.debug("%s: its answer is not recorded: no place can be written to", name)
        return
    if recorded.get("shape") != shape or len(recorded.get("values", ())) != len(kept):
        raise _wrong(f"{where}: {what} is not the model that {lock.root / LOCK} recorded. {MEND}")
    reference = np.asarray(recorded["values"], dtype=np.float64)
    size = max(float(np.linalg.norm(reference)), 1e-12)
    drift = float(np.linalg.norm(reference - kept)) / size
    other = numerics(str(recorded["device"]), str(recorded.get("dtype", "auto")))
    allowed = max(numerics(device, dtype).tolerance, other.tolerance)
    if raw.dtype == np.uint8:  # rounding to grey levels can turn a harmless difference into a whole one
        allowed += _GREY_LEVELS * len(kept) ** 0.5 / size
    if not drift <= allowed:
        raise _wrong(
            f"{where}: {what} answers otherwise than when it was recorded in {lock.root / LOCK}: relative "
            f"difference {drift:.2g}, allowed {allowed:.2g} on {device}. {MEND} If the change was meant, "
            "delete its entry under canaries there."
        )


def _summary(values: np.ndarray) -> np.ndarray:
    """Evenly spaced values, the mean and the standard deviation."""
    flat = values.ravel()
    places = np.linspace(0, flat.size - 1, _KEPT).round().astype(int)
    return np.append(flat[places], [flat.mean(), flat.std()])


def _wrong(message: str) -> AppError:
    return AppError(message, exit_code=ExitCode.BAD_DATA)
