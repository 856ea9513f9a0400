"""The store of targets: each stimulus is computed once, whatever fails in between."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bidsapp.data import targets as module
from bidsapp.data.targets import StoredTargets, TargetStore
from bidsapp.errors import AppError


def value_of(digest: str) -> np.ndarray:
    """Targets of a stimulus, computed from its name only."""
    return np.random.default_rng(list(digest.encode())).standard_normal(5).astype(np.float32)


class Computed:
    """A computation that remembers what it was asked for."""

    def __init__(self, digests: Sequence[str], fail_at: str | None = None) -> None:
        self.digests, self.fail_at, self.asked = digests, fail_at, []

    def __call__(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        wanted = [self.digests[r] for r in rows]
        if self.fail_at in wanted:
            raise RuntimeError("no power")
        self.asked += wanted
        values = np.stack([value_of(d) for d in wanted])
        return {"latents": values, "tokens": 2 * values[:, :2]}


def expect(store: TargetStore, digests: Sequence[str]) -> None:
    values = np.stack([value_of(d) for d in digests])
    np.testing.assert_array_equal(np.asarray(store.rows("latents", digests)), values)
    np.testing.assert_array_equal(store.rows("tokens", digests)[:, :], 2 * values[:, :2])


IDS = [f"digest{i}" for i in range(10)]


def test_each_stimulus_is_computed_once(tmp_path):
    compute = Computed(IDS)
    store = TargetStore(tmp_path, "model")
    assert store.ensure(IDS[:6], compute, block=4) == 6
    assert store.ensure(IDS, compute, block=4) == 4
    assert store.ensure(IDS, compute) == 0
    assert sorted(compute.asked) == sorted(IDS)
    expect(store, [IDS[9], IDS[0], IDS[4]])
    other = TargetStore(tmp_path, "model")
    assert other.ensure(IDS, compute) == 0
    expect(other, IDS)


def test_duplicates_are_computed_once_and_read_everywhere(tmp_path):
    digests = ["a", "b", "a", "a", "c", "b"]
    compute = Computed(digests)
    store = TargetStore(tmp_path, "model")
    assert store.ensure(digests, compute, block=2) == 3
    assert sorted(compute.asked) == ["a", "b", "c"]
    expect(store, digests)


def test_other_models_have_another_store(tmp_path):
    for key in ("one", "two"):
        compute = Computed(IDS)
        assert TargetStore(tmp_path, key).ensure(IDS, compute) == len(IDS)


def test_a_failure_keeps_what_was_computed_before(tmp_path):
    store = TargetStore(tmp_path, "model")
    with pytest.raises(RuntimeError, match="no power"):
        store.ensure(IDS, Computed(IDS, fail_at=IDS[7]), block=3)
    left = [p.name for p in store.folder.iterdir() if "partial" in p.name]
    assert left == []
    compute = Computed(IDS)
    again = TargetStore(tmp_path, "model")
    assert again.ensure(IDS, compute, block=3) == 4
    assert compute.asked == IDS[6:]
    expect(again, IDS)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_digests(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["digest"]


def numbers_for_digests(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["digest"]
        file["digest"] = np.arange(3)


def one_bit(path: Path) -> None:
    with h5py.File(path) as file:
        place = file["latents"].id.get_chunk_info(0).byte_offset
    whole = bytearray(path.read_bytes())
    whole[place] ^= 1
    path.write_bytes(whole)


def no_checksum(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["tokens"].attrs["sha256"]


@pytest.mark.parametrize("damage", [truncated, empty, no_digests, numbers_for_digests, one_bit, no_checksum])
@pytest.mark.parametrize("same_store", [True, False])
def test_a_damaged_part_is_recomputed(tmp_path, caplog, damage, same_store):
    store = TargetStore(tmp_path, "model")
    store.ensure(IDS[:6], Computed(IDS), block=3)
    part = store.rows("latents", IDS[:1])
    assert part.shape == (1, 5)
    store.close()
    victim = next(
        p for p in sorted(store.folder.glob("part-*")) if IDS[0] in h5py.File(p)["digest"].asstr()[:]
    )
    damage(victim)
    store = store if same_store else TargetStore(tmp_path, "model")
    compute = Computed(IDS)
    with caplog.at_level(logging.WARNING, "bidsapp"):
        assert store.ensure(IDS[:6], compute, block=3) == 3
    assert compute.asked == IDS[:3]
    assert victim.name in caplog.text
    expect(store, IDS[:6])


@pytest.mark.parametrize("bad", [np.full((2, 3), np.nan), np.zeros((1, 3)), np.full((2, 3), np.inf)])
def test_wrong_targets_are_not_kept(tmp_path, bad):
    store = TargetStore(tmp_path, "model")
    with pytest.raises(ValueError, match="latents"):
        store.ensure(["a", "b"], lambda _: {"latents": bad})
    assert list(store.folder.glob("*part*")) == []


def test_unknown_stimuli(tmp_path):
    store = TargetStore(tmp_path, "model")
    store.ensure(IDS[:2], Computed(IDS))
    with pytest.raises(KeyError):
        store.rows("latents", ["never computed"])


def test_parts_are_opened_again_where_too_many_are_open(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_OPEN_PARTS", 2)
    store = TargetStore(tmp_path, "model")
    store.ensure(IDS, Computed(IDS), block=1)

    def open_files() -> int:
        descriptors = Path("/proc/self/fd")
        return len(list(descriptors.iterdir())) if descriptors.exists() else 0

    store.close()
    before = open_files()
    for _ in range(2):
        expect(store, IDS[::-1])
    assert open_files() - before <= 2


def test_threads_may_read_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_OPEN_PARTS", 1)
    store = TargetStore(tmp_path, "model")
    store.ensure(IDS, Computed(IDS), block=2)
    rows = store.rows("latents", IDS)
    whole = np.stack([value_of(d) for d in IDS])
    with ThreadPoolExecutor(4) as pool:
        for block in pool.map(lambda _: rows[:, 1:4], range(50)):
            np.testing.assert_array_equal(block, whole[:, 1:4])


def test_a_part_that_is_damaged_later_is_named(tmp_path):
    store = TargetStore(tmp_path, "model")
    store.ensure(IDS, Computed(IDS))
    rows = store.rows("latents", IDS)
    store.close()
    part = next(store.folder.glob("part-*"))
    truncated(part)
    with pytest.raises(AppError, match="damaged") as caught:
        rows[:, :]
    assert str(part) in str(caught.value)
    part.unlink()
    with pytest.raises(AppError, match="is missing"):
        rows[:, :]


def test_half_precision_halves_the_file_and_reads_as_float32(tmp_path):
    wide = np.random.default_rng(0).normal(size=(40, 5000)).astype(np.float32)
    sizes = {}
    for kind in ("float32", "float16"):
        store = TargetStore(tmp_path, "model", {"latents": kind})
        store.ensure([str(i) for i in range(40)], lambda rows: {"latents": wide[list(rows)]}, block=20)
        got = store.rows("latents", [str(i) for i in range(40)])
        assert (got.dtype, got[:, 10:20].dtype) == (np.float32, np.float32)
        np.testing.assert_array_equal(got[:, :], wide.astype(kind).astype(np.float32))
        sizes[kind] = sum(p.stat().st_size for p in store.folder.glob("part-*"))
    assert sizes["float16"] < 0.55 * sizes["float32"]
    assert len(list(tmp_path.iterdir())) == 2  # one store each


def test_what_half_precision_cannot_hold_is_refused(tmp_path):
    store = TargetStore(tmp_path, "model", {"latents": "float16"})
    with pytest.raises(ValueError, match="not finite as float16"):
        store.ensure(["a"], lambda _: {"latents": np.array([[1.0, 7e4]], np.float32)})


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (2.0, 0.03), (5.0, 1e-3)])
def test_half_precision_hardly_moves_predictions(tmp_path, offset, scale):
    """Ridge predictions from targets stored in half are those from single, to 1e-3 of their scale.

    Targets vary about means up to ``offset`` standard deviations away, as those of CLIP's tokens do.
    """
    rng = np.random.default_rng(0)
    n, d = 300, 400
    y = (rng.normal(size=(n, d)) + offset * rng.normal(size=d)) * scale
    y = y.astype(np.float32)
    store = TargetStore(tmp_path, "model", {"latents": "float16"})
    names = [str(i) for i in range(n)]
    store.ensure(names, lambda rows: {"latents": y[list(rows)]})
    halved = store.rows("latents", names)[:, :]
    # The rows of a ridge's operator; with targets that x tells nothing of, rounding averages out least.
    x = rng.normal(size=(n + 50, 100))
    gram = x[:n] @ x.T
    operator = np.linalg.solve(gram[:, :n] + 100 * np.eye(n), gram[:, n:]).T
    exact = y.mean(0) + operator @ (y - y.mean(0, dtype=np.float64))
    got = halved.mean(0) + operator @ (halved - halved.mean(0, dtype=np.float64))
    error = np.sqrt(np.mean((got - exact) ** 2))
    assert 0 < error < 1e-3 * np.sqrt(np.mean(exact**2))
    if offset == 0:  # then also against what is predicted beyond the mean
        assert error < 1e-3 * (exact - y.mean(0)).std()


@pytest.fixture(scope="module")
def rows_and_array(tmp_path_factory) -> tuple[Callable[[list[int]], StoredTargets], np.ndarray]:
    """Targets over several parts, and the same as an array."""
    store = TargetStore(tmp_path_factory.mktemp("targets"), "model")
    store.ensure(IDS, Computed(IDS), block=3)
    whole = np.stack([value_of(d) for d in IDS])
    return lambda order: store.rows("latents", [IDS[i] for i in order]), whole


STEPS = st.none() | st.integers(-3, 4).filter(bool)
SLICES = st.builds(slice, *[st.none() | st.integers(-12, 12)] * 2, STEPS)


@settings(deadline=None)
@given(order=st.lists(st.integers(0, 9), min_size=1, max_size=15), rows=SLICES, columns=SLICES)
def test_slices_equal_those_of_an_array(rows_and_array, order, rows, columns):
    make, whole = rows_and_array
    targets, array = make(order), whole[order]
    assert (targets.shape, targets.ndim, targets.dtype) == (array.shape, 2, array.dtype)
    got = targets[rows, columns]
    assert isinstance(got, np.ndarray)
    np.testing.assert_array_equal(got, array[rows, columns])


def test_as_an_array(rows_and_array):
    make, whole = rows_and_array
    np.testing.assert_array_equal(np.asarray(make([3, 1])), whole[[3, 1]])
    assert np.asarray(make([0]), dtype=np.float64).dtype == np.float64
