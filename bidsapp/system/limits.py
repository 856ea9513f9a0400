"""Limits that end a run: open files, memory, a folder that someone removed; one message for each."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterable, Iterator
from pathlib import Path

from bidsapp.errors import AppError, ExitCode

_AGAIN = "Then run the same command again: it resumes."
#: How torch, MPS, cuBLAS, cuDNN, oneDNN, the loader and Python's threads report that memory has run out.
_NO_MEMORY = (
    "out of memory",
    "alloc_failed",
    "not enough memory",
    "allocate memory",
    "could not create a primitive",
    "failed to map segment",
    "can't start new thread",
)
_NO_FILE = {errno.EMFILE, errno.ENFILE}
_MISSING = {errno.ENOENT, errno.ESTALE}


def limit_reached(error: BaseException, folders: Iterable[Path] = ()) -> AppError | None:
    """Explain an error that a limit of the system or a removed folder caused; None for any other.

    Exit code 75 for memory, 74 otherwise. ``folders`` existed when the run began. Errors that an AppError
    was raised from count too, except those about memory, which it explains better.
    """
    chain = list(_chain(error))
    if any((isinstance(e, OSError) and e.errno in _NO_FILE) or "errno = 24" in str(e) for e in chain):
        now = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        how = f"Raise the limit ({now} now), for example with `ulimit -n 4096` in the same shell."
        return AppError(f"Too many open files. {how} {_AGAIN}", exit_code=ExitCode.IO_ERROR)
    if isinstance(error, AppError):
        return None
    if any(map(is_out_of_memory, chain)):
        how = "Give the run more (ulimit -v, the job's or the container's limit), or choose a smaller region"
        text = f"Memory ran out. {how} of interest (--roi). {_AGAIN}"
        return AppError(text, exit_code=ExitCode.TRY_AGAIN)
    if any(isinstance(e, OSError) and e.errno in _MISSING for e in chain):
        for folder in folders:
            if not folder.is_dir():
                text = (
                    f"{folder}: this folder was removed during the run. Run the same command again and keep "
                    "the folder until the run ends. What is left of finished stages is used again."
                )
                return AppError(text, exit_code=ExitCode.IO_ERROR, path=folder)
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in seen:
        seen.append(following)
        yield following
        following = following.__cause__ or following.__context__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; some libraries have no type of error for it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    text = str(error).lower()
    return isinstance(error, (RuntimeError, OSError, ImportError)) and any(w in text for w in _NO_MEMORY)
