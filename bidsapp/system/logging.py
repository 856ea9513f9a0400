"""What a run reports while it runs: log lines, a log file, progress of long steps."""

from __future__ import annotations

import logging
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from bidsapp.errors import as_shown
from bidsapp.system.write_errors import reason, writing

LOG = logging.getLogger("bidsapp")
T = TypeVar("T")
#: ``extra`` of a line that a terminal shows with ``-v`` only; log files and batch logs always have it.
ROUTINE = {"routine": True}


def new_run_id() -> str:
    """Make an id that sorts by time: ``20260131T120000-1a2b3c``."""
    return f"{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(3)}"


class _Plain(logging.Formatter):
    """Lines in which text from files can neither control the terminal nor look like another message.

    Further lines of a message are indented, so a line break in a file's name begins no line of the log.
    """

    def format(self, record: logging.LogRecord) -> str:
        return as_shown(super().format(record)).replace("\n", "\n    ")


def set_up_logging(verbose: int) -> None:
    """Log plain lines to standard error; ``-v`` adds warnings of libraries, ``-vv`` debugging lines.

    In a terminal, ``-v`` also adds the lines of :data:`ROUTINE`.
    """
    handler = logging.StreamHandler()
    if not verbose and sys.stderr.isatty():
        handler.addFilter(lambda record: not getattr(record, "routine", False))
    handler.setFormatter(_Plain("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING if verbose else logging.ERROR)
    LOG.setLevel(logging.DEBUG if verbose > 1 else logging.INFO)


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Also write the app's log lines to a file while the body runs.

    If the disk fills up, lines are missing from the file; the run itself reports the full disk.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(_Plain("%(asctime)s %(levelname)s %(message)s"))
    LOG.addHandler(handler)
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        try:
            handler.close()
        except OSError as error:
            if reason(error) is None:
                raise


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Leave a line out if the disk is full, instead of printing a traceback for each."""
        error = sys.exc_info()[1]
        if error is None or reason(error) is None:
            super().handleError(record)


def track(items: Sequence[T], what: str, *, every_s: float = 30.0) -> Iterator[T]:
    """Iterate over ``items`` and show progress as :func:`counter` does."""
    with counter(len(items), what, every_s=every_s) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def counter(total: int, what: str, *, every_s: float = 30.0) -> Iterator[Callable[[int], None]]:
    """Show progress of a step whose items are done several at a time.

    In a terminal this is a bar on standard error; elsewhere a line about every ``every_s`` seconds. The end
    is always logged. Yields a function that takes the number of items done since its last call.
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
