"""How many images go through a network at once: the one place that decides.

On CUDA, as many as fit into the free memory by the cost of one (:mod:`bidsapp.models.costs`). Elsewhere, the
number that the recipe or the caller names, or fewer where ``--mem`` or the machine's free memory requires it.
If memory runs out nevertheless, the batch is halved and repeated with the same random numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.errors import AppError, ExitCode
from bidsapp.models.devices import empty_cache, free_memory
from bidsapp.system.limits import is_out_of_memory
from bidsapp.system.logging import counter
from bidsapp.system.resources import as_text

if TYPE_CHECKING:
    import torch

LOG = logging.getLogger("bidsapp")
#: Share of the free memory that batches are planned for. The rest is for what no formula covers: workspaces
#: of convolutions, rounding to blocks, gaps between them.
_SHARE = 0.7
#: Images at once on CUDA, at most; a power of two, so that its halves are too.
_MOST_ON_CUDA = 64


@dataclass(frozen=True)
class Workload:
    """What images go through."""

    #: for messages; a batch size that was found to fit is remembered under it
    name: str
    #: bytes of one image
    cost: int
    #: images at once where memory is not the limit; CUDA has its own number
    most: int


class Batches:
    """Batch sizes of one run, whose process should stay under ``memory`` bytes (``--mem``)."""

    def __init__(self, device: str, memory: int | None = None) -> None:
        self.device, self.memory = device, memory
        #: sizes that were found to fit where a larger one did not, by workload
        self._fitting: dict[str, int] = {}

    def size(self, work: Workload) -> int:
        """Choose a batch size, at least 1: a limit, halved until that many images fit.

        Halving keeps the size the same from run to run unless the free memory changes by a factor.
        """
        size = _MOST_ON_CUDA if self.device.startswith("cuda") else work.most
        free = free_memory(self.device, self.memory)
        while free is not None and size > 1 and size * work.cost > _SHARE * free:
            size //= 2
        return size

    def run(
        self,
        work: Workload,
        n: int,
        call: Callable[[slice], np.ndarray],
        *,
        size: int | None = None,
        generators: Sequence[torch.Generator] = (),
        show: bool = False,
    ) -> np.ndarray:
        """Run all images through something, a batch at a time.

        Parameters
        ----------
        n : int
            Number of images.
        call : callable
            Turns the rows of a batch into an array with one row per image.
        size : int, optional
            Images at once, if chosen before; halved like any other if memory runs out.
        generators : sequence of n torch.Generator
            Those that ``call`` draws from, if any: reset when a batch is repeated.
        show : bool
            Show progress.

        Returns
        -------
        ndarray, shape (n, ...)

        Raises
        ------
        AppError
            Exit code 75 if a single image does not fit.
        """
        size = min(size or self.size(work), self._fitting.get(work.name, n))
        LOG.debug("%s: %d images at once", work.name, size)
        parts: list[np.ndarray] = []
        done = 0
        with counter(n, f"{work.name} (images)") if show else nullcontext(None) as advance:
            while done < n:
                rows = slice(done, min(done + size, n))
                part = _or_none(call, rows, generators)
                if part is None:
                    empty_cache(self.device)
                    size = self._halved(work.name, rows.stop - rows.start)
                    continue
                parts.append(part)
                done = rows.stop
                if advance is not None:
                    advance(len(part))
        return np.concatenate(parts)

    def _halved(self, what: str, size: int) -> int:
        if size == 1:
            raise _does_not_fit(
                f"{what}: not even one image fits", self.device, free_memory(self.device, self.memory)
            )
        half = size // 2
        LOG.warning(
            "%s: %d images at once do not fit into the memory of %s; continuing with %d",
            *(what, size, self.device, half),
        )
        self._fitting[what] = half
        return half


@contextmanager
def fitting(what: str, device: str) -> Iterator[None]:
    """Explain the error where weights do not fit into a device's memory.

    Raises
    ------
    AppError
        Exit code 75.
    """
    failed = False
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        failed = True
    if failed:  # outside the handler, so that the error no longer holds its tensors
        empty_cache(device)
        raise _does_not_fit(f"The weights of {what} do not fit", device, free_memory(device))


def _does_not_fit(what: str, device: str, free: int | None) -> AppError:
    available = f" ({as_text(free)} are free)" if free is not None else ""
    if device.startswith("cuda"):
        advice = (
            "Close other programs on the GPU, use a number format of half the size (--dtype float16 or "
            "bfloat16), or run on the CPU (--device cpu)."
        )
    else:
        advice = "Give more memory (to the job or the container, and --mem), or use --dtype bfloat16."
    return AppError(f"{what} into the memory of {device}{available}. {advice}", exit_code=ExitCode.TRY_AGAIN)


def _or_none(
    call: Callable[[slice], np.ndarray], rows: slice, generators: Sequence[torch.Generator]
) -> np.ndarray | None:
    """Run a batch; None if memory ran out, with the generators as they were before.

    The error is dropped here: its traceback holds the tensors that must be freed.
    """
    states = [g.get_state() for g in generators[rows]]
    try:
        return call(rows)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    for generator, state in zip(generators[rows], states, strict=True):
        generator.set_state(state)
    return None


def in_batches(
    network: Callable[[np.ndarray], np.ndarray], batches: Batches, work: Workload
) -> Callable[[np.ndarray], np.ndarray]:
    """Give a network that takes any number of images, a batch at a time."""

    def features(images: np.ndarray) -> np.ndarray:
        return batches.run(work, len(images), lambda rows: network(images[rows]))

    return features
