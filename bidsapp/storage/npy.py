"""Arrays of many rows, too large to hold: written from first row to last, and let go of once read.

A file is written, never assigned to through a map: a full disk is then an error, not a bus fault. What
is read through a map stays in the process's memory until the system wants it back; :func:`release`
gives it back at once, so that the peak is what the computation needs and not the size of the files.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.atomic import atomic_path

Rows = np.memmap[tuple[int, int], np.dtype[np.float32]]


@contextmanager
def row_writer(path: Path, shape: tuple[int, int]) -> Iterator[Callable[[npt.NDArray[Any]], None]]:
    """Write a float32 ``.npy`` file of rows; it appears under its name only when complete.

    Parameters
    ----------
    path : Path
    shape : tuple of int
        (rows, columns).

    Yields
    ------
    callable
        Takes the next row or rows, any float type. All together must be as many as ``shape`` says.

    Raises
    ------
    AppError
        As :func:`bidsapp.storage.atomic.atomic_path`.
    """
    written = 0
    with atomic_path(path) as partial, open(partial, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})

        def write(rows: npt.NDArray[Any]) -> None:
            nonlocal written
            written += rows.size
            stream.write(np.ascontiguousarray(rows, dtype="<f4").data)

        yield write
        if written != shape[0] * shape[1]:
            raise ValueError(f"{path}: {written} values written for the shape {shape}")


def open_rows(path: Path) -> Rows:
    """Open an array of rows (``.npy``, two axes, float32), read-only and memory-mapped.

    Raises
    ------
    AppError
        Exit code 65 where the file is not such an array or is incomplete, 66 where it is missing.
    """
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise AppError(f"{path}: There is no such file.", exit_code=ExitCode.NO_INPUT) from error
    except (ValueError, EOFError) as error:
        raise AppError(
            f"{path}: This is not a complete array of betas ({error}). Remove it and run again.",
            exit_code=ExitCode.BAD_DATA,
        ) from error
    if not isinstance(rows, np.memmap) or rows.dtype != np.float32 or rows.ndim != 2:
        raise AppError(
            f"{path}: This is not an array of betas (trials x voxels, float32). Remove it and run again.",
            exit_code=ExitCode.BAD_DATA,
        )
    return rows


class RowResult:
    """Rows that are made one after the other: an array in memory, or a file and its memory map."""

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
        """Take the next rows, (k, columns)."""
        if self._out is not None:
            self._write(rows)
        else:
            self.array[self._done : self._done + len(rows)] = rows
        self._done += len(rows)


def release(array: npt.NDArray[Any]) -> None:
    """Give the memory of what was read of a memory-mapped array back to the system.

    Its values are read from the file again when they are next asked for. Arrays that are not mapped
    read-only, and systems that offer no such thing (Windows), are left as they are.
    """
    found: Any = array
    while isinstance(found, np.ndarray):
        # Only of a read-only map: what was changed in a private one would be lost.
        if isinstance(found, np.memmap) and found.mode == "r" and isinstance(found.base, mmap.mmap):
            if hasattr(mmap, "MADV_DONTNEED"):
                found.base.madvise(mmap.MADV_DONTNEED)
            return
        found = found.base
