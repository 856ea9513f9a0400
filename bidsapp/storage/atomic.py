"""Files that appear under their name only once they are whole.

A file is written under a temporary name in the same folder and renamed at the end, so no reader, and no job
that was killed and started again, meets half a file.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bidsapp.system.processes import here, is_gone, temporary
from bidsapp.system.write_errors import cannot_write, is_about_writing, reason

if TYPE_CHECKING:
    pass


#: What marks a name as unfinished; see :func:`atomic_path`.
PARTIAL = ".partial-"


_COMPRESSION = {".gz", ".bz2", ".xz", ".zst"}


_DAY = 24 * 3600.0


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write to; rename it to ``path`` on success, remove it on failure.

    The temporary file lies in the same folder (made if need be) and keeps the suffix, because some
    writers choose their format by it: ``x.nii.gz`` is written as
    ``.x.partial-<host>-<pid>-<random>.nii.gz``. No data are flushed to the disk by force: the promise
    holds against a killed process, not against a power cut.

    Parameters
    ----------
    path : path
        Final name; an existing file is replaced.

    Yields
    ------
    Path
        Where to write. The body must create it.

    Raises
    ------
    CannotWrite
        Exit code 73 where the file can't be created, 74 where the disk is full.
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
        # The body may also fail in reading its input; only what can be about writing is translated.
        about_us = reason(error) or getattr(error, "filename", None) in (os.fspath(unfinished), None)
        if about_us and is_about_writing(error):
            raise cannot_write(final, error) from error
        raise


_written: list[set[Path]] = []


@contextmanager
def noting_written() -> Iterator[set[Path]]:
    """Note the final names that :func:`atomic_path` makes while the body runs, in whichever thread."""
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
    """Remove what killed processes left unfinished in ``folder`` (not in its sub-folders).

    A file is left alone while the process that writes it may still live: on this machine that is
    asked of the system, on another one everything younger than ``max_age`` seconds is kept.

    Returns
    -------
    list of Path
        The files removed, sorted.
    """
    removed = []
    for path in sorted(Path(folder).glob(f".*{PARTIAL}*")):
        fields = path.name.rpartition(PARTIAL)[2].split("-")
        try:
            old = time.time() - path.stat().st_mtime > max_age
            dead = len(fields) >= 3 and fields[1].isdecimal() and is_gone(fields[0], int(fields[1]))
            if old or dead:
                path.unlink()
                removed.append(path)
        except FileNotFoundError:
            continue  # another process was faster
    return removed
