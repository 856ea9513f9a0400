"""Arrays too large for memory: written to ``.npy`` files in parts, and dropped from memory once read.

A file is written, never assigned to through a memory map: a full disk is then an error, not a bus fault.
What is read through a map counts as the process's memory until the system reclaims it; :func:`release`
gives it back at once, so that the peak is what the computation needs and not the size of the files.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.atomic import atomic_path

Rows = np.memmap[tuple[int, int], np.dtype[np.float32]]


def _write_header(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)


@contextmanager
def row_writer(
    path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike = "<f4"
) -> Iterator[Callable[[npt.NDArray[Any]], None]]:
    """Write a ``.npy`` file row by row; it appears under its name only when complete.

    Yields a callable that takes the next row or rows, of any type that can be converted. Together they must
    fill ``shape``.

    Parameters
    ----------
    shape : tuple of int
        (rows, ...).
    dtype : dtype-like
        Of the file.

    Raises
    ------
    AppError
        As :func:`bidsapp.storage.atomic.atomic_path`.
    """
    kind, written = np.dtype(dtype), 0
    with atomic_path(path) as partial, open(partial, "wb") as stream:
        _write_header(stream, shape, kind)

        def write(rows: npt.NDArray[Any]) -> None:
            nonlocal written
            written += rows.size
            stream.write(np.ascontiguousarray(rows, dtype=kind).data)

        yield write
        if written != math.prod(shape):
            raise ValueError(f"{path}: {written} values written for the shape {shape}")


def open_rows(path: Path) -> Rows:
    """Open an array of rows (``.npy``, two axes, float32) as a read-only memory map.

    Raises
    ------
    AppError
        Exit code 65 where the file is not such an array or is incomplete, 66 where it is missing.
    """
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise AppError(f"{path}: there is no such file.", exit_code=ExitCode.NO_INPUT) from error
    except (ValueError, EOFError) as error:
        raise AppError(
            f"{path}: this is not a complete array of betas ({error}). Remove it and run again.",
            exit_code=ExitCode.BAD_DATA,
        ) from error
    if not isinstance(rows, np.memmap) or rows.dtype != np.float32 or rows.ndim != 2:
        raise AppError(
            f"{path}: this is not an array of betas (trials x voxels, float32). Remove it and run again.",
            exit_code=ExitCode.BAD_DATA,
        )
    return rows


class ArrayOnDisk:
    """A ``.npy`` file that is written by slices and never held in memory.

    It is never written through a memory map: a map keeps the written pages in the process's memory, and a
    full disk ends the process without a message (SIGBUS) instead of raising an error.

    Parameters
    ----------
    path : Path
        The file, created at once.
    shape : tuple of int
        (rows, columns).
    dtype : dtype-like
    """

    def __init__(self, path: Path, shape: tuple[int, int], dtype: npt.DTypeLike = np.float32) -> None:
        self.path = path
        self.shape = shape
        self._dtype = np.dtype(dtype)
        with open(path, "wb") as stream:
            _write_header(stream, shape, self._dtype)
            self._start = stream.tell()
            stream.truncate(self._start + shape[0] * shape[1] * self._dtype.itemsize)

    def __setitem__(self, key: tuple[slice, slice], value: npt.ArrayLike) -> None:
        """Write some rows of adjacent columns (OSError if the disk is full)."""
        rows, columns = (range(n)[part] for part, n in zip(key, self.shape, strict=True))
        if columns.step != 1:
            raise ValueError("columns that are written must be adjacent")
        values = np.broadcast_to(np.asarray(value, dtype=self._dtype), (len(rows), len(columns)))
        with open(self.path, "r+b") as stream:
            for row, content in zip(rows, values, strict=True):
                stream.seek(self._start + (row * self.shape[1] + columns.start) * self._dtype.itemsize)
                stream.write(np.ascontiguousarray(content).data)

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        return np.array(np.lib.format.open_memmap(self.path, mode="r")[key])

    def read(self) -> npt.NDArray[Any]:
        """Give the whole as a read-only memory map."""
        return np.lib.format.open_memmap(self.path, mode="r")  # type: ignore[no-any-return]


class RowResult:
    """Rows computed one after the other, kept as an array in memory or as a memory-mapped file."""

    def __init__(self, out: Path | None, shape: tuple[int, int]) -> None:
        self._out, self._shape, self._done = out, shape, 0
        self._writer: AbstractContextManager[Any] = nullcontext() if out is None else row_writer(out, shape)

    def __enter__(self) -> RowResult:
        self.array: npt.NDArray[np.float32] = np.empty((0, 0) if self._out else self._shape, dtype=np.float32)
        self._write = self._writer.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._writer.__exit__(*error)
        if self._out is not None and error[0] is None:
            self.array = open_rows(self._out)

    def write(self, rows: npt.NDArray[Any]) -> None:
        """Append the next rows, (k, columns)."""
        if self._out is not None:
            self._write(rows)
        else:
            self.array[self._done : self._done + len(rows)] = rows
        self._done += len(rows)


def release(array: npt.NDArray[Any]) -> None:
    """Release the memory that holds what was read of a memory-mapped array.

    Its values are read from the file again when next needed. Arrays that are not mapped read-only are left
    as they are, and so are all arrays on systems without ``madvise`` (Windows).
    """
    found: Any = array
    while isinstance(found, np.ndarray):
        # Read-only maps only: changes made in a private one would be lost.
        if isinstance(found, np.memmap) and found.mode == "r" and isinstance(found.base, mmap.mmap):
            if hasattr(mmap, "MADV_DONTNEED"):
                found.base.madvise(mmap.MADV_DONTNEED)
            return
        found = found.base
