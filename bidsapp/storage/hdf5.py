"""Numeric arrays in HDF5 files, checked before they are read.

An array must be stored completely in the file itself: links, external storage and virtual arrays can point
anywhere on the machine, and a header may declare more than any machine can hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bidsapp.errors import AppError, ExitCode
from bidsapp.storage import MOST_INFLATION
from bidsapp.storage.files import kind_of

#: Suffixes of HDF5 files.
SUFFIXES = (".h5", ".hdf5")
#: The array of single-trial betas in NSD's files; axes (trials, z, y, x) as C and Python count them.
BETAS = "betas"
#: What is wrong with betas whose axes have the opposite order, and how to fix it.
REVERSED_AXES = "Its axes are in the order (x, y, z, trials)."
REVERSED_AXES_FIX = "Store them as NSD does: (trials, z, y, x) as Python and C count axes."
#: Largest chunk, in bytes; a chunk is read and inflated as a whole.
_MOST_CHUNK = 1 << 28
#: What h5py raises on damaged files.
DAMAGED = (OSError, RuntimeError, KeyError, ValueError, TypeError)


@contextmanager
def open_array(path: Path, name: str = BETAS, n_axes: int = 4, *, sparse: bool = False) -> Iterator[Any]:
    """Open an array of integers or floats for reading.

    Parameters
    ----------
    name : str
        The array's name at the top of the file.
    n_axes : int
        Number of axes that it must have.
    sparse : bool
        Allow arrays of which only a part was written (:mod:`bidsapp.storage.hdf5_rows` finds which).

    Yields
    ------
    h5py.Dataset
        Not larger than its file can hold; see :func:`is_complete` for whether all of it was written.

    Raises
    ------
    AppError
        Exit code 66 for a missing file, 74 for one that cannot be read, 65 for one that is not HDF5, is
        truncated, has no such array, keeps it elsewhere, or declares more than it can hold.
    """
    import h5py

    if kind := kind_of(path):
        raise _bad(path, kind, ExitCode.NO_INPUT)
    try:
        # Without locks: inputs may be on file systems that are read-only or have none.
        file = h5py.File(path, "r", locking=False)
    except PermissionError as error:
        raise _bad(path, f"cannot be read ({error.strerror})", ExitCode.IO_ERROR) from error
    except DAMAGED as error:
        raise _bad(path, f"is not a readable HDF5 file, or is truncated ({error})") from error
    with file:
        try:
            array = find_array(file, path, name, n_axes, sparse=sparse)
        except DAMAGED as error:
            raise _bad(path, f"is damaged ({error})") from error
        yield array


def is_complete(array: Any) -> bool:
    """Whether all of an array was written; missing parts would read as zeros."""
    if array.chunks is None:
        written: int = array.id.get_storage_size()
        return bool(written == math.prod(array.shape) * array.dtype.itemsize)
    expected = math.prod(-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True))
    chunks: int = array.id.get_num_chunks()
    return bool(chunks == expected)


def find_array(group: Any, path: Path, name: str, n_axes: int, *, sparse: bool = False) -> Any:
    """Find an array in an open file (or a group in it): a dataset stored completely in the file itself.

    Parameters
    ----------
    path : Path
        The file, for messages.
    name : str
        The array's name in the group.
    n_axes : int
        Number of axes that it must have.
    sparse : bool
        Allow arrays of which only a part was written.

    Raises
    ------
    AppError
        Exit code 65 if there is no such array, or it cannot be trusted.
    """
    import h5py

    if name not in group:
        found = ", ".join(map(repr, group)) or "nothing"
        raise _bad(path, f"has no array {name!r} at its top level; it has {found}")
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise _bad(path, f"keeps {name!r} elsewhere, behind a link, which is not supported")
    array = group[name]
    if not isinstance(array, h5py.Dataset):
        raise _bad(path, f"has a group {name!r} where an array is needed")
    _check_array(array, path, name, n_axes, sparse)
    return array


def _check_array(array: Any, path: Path, name: str, n_axes: int, sparse: bool) -> None:
    shape = array.shape
    if array.external or array.is_virtual:
        raise _bad(path, f"keeps {name!r} in other files, which is not supported")
    if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        raise _bad(path, f"has the data type {array.dtype}; integers, float32 or float64 are needed")
    if shape is None or len(shape) != n_axes or min(shape) < 1:
        raise _bad(path, f"{name!r} has the shape {shape}; {n_axes} axes are needed, none of length 0")
    if array.chunks and math.prod(array.chunks) * array.dtype.itemsize > _MOST_CHUNK:
        size = math.prod(array.chunks) * array.dtype.itemsize
        raise _bad(path, f"has chunks of {size} bytes; store it in chunks of at most {_MOST_CHUNK}")
    declared, size = math.prod(shape) * array.dtype.itemsize, path.stat().st_size
    if sparse and array.chunks:
        declared = min(declared, array.id.get_num_chunks() * math.prod(array.chunks) * array.dtype.itemsize)
    filtered = array.id.get_create_plist().get_nfilters() > 0
    if declared > size * (MOST_INFLATION if filtered else 1):
        raise _bad(
            path, f"declares {declared} bytes of data in {name!r}, more than a file of {size} bytes can hold"
        )


def _bad(path: Path, what: str, code: ExitCode = ExitCode.BAD_DATA) -> AppError:
    return AppError(f"{path}: {what}.", exit_code=code)


class _Sink:
    """A file that accepts all that the HDF5 library writes, and keeps the first error for :meth:`check`.

    The library retries failed writes when the file is closed and when the process ends, and then crashes the
    process with SIGSEGV (seen with HDF5 1.14). So it never learns that a write failed.
    """

    def __init__(self, path: Path) -> None:
        self.stream = path.open("w+b", buffering=0)
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write everything; nothing after an error."""
        whole = memoryview(data).cast("B")
        done = 0
        while self.error is None and done < len(whole):
            try:
                done += self.stream.write(whole[done:])
            except OSError as error:
                self.error = error
        return len(whole)

    def truncate(self, size: int) -> int:
        try:
            self.stream.truncate(size)
        except OSError as error:
            self.error = self.error or error
        return size

    def flush(self) -> None:
        """Nothing is buffered."""

    def __getattr__(self, name: str) -> Any:  # seek, readinto and others
        return getattr(self.stream, name)

    def check(self) -> None:
        """Raise the first write error, if there was one."""
        if self.error is not None:
            raise self.error


@contextmanager
def write_hdf5(path: Path) -> Iterator[tuple[Any, Callable[[], None]]]:
    """Write an HDF5 file; an existing one is replaced. A full disk raises a plain ``OSError``.

    Yields
    ------
    file : h5py.File
    check : callable
        Raises the first write error so far. It is always called at the end; call it earlier to avoid
        computing what cannot be written.
    """
    import h5py

    sink = _Sink(path)
    with sink.stream:
        try:
            with h5py.File(sink, "w", driver="fileobj") as file:
                yield file, sink.check
        except Exception:
            sink.check()  # what was not written cannot be read back either: the write error comes first
            raise
    sink.check()
