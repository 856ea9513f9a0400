"""A lock that several processes hold together, while none holds it alone (:func:`bidsapp.io.locked`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bidsapp.errors import AppError, ExitCode
from bidsapp.full_disk import cannot_write


@contextmanager
def locked_together(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a lock file together with others while the body runs; nothing is waited for.

    The kernel's lock (``flock``, shared) on the same file that :func:`bidsapp.io.locked` holds alone. NFS
    passes it on to its server, and a killed process gives it up by itself.

    Parameters
    ----------
    path : path
        The lock file, empty, left in place.

    Raises
    ------
    AppError
        Exit code 75 where a process holds it alone, 73 where the file can't be made, 74 where the file
        system has no such locks.
    """
    import fcntl

    lock_file = Path(path)
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        # Open for writing too: where NFS makes a lock of byte ranges of it, one of each kind asks for both.
        descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise cannot_write(lock_file, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            message = f"{lock_file}: another process holds this lock. Wait for it to end."
            raise AppError(message, exit_code=ExitCode.TRY_AGAIN) from error
        except OSError as error:
            raise AppError(
                f"{lock_file}: this file system has no locks that processes can share ({error.strerror}). "
                "Choose output and work folders on another one, or run without --shard.",
                exit_code=ExitCode.IO_ERROR,
            ) from error
        yield
    finally:
        os.close(descriptor)
