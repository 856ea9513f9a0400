"""How many images go through a network at once: the one place that decides.

On CUDA as many as fit into the free memory by the cost of one (:mod:`bidsapp.models.costs`); elsewhere the
number that the recipe or the caller names, or less where ``--mem`` or the machine's free memory does not
allow it. Where memory runs out all the same, the batch is halved and done again with the same random
numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.errors import AppError, ExitCode
from bidsapp.models.devices import empty_cache, free_memory, is_out_of_memory
from bidsapp.system.progress import counter
from bidsapp.system.units import as_text

if TYPE_CHECKING:
    import torch

LOG = logging.getLogger("bidsapp")
#: Share of the free memory that batches are planned for. The rest is for what no formula knows:
#: workspaces of convolutions, rounding to blocks, gaps between them.
_SHARE = 0.7
#: Images at once on CUDA, however much memory there is; a power of two, so that the halves are too.
_MOST_ON_CUDA = 64


class Batches:
    """Batch sizes of one run.

    Parameters
    ----------
    device : str
    memory : int, optional
        Bytes that the process is to stay under (``--mem``).
    """

    def __init__(self, device: str, memory: int | None = None) -> None:
        self.device, self.memory = device, memory
        #: sizes that were found to fit where a larger one did not, by what was run
        self._fitting: dict[str, int] = {}

    def size(self, cost: int, most: int) -> int:
        """Choose a batch size: a limit, halved until that many fit.

        Halving keeps the size the same from run to run unless the free memory changes by a factor.

        Parameters
        ----------
        cost : int
            Bytes that one image takes.
        most : int
            Images at once where memory is no concern; CUDA has its own limit.

        Returns
        -------
        int
            At least 1.
        """
        size = _MOST_ON_CUDA if self.device.startswith("cuda") else most
        room = free_memory(self.device, self.memory)
        while room is not None and size > 1 and size * cost > _SHARE * room:
            size //= 2
        return size

    def run(
        self,
        what: str,
        n: int,
        call: Callable[[slice], np.ndarray],
        *,
        cost: int,
        most: int,
        size: int | None = None,
        generators: Sequence[torch.Generator] = (),
        show: bool = False,
    ) -> np.ndarray:
        """Run something on all images, a batch at a time.

        Parameters
        ----------
        what : str
            For messages; also names what a size that was found to fit is remembered for.
        n : int
            Number of images.
        call : callable
            Takes the rows of a batch, returns an array with a row an image.
        cost, most : int
            As :meth:`size` takes them.
        size : int, optional
            Images at once, where that was chosen before; halved like any other where memory runs out.
        generators : sequence of n torch.Generator
            Those that ``call`` draws from, if any: put back to where they were when a batch is done
            again.
        show : bool
            Show progress.

        Returns
        -------
        ndarray, shape (n, ...)

        Raises
        ------
        AppError
            Exit code 75 if one image by itself does not fit.
        """
        size = min(size or self.size(cost, most), self._fitting.get(what, n))
        LOG.debug("%s: %d images at once", what, size)
        parts: list[np.ndarray] = []
        done = 0
        with counter(n, f"{what} (images)") if show else nullcontext(None) as advance:
            while done < n:
                rows = slice(done, min(done + size, n))
                part = _or_none(call, rows, generators)
                if part is None:
                    empty_cache(self.device)
                    size = self._halved(what, rows.stop - rows.start)
                    continue
                parts.append(part)
                done = rows.stop
                if advance is not None:
                    advance(len(part))
        return np.concatenate(parts)

    def _halved(self, what: str, size: int) -> int:
        if size == 1:
            room = free_memory(self.device, self.memory)
            there = f" ({as_text(room)} are free)" if room is not None else ""
            raise AppError(
                f"{what}: not even one image fits into the memory of {self.device}{there}. "
                f"{_advice(self.device)}",
                exit_code=ExitCode.TRY_AGAIN,
            )
        half = size // 2
        LOG.warning(
            "%s: %d images at once do not fit into the memory of %s; going on with %d",
            *(what, size, self.device, half),
        )
        self._fitting[what] = half
        return half


@contextmanager
def fitting(what: str, device: str) -> Iterator[None]:
    """Word the error where weights do not fit into a device's memory.

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
    if failed:  # the error is gone, and what it held with it
        empty_cache(device)
        room = free_memory(device)
        there = f" ({as_text(room)} are free)" if room is not None else ""
        raise AppError(
            f"The weights of {what} do not fit into the memory of {device}{there}. {_advice(device)}",
            exit_code=ExitCode.TRY_AGAIN,
        )


def _or_none(
    call: Callable[[slice], np.ndarray], rows: slice, generators: Sequence[torch.Generator]
) -> np.ndarray | None:
    """Run a batch; None where memory ran out, with the generators as they were before.

    The error is dropped here: its traceback holds the tensors that have to go.
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


def _advice(device: str) -> str:
    if device.startswith("cuda"):
        return (
            "Close other programs on the GPU, take a number format of half the size (--dtype float16 or "
            "bfloat16), or run on the CPU (--device cpu)."
        )
    return "Give more memory (of the job or the container, and --mem), or take --dtype bfloat16."


def in_batches(
    network: Callable[[np.ndarray], np.ndarray], batches: Batches, what: str, *, cost: int, most: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Give a network that takes any number of images, a batch at a time."""

    def features(images: np.ndarray) -> np.ndarray:
        return batches.run(what, len(images), lambda rows: network(images[rows]), cost=cost, most=most)

    return features
