"""The store of targets: each stimulus once, whatever happens on the way."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bidsapp.data.targets import TargetRows, TargetStore


def value_of(digest: str) -> np.ndarray:
    """Targets of a stimulus, made of its name only."""
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


def test_a_failure_in_the_middle_keeps_what_was_done(tmp_path):
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


@pytest.mark.parametrize("damage", [truncated, empty, no_digests, numbers_for_digests])
@pytest.mark.parametrize("same_store", [True, False])
def test_a_damaged_part_is_computed_again(tmp_path, caplog, damage, same_store):
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


def _fill(folder: Path, digests: list[str], log: Path, barrier) -> None:
    def compute(rows: Sequence[int]) -> dict[str, np.ndarray]:
        with log.open("a") as file:
            file.write("".join(f"{digests[r]}\n" for r in rows))
        return Computed(digests)(rows)

    barrier.wait()
    store = TargetStore(folder, "model")
    store.ensure(digests, compute, block=2)
    expect(store, digests)


def test_two_processes_compute_each_stimulus_once(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    logs = [tmp_path / "one.log", tmp_path / "two.log"]
    jobs = [
        context.Process(target=_fill, args=(tmp_path / "work", ids, log, barrier))
        for ids, log in zip((IDS[:7], IDS[3:]), logs, strict=True)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0, 0]
    computed = [line for log in logs if log.exists() for line in log.read_text().split()]
    assert sorted(computed) == sorted(IDS)


@pytest.fixture(scope="module")
def rows_and_array(tmp_path_factory) -> tuple[Callable[[list[int]], TargetRows], np.ndarray]:
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
