"""Standard streams that may be closed, or that nothing reads, without an effect on the run."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from typing import Any, TextIO


class _Tolerant(io.FileIO):
    """A standard stream that ignores errors of writing: all of them, or those of a closed stream or terminal.

    Another error is raised once; buffered data are not tried again when the process ends.
    """

    def __init__(self, number: int, *, all_errors: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self._all = all_errors
        terminal = stat.S_ISCHR(os.fstat(number).st_mode)  # isatty() is False once a terminal is closed
        self._ignored = {errno.EPIPE, errno.EBADF, *([errno.EIO] if terminal else [])}

    def write(self, data: Any, /) -> int:
        """Write; data that an ignored error concerns count as written."""
        try:
            return super().write(data)
        except OSError as error:
            if not self._all and error.errno not in self._ignored:
                self._all = True
                raise
            return memoryview(data).nbytes


def tolerate_closed_streams() -> None:
    """Let this process write to closed or broken standard streams without an error.

    A full disk behind standard output is still an error; on standard error nothing is.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which no other file may have
    sys.stdout = _open(1, sys.stdout, all_errors=False)
    sys.stderr = _open(2, sys.stderr, all_errors=True)


def _open(number: int, old: TextIO | None, *, all_errors: bool) -> TextIO:
    return io.TextIOWrapper(
        io.BufferedWriter(_Tolerant(number, all_errors=all_errors)),
        encoding=getattr(old, "encoding", None) or "utf-8",
        errors=getattr(old, "errors", None) or "backslashreplace",
        line_buffering=getattr(old, "line_buffering", False) or number == 2,
        write_through=getattr(old, "write_through", False),
    )
