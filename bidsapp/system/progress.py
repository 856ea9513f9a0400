"""Progress of long steps: a bar in a terminal, a plain line in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

LOG = logging.getLogger("bidsapp")
T = TypeVar("T")


def track(items: Sequence[T], what: str, *, every_s: float = 30.0) -> Iterator[T]:
    """Iterate over ``items`` and show how far it is, as :func:`counter` does."""
    with counter(len(items), what, every_s=every_s) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def counter(total: int, what: str, *, every_s: float = 30.0) -> Iterator[Callable[[int], None]]:
    """Show how far a step is whose items are done several at a time.

    In a terminal a bar is drawn on standard error; elsewhere a line is logged when the step ends,
    and one about every ``every_s`` seconds on the way.

    Yields
    ------
    callable
        Takes the number of items that were done since the last call.
    """
    start = last = time.monotonic()
    done = 0
    bar = None
    if sys.stderr.isatty():
        from tqdm import tqdm

        bar = tqdm(total=total, desc=what, leave=False)

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if bar is not None:
            bar.update(n)
        elif now - last > every_s and done < total:
            LOG.info("%s: %d of %d (%.0f s)", what, done, total, now - start)
            last = now

    try:
        yield advance
    finally:
        if bar is not None:
            bar.close()
    LOG.info("%s: %d done in %.1f s", what, total, time.monotonic() - start)
