"""Files that appear under their name only once they are complete.

A file is written under a temporary name in the same folder and renamed at the end, so that neither a reader
nor a restarted job finds half a file.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bidsapp.system.processes import here, is_gone, temporary
from bidsapp.system.write_errors import cannot_write, is_about_writing, reason

#: What marks a name as unfinished; see :func:`atomic_path`.
PARTIAL = ".partial-"
_COMPRESSION = {".gz", ".bz2", ".xz", ".zst"}
_DAY = 24 * 3600.0


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write to; rename it to ``path`` on success, remove it on failure.

    The temporary file is in the same folder (created if necessary) and keeps the suffix, because some
    writers choose their format by it: ``x.nii.gz`` is written as
    ``.x.partial-<host>-<pid>-<random>.nii.gz``. An existing file is replaced. Nothing is synced to the disk:
    this protects against a killed process, not against a power cut.

    Raises
    ------
    CannotWrite
        Exit code 73 if the file cannot be created, 74 if the disk is full.
    """
    final = Path(path)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(final, error) from error
    unfinished = final.with_name(_partial_name(final.name))
    try:
        with temporary(unfinished):
            yield unfinished
            os.replace(unfinished, final)
            for written in _written:
                written.add(final)
    except (OSError, RuntimeError) as error:
        # The body may also fail to read its input; only errors that can be about writing are translated.
        about_us = reason(error) or getattr(error, "filename", None) in (os.fspath(unfinished), None)
        if about_us and is_about_writing(error):
            raise cannot_write(final, error) from error
        raise


_written: list[set[Path]] = []


@contextmanager
def noting_written() -> Iterator[set[Path]]:
    """Collect the final names that :func:`atomic_path` writes while the body runs, in any thread."""
    written: set[Path] = set()
    _written.append(written)
    try:
        yield written
    finally:
        _written.remove(written)


def _partial_name(name: str) -> str:
    suffix = Path(name).suffix
    if suffix in _COMPRESSION:
        suffix = Path(name.removesuffix(suffix)).suffix + suffix
    stem = name.removesuffix(suffix)
    return f".{stem}{PARTIAL}{here()}-{os.getpid()}-{secrets.token_hex(3)}{suffix}"


def clear_partials(folder: str | os.PathLike[str], *, max_age: float = _DAY) -> list[Path]:
    """Remove the files and folders that killed processes left unfinished in ``folder`` (not below it).

    Those of a process that may still run are kept: on this machine the system knows; those of another
    machine are kept while younger than ``max_age`` seconds.
    Returns what was removed, sorted.
    """
    removed = []
    for path in sorted(Path(folder).glob(f"*{PARTIAL}*")):
        fields = path.name.rpartition(PARTIAL)[2].split("-")
        try:
            old = time.time() - path.stat().st_mtime > max_age
            dead = len(fields) >= 2 and fields[1].isdecimal() and is_gone(fields[0], int(fields[1]))
            if not (old or dead):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
            removed.append(path)
        except FileNotFoundError:
            continue  # another process was faster
    return removed
