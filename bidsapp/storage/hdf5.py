"""Arrays of numbers in HDF5 files, opened with care.

An array counts only where it lies whole in the file itself: links, external storage and virtual arrays
can lead anywhere on the machine, and a header may declare more than any machine can hold.
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

#: Names that are taken for HDF5.
SUFFIXES = (".h5", ".hdf5")


#: The array of single-trial betas in NSD's files; axes (trials, z, y, x) as C and Python count them.
BETAS = "betas"


#: Largest chunk, in bytes, that is read and inflated as a whole.
_MOST_CHUNK = 1 << 28


#: What h5py raises on damaged files, beside OSError.
DAMAGED = (OSError, RuntimeError, KeyError, ValueError, TypeError)


@contextmanager
def open_array(path: Path, name: str = BETAS, n_axes: int = 4) -> Iterator[Any]:
    """Open an array of integers or floats for reading.

    Parameters
    ----------
    path : Path
        HDF5 file.
    name : str
        The array's name at the top of the file.
    n_axes : int
        Number of axes that it must have.

    Yields
    ------
    h5py.Dataset
        Not longer than its file can hold; whether all of it was ever written, :func:`is_complete` tells.

    Raises
    ------
    AppError
        Exit code 66 for a missing file, 74 for one that can't be read, 65 for one that is no HDF5 file,
        is truncated, has no such array, keeps it elsewhere, or declares more than it can hold.
    """
    import h5py

    if kind := kind_of(path):
        raise _bad(path, kind, ExitCode.NO_INPUT)
    try:
        # Without locks: inputs may lie on disks that are read-only or have none.
        file = h5py.File(path, "r", locking=False)
    except PermissionError as error:
        raise _bad(path, f"cannot be read ({error.strerror})", ExitCode.IO_ERROR) from error
    except DAMAGED as error:
        raise _bad(path, f"is no readable HDF5 file, or is truncated ({error})") from error
    with file:
        try:
            array = find_array(file, path, name, n_axes)
        except DAMAGED as error:
            raise _bad(path, f"is damaged ({error})") from error
        yield array


def is_complete(array: Any) -> bool:
    """Whether all of an array was written; what was not reads as zeros."""
    if array.chunks is None:
        written: int = array.id.get_storage_size()
        return bool(written == math.prod(array.shape) * array.dtype.itemsize)
    expected = math.prod(-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True))
    chunks: int = array.id.get_num_chunks()
    return bool(chunks == expected)


def find_array(group: Any, path: Path, name: str, n_axes: int) -> Any:
    """Find an array in an open file or group of one: a dataset that lies whole in the file itself.

    Parameters
    ----------
    group : h5py.File or h5py.Group
    path : Path
        The file, for messages.
    name : str
        The array's name in the group.
    n_axes : int
        Number of axes that it must have.

    Raises
    ------
    AppError
        Exit code 65 where there is no such array, or it can't be trusted.
    """
    array = _find(group, path, name)
    _check(array, path, name, n_axes)
    return array


def _find(file: Any, path: Path, name: str) -> Any:
    import h5py

    if name not in file:
        found = ", ".join(map(repr, file)) or "nothing"
        raise _bad(path, f"has no array {name!r} at its top; it has {found}")
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise _bad(path, f"keeps {name!r} elsewhere, behind a link, which is not supported")
    array = file[name]
    if not isinstance(array, h5py.Dataset):
        raise _bad(path, f"has a group {name!r} where an array is needed")
    return array


def _check(array: Any, path: Path, name: str, n_axes: int) -> None:
    shape = array.shape
    if array.external or array.is_virtual:
        raise _bad(path, f"keeps {name!r} in other files, which is not supported")
    if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        raise _bad(path, f"has the data type {array.dtype}; integers, float32 or float64 are needed")
    if shape is None or len(shape) != n_axes or min(shape) < 1:
        raise _bad(path, f"{name!r} has the shape {shape}; {n_axes} axes that hold data are needed")
    if array.chunks and math.prod(array.chunks) * array.dtype.itemsize > _MOST_CHUNK:
        size = math.prod(array.chunks) * array.dtype.itemsize
        raise _bad(path, f"is stored in chunks of {size} bytes; store it in chunks of {_MOST_CHUNK} at most")
    declared, size = math.prod(shape) * array.dtype.itemsize, path.stat().st_size
    filtered = array.id.get_create_plist().get_nfilters() > 0
    if declared > size * (MOST_INFLATION if filtered else 1):
        raise _bad(
            path, f"declares {declared} bytes of data in {name!r}, more than a file of {size} bytes can hold"
        )


def _bad(path: Path, what: str, code: ExitCode = ExitCode.BAD_DATA) -> AppError:
    return AppError(f"{path}: {what}.", exit_code=code)


class _Sink:
    """A file that never refuses what the HDF5 library writes, and keeps the first error for who asks.

    The library keeps what it could not write, tries again when the file is closed and when the process ends,
    and then ends the process by SIGSEGV (seen with HDF5 1.14). So it is told that all went well.
    """

    def __init__(self, path: Path) -> None:
        self.stream = path.open("w+b", buffering=0)
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all; nothing after an error."""
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

    def __getattr__(self, name: str) -> Any:  # seek, tell, readinto
        return getattr(self.stream, name)

    def check(self) -> None:
        """Raise the error that writing met, if it did."""
        if self.error is not None:
            raise self.error


@contextmanager
def write_hdf5(path: Path) -> Iterator[tuple[Any, Callable[[], None]]]:
    """Make an HDF5 file; a full disk is an ``OSError`` with its number, and no more than that.

    Parameters
    ----------
    path : Path
        Replaced where it is there.

    Yields
    ------
    file : h5py.File
    check : callable
        Raises what writing met so far. It is called at the end in any case; in between, it saves making what
        will not be kept.
    """
    import h5py

    sink = _Sink(path)
    with sink.stream:
        try:
            with h5py.File(sink, "w", driver="fileobj") as file:
                yield file, sink.check
        except Exception:
            sink.check()  # what could not be written can't be read back either: that error comes first
            raise
    sink.check()
