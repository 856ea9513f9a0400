"""A run's own record: an id, a log file, and its settings as TOML."""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bidsapp.errors import as_shown
from bidsapp.full_disk import reason, writing
from bidsapp.io import write_text

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


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write nested settings as TOML."""
    write_text(path, "\n".join(_tables(settings, ())) + "\n")


def _tables(table: Mapping[str, Any], prefix: tuple[str, ...]) -> Iterator[str]:
    plain = {k: v for k, v in table.items() if not isinstance(v, Mapping) and v is not None}
    inner = {k: v for k, v in table.items() if isinstance(v, Mapping)}
    if prefix and (plain or not inner):
        yield f"[{'.'.join(_key(p) for p in prefix)}]"
    for key, value in plain.items():
        yield f"{_key(key)} = {_value(value)}"
    if plain:
        yield ""
    for key, value in inner.items():
        yield from _tables(value, (*prefix, key))


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _text(key)


def _value(value: Any) -> str:
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays, without importing it
        value = value.tolist()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    return _text(str(value))


def _text(text: str) -> str:
    """Quote as JSON does, which TOML reads; bytes of a path that are no UTF-8 become ``?``."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return json.dumps(whole, ensure_ascii=False).replace("\x7f", "\\u007f")
