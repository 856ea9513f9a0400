"""HDF5 files that are written although the disk may get full."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
