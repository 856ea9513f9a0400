"""Canaries: each model answers a tiny fixed input before a run begins.

The run stops, naming the model, if an answer is not finite, has another shape, is constant, or differs from
the answer recorded with the weights. It also stops if an image reaches a model darker or brighter than it
was. :mod:`bidsapp.models.startup` asks the models.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bidsapp.errors import AppError, ExitCode
from bidsapp.models.devices import numerics, other_format
from bidsapp.models.generators.latent_diffusion import DiffusionSettings
from bidsapp.models.weights.lock import LOCK, Lock

LOG = logging.getLogger("bidsapp")
#: Asks a model: the question, a function that answers it, the answer's shape (-1: any length) -> the answer.
Ask = Callable[[str, Callable[[], np.ndarray], tuple[int, ...]], np.ndarray]
CAPTION = "a photograph of a dog on a beach"
#: Two steps, so that one of them denoises from the middle of the schedule.
SETTINGS = DiffusionSettings(steps=2, strength=1.0, guidance=2.0, noise_one_step_higher=False)
#: Values of an answer that are recorded, next to its mean and its standard deviation.
_KEPT = 14
#: How many grey levels each kept value of an image may differ by.
_GREY_LEVELS = 2.0
#: An image whose grey levels have a smaller standard deviation counts as one flat colour.
_FLAT = 0.5
#: The share of the range from black to white that the fixed image must span when it reaches a model.
#: Resizing takes a little off its rings; an image that is divided by 255 twice spans 0.004.
_SPAN = (0.8, 1.25)
FIX = (
    "The weights are damaged or were replaced, or the device computes wrongly. Fetch them again, or try "
    "--device cpu."
)


@dataclass(frozen=True)
class Canary:
    """One question to a model.

    Attributes
    ----------
    name : str
        In the lock: the model's folder, ``#``, and what is asked.
    where : Path
        The model's weights, for messages.
    shape : tuple of int
        Of the answer; -1 is any length. Images are uint8 (1, H, W, 3).
    weights : str
        Hash of the weights: a recorded answer of others does not count.
    """

    name: str
    where: Path
    shape: tuple[int, ...]
    weights: str = ""

    @property
    def what(self) -> str:
        """What is asked."""
        return self.name.partition("#")[2]

    def refused(self, message: str) -> AppError:
        """Give the error of a wrong answer."""
        return AppError(f"{self.where}: {self.what} {message}", exit_code=ExitCode.BAD_DATA)


def image(side: int) -> np.ndarray:
    """Give the fixed image: two ramps and rings, uint8 (1, side, side, 3)."""
    y, x = np.mgrid[:side, :side] / (side - 1)
    rings = 0.5 + 0.5 * np.cos(20 * np.hypot(x - 0.4, y - 0.6))
    return np.round(255 * np.stack([x, y, rings], axis=-1)).astype(np.uint8)[None]


def tokens(shape: tuple[int, ...]) -> np.ndarray:
    """Give fixed conditions of a shape, float32, of unit norm along the last axis."""
    values = np.cos(np.arange(np.prod(shape)) * 0.7).reshape(shape)
    unit: np.ndarray = (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)
    return unit


def generators() -> list[torch.Generator]:
    """Give the fixed random generator of the one image."""
    return [torch.Generator().manual_seed(0)]


@contextmanager
def given_to(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the first argument of every call of a module."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    try:
        yield seen
    finally:
        hook.remove()


def first_layer(model: nn.Module) -> nn.Module:
    """Give the first convolution, whose input is the image."""
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d))


def ask_for_image(
    ask: Ask, side: int, refine: Callable[[np.ndarray, list[torch.Generator]], np.ndarray]
) -> None:
    """Ask a generator to refine the fixed image of ``side`` pixels."""
    ask("diffusion", lambda: refine(image(side), generators()), (1, side, side, 3))


def ask_for_features(
    ask: Ask,
    name: str,
    where: Path,
    network: tuple[Callable[[np.ndarray], np.ndarray], nn.Module, Sequence[float]],
) -> None:
    """Ask for features of the fixed image, and check the image that the network was given.

    ``network`` is what turns images into features, the module whose input is the image, and the numbers that
    the image's channels are divided by.
    """
    features, first, std = network
    with given_to(first) as seen:
        ask(name, lambda: features(image(64)), (1, -1))
    check_input(name, where, seen, std)


def check_input(what: str, where: Path, given: Sequence[Tensor], std: Sequence[float]) -> None:
    """Check that the fixed image reaches a model with its full range from black to white.

    The field's most reported fault is an image that is divided by 255 twice on its way into CLIP. It is
    almost black then, and every answer is nearly the same, finite and of the right shape.

    Parameters
    ----------
    given : sequence of Tensor, shapes (1, 3, H, W)
        Inputs of its first layer (:func:`given_to`).
    std : sequence of 3 float
        By which the channels of an RGB image in [0, 1] are divided in its preprocessing.

    Raises
    ------
    AppError
        Exit code 70 if a channel does not span the range from black to white, or nothing was given.
    """
    spans = [
        float(channel.max() - channel.min()) * scale
        for x in given
        for channel, scale in zip(x[0].float().cpu(), std, strict=True)
    ]
    wrong = [span for span in spans if not _SPAN[0] <= span <= _SPAN[1]]
    if wrong or not spans:
        found = f"{wrong[0]:.3g} of the range" if wrong else "nothing"
        raise AppError(
            f"{where}: the image given to {what} spans {found} from black to white, but should span all of "
            "it. It is rescaled twice before it gets there, or not at all. This is a bug of the app or of a "
            "library version, not of your data: install the versions that the package asks for, and report "
            "it.",
            exit_code=ExitCode.INTERNAL,
        )


def check(
    canary: Canary, answer: Callable[[], np.ndarray], device: str, dtype: str, lock: Lock | None
) -> np.ndarray:
    """Let a model answer, and compare the answer with the recorded one.

    An answer without a record is recorded, where the models folder is writable.

    Parameters
    ----------
    answer : callable
        Gives the model's answer to the fixed input, on ``device`` in ``dtype``.
    lock : Lock or None
        None for weights that are part of a package: they have no lock.

    Raises
    ------
    AppError
        Exit code 65 if the answer is not finite, has another shape, is constant, or is not the recorded
        one.
    """
    try:
        raw = np.asarray(answer())
    except AppError as error:  # the model may find values that are not finite itself
        raise AppError(f"{canary.where}: {canary.what}: {error}", exit_code=error.exit_code) from error
    values = raw.astype(np.float64)
    if len(values.shape) != len(canary.shape) or any(
        wanted not in (-1, n) for n, wanted in zip(values.shape, canary.shape, strict=True)
    ):
        raise canary.refused(f"answers with shape {values.shape}, not {canary.shape}. {FIX}")
    if not np.isfinite(values).all():
        advice = other_format(numerics(device, dtype).transformers, device)
        raise canary.refused(f"answers with values that are not finite on {device}. {advice}")
    is_image = raw.dtype == np.uint8
    spread = values.std(axis=(1, 2)).max() if is_image else values.std()
    if spread <= (_FLAT if is_image else 0):
        kind = "an image of one colour" if is_image else "one constant value"
        raise canary.refused(f"answers with {kind} on {device}. {FIX}")
    if lock is not None:
        _compare(canary, raw, device, dtype, lock)
    return raw


def _compare(canary: Canary, raw: np.ndarray, device: str, dtype: str, lock: Lock) -> None:
    """Compare an answer with the recorded one, or record it."""
    shape = list(raw.shape)
    kept = [float(f"{v:.7g}") for v in _summary(raw.astype(np.float64))]
    recorded = lock.canaries.get(canary.name)
    if recorded is None or recorded.get("weights", "") != canary.weights:
        record = {"weights": canary.weights, "device": device, "dtype": dtype, "shape": shape, "values": kept}
        if lock.record_canary(canary.name, record) is None:
            LOG.debug(
                "%s: its answer is not recorded: neither the folder nor the user's cache is writable",
                canary.name,
            )
        return
    if recorded.get("shape") != shape or len(recorded.get("values", ())) != len(kept):
        raise canary.refused(f"is not the model that {lock.root / LOCK} recorded. {FIX}")
    reference = np.asarray(recorded["values"], dtype=np.float64)
    size = max(float(np.linalg.norm(reference)), 1e-12)
    drift = float(np.linalg.norm(reference - kept)) / size
    other = numerics(str(recorded["device"]), str(recorded.get("dtype", "auto")))
    allowed = max(numerics(device, dtype).tolerance, other.tolerance)
    if raw.dtype == np.uint8:  # rounding to grey levels can turn a harmless difference into a whole one
        allowed += _GREY_LEVELS * len(kept) ** 0.5 / size
    if not drift <= allowed:
        raise canary.refused(
            f"answers differently from the record in {lock.root / LOCK}: relative difference {drift:.2g}, "
            f"allowed {allowed:.2g} on {device}. {FIX} If the change was intended, delete its entry under "
            "canaries there."
        )


def _summary(values: np.ndarray) -> np.ndarray:
    """Evenly spaced values, the mean and the standard deviation."""
    flat = values.ravel()
    places = np.linspace(0, flat.size - 1, _KEPT).round().astype(int)
    return np.append(flat[places], [flat.mean(), flat.std()])
