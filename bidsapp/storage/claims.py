"""Claims: jobs that share a folder record which items they compute, so that none is computed twice.

A claim is two files: one lists the items, the other is locked by the job that computes them. The system
releases the lock when the job ends, however it ends, and the claim is then void.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.locks import locked
from bidsapp.storage.text import read_text, write_text


@contextmanager
def claim(folder: Path, items: Sequence[str]) -> Iterator[None]:
    """Claim items (names without line breaks) while the body runs.

    Enter it under a lock that is also held around :func:`claimed`, so that no claim is seen half-written.
    """
    # A unique name: with one that is used again, the new claim could be removed in place of the old one.
    path = folder / f"claim-{os.getpid()}-{secrets.token_hex(8)}"
    lock = path.with_suffix(".lock")
    try:
        with locked(lock, timeout=0):
            try:
                write_text(path, "\n".join(items))
                yield
            finally:
                path.unlink(missing_ok=True)
    finally:
        lock.unlink(missing_ok=True)


def claimed(folder: Path) -> set[str]:
    """Items that running jobs have claimed; claims of jobs that have ended are removed."""
    items: set[str] = set()
    for lock in sorted(folder.glob("claim-*.lock")):
        path = lock.with_suffix("")
        try:
            with locked(lock, timeout=0):
                path.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
        except AppError as error:
            if error.exit_code != ExitCode.TRY_AGAIN:
                raise
            try:
                items.update(read_text(path).split("\n"))
            except AppError as gone:
                if gone.exit_code != ExitCode.NO_INPUT:  # its job ended in between
                    raise
    return items
