"""Targets read and predictions written in blocks: the same numbers for any block, errors and all."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from bidsapp.decoding.streaming import TargetBlocks, predict_blocks
from bidsapp.storage.npy import ArrayOnDisk

#: What block sizes may change, relative to the predictions' spread: rounding of float32 sums.
BLOCK_TOLERANCE = 1e-6


def data(n: int = 60, m: int = 11, d: int = 33):
    rng = np.random.default_rng(0)
    operator = rng.normal(size=(m, n)) / np.sqrt(n)
    operator -= operator.mean(axis=1, keepdims=True)
    return operator.astype(np.float32), (rng.normal(size=(n, d)) * 3 + 7).astype(np.float32)


class Watched:
    """Targets that note who reads which columns."""

    def __init__(self, y) -> None:
        self.y, self.shape, self.reads, self.threads = y, y.shape, [], set()

    def __getitem__(self, key):
        self.reads.append((key[1].start, key[1].stop))
        self.threads.add(threading.current_thread().name)
        return self.y[key]


@pytest.mark.parametrize("block", [1, 2, 3, 5, 8, 16, 32, 33, 1000, None])
def test_any_block_gives_the_same_predictions(block):
    operator, y = data()
    expected = operator.astype(np.float64) @ (y - y.mean(0, dtype=np.float64)) + y.mean(0, dtype=np.float64)
    got = predict_blocks(operator, y, block=block)
    assert np.abs(got - expected).max() < BLOCK_TOLERANCE * expected.std()


def test_each_column_is_read_once_in_order_and_ahead_in_a_thread():
    _, y = data()
    watched = Watched(y)
    for part in TargetBlocks(watched, 10):
        here = part.columns
        np.testing.assert_array_equal(part.values, y[:, here])
        np.testing.assert_allclose(part.mean, y[:, here].mean(0, dtype=np.float64))
        np.testing.assert_allclose(part.centred, y[:, here] - part.mean, rtol=1e-6, atol=1e-6)
        assert part.centred.dtype == np.float32
    assert watched.reads == [(0, 10), (10, 20), (20, 30), (30, 33)]
    assert threading.main_thread().name not in watched.threads


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_moments_are_float64s(scale):
    rng = np.random.default_rng(0)
    y = (scale * (rng.standard_normal((3000, 5)) * [1, 10, 0.01, 0, 1] + 7)).astype(np.float32)
    (block,) = TargetBlocks(y)
    found = block.moments()
    np.testing.assert_allclose(found.mean, y.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(found.std, y.std(0, dtype=np.float64), rtol=3e-7, atol=0)
    assert found.std[3] == 0


def test_an_error_while_reading_ahead_reaches_the_caller():
    class Broken(Watched):
        def __getitem__(self, key):
            if key[1].start >= 20:
                raise OSError("the disk is gone")
            return super().__getitem__(key)

    operator, y = data()
    with pytest.raises(OSError, match="the disk is gone"):
        predict_blocks(operator, Broken(y), block=10)
    y[4, 31] = np.inf
    with pytest.raises(ValueError, match="NaN or infinite"):
        predict_blocks(operator, y, block=10)


def test_what_can_not_be_is_refused():
    operator, y = data()
    for wrong in (y[:5], y[:, 0]):
        with pytest.raises(ValueError, match="shape"):
            predict_blocks(operator, wrong)
    with pytest.raises(ValueError, match="out has shape"):
        predict_blocks(operator, y, out=np.empty((3, 3), np.float32))
    with pytest.raises(ValueError, match="block"):
        predict_blocks(operator, y, block=0)


def test_predictions_go_to_disk_without_staying_in_memory(tmp_path):
    operator, y = data()
    out = ArrayOnDisk(tmp_path / "out.npy", (11, 33))
    assert predict_blocks(operator, y, block=7, out=out) is out
    expected = predict_blocks(operator, y, block=7)
    np.testing.assert_array_equal(out.read(), expected)
    np.testing.assert_array_equal(out[2:4, 5:], expected[2:4, 5:])
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_an_array_on_disk_is_not_mapped_between_writes(tmp_path):
    out = ArrayOnDisk(tmp_path / "large.npy", (10, 1000))
    out[:, 10:20] = 1.0
    assert out[:, 10:20].sum() == 100
    with open("/proc/self/maps") as maps:
        assert "large.npy" not in maps.read()
