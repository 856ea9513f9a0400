"""A disk that is full, or a folder that can't be written: one error for it, whichever library met it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from bidsapp.errors import AppError, ExitCode

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}
#: NumPy's error where a file took less than it was given; it says no reason, and no other is known.
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
#: HDF5 puts the number into its message where h5py makes another error than OSError of it.
_ERRNO = re.compile(r"errno = (\d+)")


class CannotWrite(AppError):
    """A file that can't be written: exit code 74 where the disk is full, 73 where the system refuses.

    Whatever else is to be written to the same folder will hardly fare better.
    """


def reason(error: BaseException) -> int | None:
    """Give the system's number of an error that says that a disk or a quota is full; else None."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return error.errno
    if isinstance(error, OSError) and error.errno is None and _SHORT_WRITE.search(str(error)):
        return errno.ENOSPC
    if isinstance(error, (OSError, RuntimeError)):
        numbers = {int(number) for number in _ERRNO.findall(str(error))}
        return next(iter(sorted(numbers & _FULL)), None)
    return None


def is_about_writing(error: BaseException) -> bool:
    """Say whether an error of the system is one that reading a file that can be read does not meet."""
    return reason(error) is not None or (isinstance(error, OSError) and error.errno in _FORBIDDEN)


def cannot_write(path: str | os.PathLike[str], error: BaseException) -> CannotWrite:
    """Word an error of writing a file.

    Parameters
    ----------
    path : path
        What was to be written, by its final name.
    error : exception
        Of the system, or of a library that passes the system's on.
    """
    number = reason(error)
    why = os.strerror(number) if number is not None else getattr(error, "strerror", None) or str(error)
    if number is not None:
        fix = "Free some space there (or choose another folder) and run the same command again."
    else:
        fix = "Choose a folder that this user may write to"
        fix += "; in a container, check that it is bound read-write."
    code = ExitCode.CANNOT_CREATE if number is None else ExitCode.IO_ERROR
    return CannotWrite(f"Cannot write {os.fspath(path)}: {why}. {fix}", exit_code=code)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say of a full disk that ``path`` could not be written, while the body runs.

    For bodies that read as well: only what can be about writing is translated, where the system names a
    file, by its name.

    Raises
    ------
    CannotWrite
        Exit code 74.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        named = getattr(error, "filename", None)
        where = path if named is None or isinstance(named, int) else os.fsdecode(named)
        if reason(error) is None:
            raise
        raise cannot_write(where, error) from error
