"""A full disk, or a folder that cannot be written: one error, whichever library met it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from bidsapp.errors import AppError, ExitCode

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}
#: NumPy's error if fewer bytes were written than given; it gives no reason, and no other is known.
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
#: HDF5's message has the number, which h5py may wrap in another error than OSError.
_ERRNO = re.compile(r"errno = (\d+)")


class CannotWrite(AppError):
    """A file that cannot be written: exit code 74 if the disk is full, 73 if the system refuses.

    Other files in the same folder would hardly fare better.
    """


def reason(error: BaseException) -> int | None:
    """Give the system's number of an error if it means that a disk or quota is full, else None."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return error.errno
    if isinstance(error, OSError) and error.errno is None and _SHORT_WRITE.search(str(error)):
        return errno.ENOSPC
    if isinstance(error, (OSError, RuntimeError)):
        numbers = {int(number) for number in _ERRNO.findall(str(error))}
        return next(iter(sorted(numbers & _FULL)), None)
    return None


def is_about_writing(error: BaseException) -> bool:
    """Whether an error of the system must come from writing, not from reading a readable file."""
    return reason(error) is not None or (isinstance(error, OSError) and error.errno in _FORBIDDEN)


def cannot_write(path: str | os.PathLike[str], error: BaseException) -> CannotWrite:
    """Turn an error of the system, or of a library, into a message about ``path``, the file's final name."""
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
    """Report a full disk in the body as CannotWrite (exit code 74) of ``path``, or of the file it names.

    The body may read as well: other errors pass unchanged.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        named = getattr(error, "filename", None)
        where = path if named is None or isinstance(named, int) else os.fsdecode(named)
        if reason(error) is None:
            raise
        raise cannot_write(where, error) from error
