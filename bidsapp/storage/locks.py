"""Lock files: held by one process alone, or shared by several."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bidsapp.errors import AppError, ExitCode
from bidsapp.system.write_errors import cannot_write

#: What ``flock`` answers on a file system without locks: NFS without lockd, some FUSE and Lustre mounts.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def locked_together(path: str | os.PathLike[str]) -> Iterator[None]:
    """Share a lock file with other processes while the body runs; does not wait.

    The kernel's lock (``flock``, shared) on the same file that :func:`locked` holds alone. NFS passes it on
    to its server, and a killed process releases it. The lock file is empty and stays in place.

    Raises
    ------
    AppError
        Exit code 75 if a process holds it alone, 73 if the file cannot be made, 74 if the file system has no
        such locks.
    """
    import fcntl

    lock_file = Path(path)
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        # Open for writing too: NFS turns it into byte-range locks, and an exclusive one needs that.
        descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _cannot_lock(lock_file, error) from error
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


@contextmanager
def locked(path: str | os.PathLike[str], *, timeout: float = 600.0) -> Iterator[None]:
    """Hold a lock file while the body runs, so that one process at a time changes a shared file.

    The lock is the kernel's (``flock``), which NFS passes on to its server and which a killed process
    releases. On a file system without locks, the existence of a second file (``.soft``) takes its place;
    after a kill it has to be deleted by hand, and the message names it.

    Parameters
    ----------
    path : path
        The lock file, empty; it stays in place.
    timeout : float
        Seconds to wait for another process; 0 does not wait.

    Raises
    ------
    AppError
        Exit code 75 if another process still holds the lock, 73 if it cannot be made.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    lock_file = Path(path)
    lock: FileLock | SoftFileLock = FileLock(lock_file)
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=timeout)
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            lock = SoftFileLock(lock_file.with_name(lock_file.name + ".soft"))
            lock.acquire(timeout=timeout)
    except Timeout as error:
        message = (
            f"{lock_file}: another process holds this lock. Wait for it to end; if none runs, delete "
            f"{lock.lock_file} and run the same command again."
        )
        raise AppError(message, exit_code=ExitCode.TRY_AGAIN) from error
    except OSError as error:
        raise _cannot_lock(lock_file, error) from error
    try:
        yield
    finally:
        lock.release()


def _cannot_lock(lock_file: Path, error: OSError) -> AppError:
    """Report what keeps a lock file from being opened; often another user made it for themselves alone."""
    try:
        owner = lock_file.owner()
    except (OSError, KeyError, NotImplementedError):  # missing, or a user without a name
        owner = ""
    if not isinstance(error, PermissionError) or not owner:
        return cannot_write(lock_file, error)
    message = (
        f"{lock_file}: this lock file belongs to {owner}, and this user may not write to it. "
        f"{owner} should run `chmod -R g+w {lock_file.parent}`; in shared folders, run the app after "
        "`umask 002`."
    )
    return AppError(message, exit_code=ExitCode.CANNOT_CREATE, path=lock_file)
