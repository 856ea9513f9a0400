"""Arrays of rows on disk: written whole or not at all, and let go of after reading."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from bidsapp.data import responses
from bidsapp.data.responses import average_repeats, zscore
from bidsapp.storage.npy import RowResult, open_rows, release, row_writer


def _mapped(path: Path, values: np.ndarray) -> np.memmap:
    np.save(path, values.astype(np.float32))
    return open_rows(path)


def test_rows_are_written_as_numpy_writes_them(tmp_path):
    values = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    with row_writer(tmp_path / "a.npy", (7, 5)) as write:
        write(values[0])
        write(values[1:4].astype(np.float64))
        write(values[4:].T.copy().T)  # rows that do not lie one after the other in memory
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), values)
    np.testing.assert_array_equal(open_rows(tmp_path / "a.npy"), values)


@pytest.mark.parametrize("n_rows", [2, 4])
def test_another_number_of_rows_is_an_error_and_leaves_nothing(tmp_path, n_rows):
    with (
        pytest.raises(ValueError, match="written for the shape"),
        row_writer(tmp_path / "a.npy", (3, 2)) as w,
    ):
        w(np.zeros((n_rows, 2)))
    assert list(tmp_path.iterdir()) == []


def test_a_failure_on_the_way_keeps_the_former_file(tmp_path):
    before = np.ones((2, 2), np.float32)
    np.save(tmp_path / "a.npy", before)

    def fail() -> None:
        with RowResult(tmp_path / "a.npy", (3, 2)) as result:
            result.write(np.zeros((1, 2)))
            raise RuntimeError("no power")

    with pytest.raises(RuntimeError, match="no power"):
        fail()
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), before)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]


def test_released_arrays_are_read_again(tmp_path):
    values = np.random.default_rng(0).normal(size=(300, 40))
    array = _mapped(tmp_path / "a.npy", values)
    assert array[17, 3] == np.float32(values[17, 3])
    for view in (array, array[5:], np.asarray(array)[:, ::2]):
        release(view)
    np.testing.assert_array_equal(array, values.astype(np.float32))


def test_release_leaves_private_changes_and_plain_arrays_alone(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((600, 40), np.float32))
    private = np.load(tmp_path / "a.npy", mmap_mode="c")
    private[5, 5] = 3
    private.flags.writeable = False
    release(private)
    assert private[5, 5] == 3
    plain = np.ones((2, 2), np.float32)
    release(plain)
    np.testing.assert_array_equal(plain, 1)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for its memory")
def test_release_gives_memory_back(tmp_path):
    import os

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    array = _mapped(tmp_path / "a.npy", np.zeros((1 << 10, 1 << 14)))  # 64 MiB
    before = resident()
    array.sum()
    assert resident() - before > 48 << 20
    release(array)
    assert resident() - before < 16 << 20


def _design(rng: np.random.Generator) -> tuple[list[list[str]], list[str]]:
    shown = [[f"s{i}" for i in rng.integers(0, 30, 25)] for _ in range(4)]
    return shown, list(rng.permutation(sorted({i for s in shown for i in s})))


@pytest.mark.parametrize("sums", [1, 20, 1 << 24])
def test_averages_are_the_same_bytes_in_any_block_and_on_disk(tmp_path, monkeypatch, sums):
    rng = np.random.default_rng(0)
    shown, wanted = _design(rng)
    betas = [rng.normal(size=(25, 6)).astype(np.float32) for _ in shown]
    expected, counts = average_repeats(betas, shown, wanted)
    monkeypatch.setattr(responses, "_SUMS", sums)
    maps = [_mapped(tmp_path / f"{i}.npy", b) for i, b in enumerate(betas)]
    got, got_counts = average_repeats(maps, shown, wanted, tmp_path / "out.npy")
    assert isinstance(got, np.memmap)
    assert got.tobytes() == expected.tobytes()
    np.testing.assert_array_equal(got_counts, counts)


@pytest.mark.parametrize("block", [1, 40, 1 << 22])
def test_zscores_are_the_same_bytes_in_any_block_and_on_disk(tmp_path, monkeypatch, block):
    rng = np.random.default_rng(0)
    train, test = rng.normal(3, 2, (50, 9)).astype(np.float32), rng.normal(3, 2, (8, 9)).astype(np.float32)
    train[:, 4] = 1
    expected = zscore(train, test)
    monkeypatch.setattr(responses, "_BLOCK", block)
    got = zscore(_mapped(tmp_path / "a.npy", train), _mapped(tmp_path / "b.npy", test), tmp_path)
    assert isinstance(got.train, np.memmap)
    for name in ("train", "test", "mean", "std", "kept"):
        assert getattr(got, name).tobytes() == getattr(expected, name).tobytes()
    np.testing.assert_array_equal(np.load(tmp_path / "test.npy"), expected.test)


def _peak(function) -> int:
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_images(tmp_path, monkeypatch):
    """Neither averaging nor z-scoring to files holds anything of the size (images x voxels)."""
    monkeypatch.setattr(responses, "_SUMS", 1 << 14)
    n_images, n_voxels = 1000, 1024
    ids = [f"s{i}" for i in range(n_images)]
    betas = [
        _mapped(tmp_path / f"{i}.npy", np.random.default_rng(i).normal(size=(n_images, n_voxels)))
        for i in (0, 1)
    ]
    one_array = n_images * n_voxels * 4
    averaged: list[np.ndarray] = []

    def average() -> None:
        averaged.append(average_repeats(betas, [ids, ids[::-1]], ids, tmp_path / "mean.npy")[0])

    assert _peak(average) < one_array / 4
    np.testing.assert_allclose(averaged[0][3], (betas[0][3] + betas[1][-4]) / 2, rtol=1e-6)
    assert _peak(lambda: zscore(averaged[0][:900], averaged[0][900:], tmp_path)) < one_array / 4
