"""Rows of HDF5 arrays: which were written, and how long they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from bidsapp.storage.hdf5_rows import row_lengths, written_rows


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"chunks": (2,)},
        {"chunks": (2,), "compression": "gzip"},
        {"chunks": (3,), "compression": "lzf"},
        {"chunks": (2,), "compression": "gzip", "shuffle": True},
    ],
)
@pytest.mark.parametrize("userblock_size", [0, 512])
def test_lengths(tmp_path: Path, how: dict[str, Any], userblock_size: int) -> None:
    path = tmp_path / "rows.hdf5"
    lengths = [7, 0, 1000, 3, 0, 0]
    with h5py.File(path, "w", userblock_size=userblock_size) as file:
        rows = file.create_dataset("rows", (6,), h5py.vlen_dtype(np.uint8), **how)
        for row, length in enumerate(lengths[:4]):
            rows[row] = np.full(length, row, np.uint8)
    with h5py.File(path) as file:
        assert [row_lengths(file["rows"], path, row)[row] for row in range(6)] == lengths


def test_lengths_of_an_array_that_was_never_written(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "rows.hdf5", "w") as file:
        rows = file.create_dataset("rows", (2,), h5py.vlen_dtype(np.uint8))
        assert [row_lengths(rows, tmp_path / "rows.hdf5", row)[row] for row in (0, 1)] == [0, 0]


@pytest.mark.parametrize("chunks", [(1, 4, 4, 3), (2, 4, 4, 3), (1, 2, 3, 3), (3, 4, 2, 1)])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_written_rows(tmp_path: Path, chunks: tuple[int, ...], compression: str | None) -> None:
    with h5py.File(tmp_path / "brick.hdf5", "w") as file:
        brick = file.create_dataset("brick", (8, 4, 4, 3), "u1", chunks=chunks, compression=compression)
        assert not written_rows(brick).any()
        brick[2] = 1
        first = 2 - 2 % chunks[0]
        assert np.flatnonzero(written_rows(brick)).tolist() == list(range(first, first + chunks[0]))
        brick[:] = 1
        assert written_rows(brick).tolist() == [True] * 8


def test_a_row_that_was_written_in_part_does_not_count(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "brick.hdf5", "w") as file:
        brick = file.create_dataset("brick", (3, 4, 4, 3), "u1", chunks=(1, 2, 4, 3))
        brick[0], brick[1, :2] = 1, 1
        assert written_rows(brick).tolist() == [True, False, False]


def test_an_array_without_chunks_is_written_as_a_whole(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "brick.hdf5", "w") as file:
        brick = file.create_dataset("brick", (3, 4, 4, 3), "u1")
        assert not written_rows(brick).any()
        brick[0] = 1
        assert written_rows(brick).all()
