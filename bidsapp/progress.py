"""Progress of long steps: a bar in a terminal, a plain line in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

LOG = logging.getLogger("bidsapp")
T = TypeVar("T")


def track(items: Sequence[T], what: str, *, every_s: float = 30.0) -> Iterator[T]:
    """Iterate over ``items`` and show how far it is.

    In a terminal a bar is drawn on standard error; elsewhere a line is logged when the step ends,
    and one about every ``every_s`` seconds on the way.
    """
    start = last = time.monotonic()
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=what, leave=False)
    else:
        for done, item in enumerate(items):
            now = time.monotonic()
            if now - last > every_s:
                LOG.info("%s: %d of %d (%.0f s)", what, done, len(items), now - start)
                last = now
            yield item
    LOG.info("%s: %d done in %.1f s", what, len(items), time.monotonic() - start)
