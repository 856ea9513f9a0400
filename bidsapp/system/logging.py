"""A run's own record: an id, a log file, and its settings as TOML."""

from __future__ import annotations

import logging
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bidsapp.errors import as_shown
from bidsapp.system.write_errors import reason, writing

LOG = logging.getLogger("bidsapp")


def new_run_id() -> str:
    """Date, time and a few random digits, sortable: ``20260131T120000-1a2b3c``."""
    return f"{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(3)}"


class _Plain(logging.Formatter):
    """Lines whose words from files can't steer a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return as_shown(super().format(record))


def set_up_logging(verbose: int) -> None:
    """Plain lines on standard error; ``-v`` adds libraries' warnings, ``-vv`` debugging lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING if verbose else logging.ERROR)
    LOG.setLevel(logging.DEBUG if verbose > 1 else logging.INFO)


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Also write the app's log lines to a file, for the length of the block.

    Where the disk gets full meanwhile, lines are missing from the file; the run itself says what is wrong.
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
        """Leave a line out where the disk is full, in place of a traceback for each."""
        error = sys.exc_info()[1]
        if error is None or reason(error) is None:
            super().handleError(record)
