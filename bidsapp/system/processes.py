"""Which process made a temporary file, and whether it may still be at it."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def here() -> str:
    """Name this machine, and where process ids are its own (a container), that container too.

    Letters and digits only, to be part of a file's name. Two containers of one machine may both have a
    process 7, and each sees only its own: the number of the process namespace tells them apart.
    """
    host = "".join(c for c in socket.gethostname() if c.isalnum())[:16] or "host"
    try:
        space = "".join(c for c in str(Path("/proc/self/ns/pid").readlink()) if c.isdecimal())
    except OSError:  # no Linux, or no /proc
        space = ""
    return f"{host}n{space}" if space else host


def is_gone(where: str, pid: int) -> bool:
    """Say whether a process has surely ended: it ran here (:func:`here`), and the system knows it no more."""
    if where != here():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


_temporaries: set[Path] = set()


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Remember a temporary file or folder while the body runs, and remove it in the end if it is there."""
    _temporaries.add(path)
    try:
        yield path
    finally:
        _remove(path)
        _temporaries.discard(path)


def remove_temporaries() -> None:
    """Remove all temporary files and folders of this process; for one that is about to end by force."""
    for path in tuple(_temporaries):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
