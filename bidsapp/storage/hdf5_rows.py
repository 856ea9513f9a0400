"""Rows of HDF5 arrays, checked before they are read: whether they were written, and how long they are."""

from __future__ import annotations

import itertools
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from bidsapp.storage.hdf5 import is_complete


def written_rows(array: Any) -> np.ndarray:
    """Return which rows (first axis) of an array were written completely, bool (rows,)."""
    if is_complete(array):
        return np.ones(array.shape[0], np.bool_)
    step = array.chunks[0] if array.chunks else array.shape[0]
    found = [row_is_written(array, row) for row in range(0, array.shape[0], step)]
    return np.repeat(found, step)[: array.shape[0]]


def row_is_written(array: Any, row: int) -> bool:
    """Whether a row of an array was written completely.

    HDF5 reads what was never written as zeros. Sparse files, such as a subset of a large array, lack chunks.
    """
    if array.chunks is None:
        return array.id.get_offset() is not None or array.id.get_storage_size() > 0
    starts = [range(0, size, chunk) for size, chunk in zip(array.shape[1:], array.chunks[1:], strict=True)]
    first = row - row % array.chunks[0]
    return all(_exists(array, (first, *others)) for others in itertools.product(*starts))


def chunks_per_row(array: Any) -> int:
    """Return how many chunks one row of an array is stored in; 1 if it has no chunks."""
    sides = zip(array.shape[1:], array.chunks[1:], strict=True) if array.chunks else ()
    return math.prod(-(-size // chunk) for size, chunk in sides)


def row_lengths(array: Any, path: Path, row: int) -> dict[int, int]:
    """Return the lengths that a row of a variable-length array, and others of its chunk, declare.

    Reading such a row would allocate its declared length first. ``path`` is the file of the array, (rows,).

    Raises
    ------
    ValueError
        If the array is stored in a way that hides the lengths.
    """
    import h5py

    # On the disk, a row is its length (4 bytes) and an address of its values.
    creation, size = array.id.get_create_plist(), array.id.get_type().get_size()
    if creation.get_layout() == h5py.h5d.CHUNKED:
        first = row - row % array.chunks[0]
        if not _exists(array, (first,)):
            return {row: 0}
        mask, raw = array.id.read_direct_chunk((first,))
        raw = _unfiltered(raw, mask, creation, size)
        return {first + i: struct.unpack_from("<I", raw, i * size)[0] for i in range(array.chunks[0])}
    if creation.get_layout() != h5py.h5d.CONTIGUOUS:
        raise ValueError("its layout is not supported")
    offset = array.id.get_offset()
    if offset is None:
        return {row: 0}
    with path.open("rb") as stream:
        stream.seek(offset + row * size)
        return {row: struct.unpack("<I", stream.read(4))[0]}


def _exists(array: Any, coordinates: tuple[int, ...]) -> bool:
    return bool(array.id.get_chunk_info_by_coord(coordinates).byte_offset is not None)


def _unfiltered(raw: bytes, mask: int, creation: Any, size: int) -> bytes:
    """Undo a chunk's filters, with HDF5 in memory; its elements have ``size`` bytes."""
    import h5py

    kind, same = np.dtype(f"V{size}"), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    same.set_chunk(creation.get_chunk())
    for index in range(creation.get_nfilters()):
        if not mask >> index & 1:  # else this chunk skipped the filter
            same.set_filter(*creation.get_filter(index)[:3])
    with h5py.File("chunk", "w", driver="core", backing_store=False) as memory:
        space = h5py.h5s.create_simple(creation.get_chunk())
        chunk = h5py.h5d.create(memory.id, b"chunk", h5py.h5t.py_create(kind), space, same)
        chunk.write_direct_chunk((0,), raw)
        content: bytes = h5py.Dataset(chunk)[:].tobytes()
    return content
