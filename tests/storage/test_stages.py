"""A stage runs once, and again where its inputs changed or its files are damaged."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bidsapp.storage import stages as module
from bidsapp.storage.stages import Stages, stage_key


class Counted:
    """A stage's computation that counts how often it runs."""

    def __init__(self, **arrays: np.ndarray) -> None:
        self.arrays, self.runs = arrays, 0

    def __call__(self, _: Path) -> dict[str, np.ndarray]:
        self.runs += 1
        return dict(self.arrays)


@pytest.fixture
def counted() -> Counted:
    return Counted(a=np.arange(12, dtype=np.float32).reshape(3, 4), b=np.array([True, False]))


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_a_stage_runs_once(tmp_path, counted):
    first = Stages(tmp_path).run("mean", {"x": 1}, counted)
    again = Stages(tmp_path).run("mean", {"x": 1}, counted)
    assert counted.runs == 1
    assert first.key == again.key
    for name, array in counted.arrays.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype
    assert names(tmp_path) == ["mean", "mean/a.npy", "mean/b.npy", "mean/done.json"]


def test_content_is_the_same_wherever_the_input_lies(tmp_path, counted):
    here = Stages(tmp_path / "1").run("mean", {"path": "/data"}, counted)
    there = Stages(tmp_path / "2").run("mean", {"path": "/elsewhere"}, counted)
    assert here.key != there.key
    assert here.content == there.content != ""
    counted.arrays["b"] = np.array([True, True])
    assert Stages(tmp_path / "3").run("mean", {"path": "/data"}, counted).content != here.content


def test_results_are_read_only_and_on_disk(tmp_path, counted):
    got = Stages(tmp_path).run("mean", {}, counted)["a"]
    assert isinstance(got, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        got[0, 0] = 5


@pytest.mark.parametrize(
    "other", [{"x": 2}, {"x": "1"}, {"y": 1}, {}, {"x": [1]}, {"x": 1, "z": None}, {"x": True}], ids=str
)
def test_other_inputs_compute_again(tmp_path, counted, other):
    stages = Stages(tmp_path)
    first = stages.run("mean", {"x": 1}, counted)
    other_result = stages.run("mean", other, counted)
    assert counted.runs == 2
    assert first.key != other_result.key


def test_another_version_computes_again(tmp_path, counted, monkeypatch):
    Stages(tmp_path).run("mean", {"x": 1}, counted)
    monkeypatch.setattr(module, "__version__", "999")
    Stages(tmp_path).run("mean", {"x": 1}, counted)
    assert counted.runs == 2


def test_what_is_computed_again_replaces_the_old(tmp_path):
    stages = Stages(tmp_path)
    stages.run("mean", {"x": 1}, Counted(old=np.ones(3)))
    got = stages.run("mean", {"x": 2}, Counted(new=np.zeros(2)))
    assert list(got.arrays) == ["new"]
    assert names(tmp_path) == ["mean", "mean/done.json", "mean/new.npy"]


def truncate(folder: Path) -> None:
    path = folder / "a.npy"
    path.write_bytes(path.read_bytes()[:-5])


def empty(folder: Path) -> None:
    (folder / "a.npy").write_bytes(b"")


def pickled(folder: Path) -> None:
    np.save(folder / "a.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)


def flip_a_bit(folder: Path) -> None:
    path = folder / "a.npy"
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(content)


def remove(folder: Path) -> None:
    (folder / "a.npy").unlink()


def other_shape(folder: Path) -> None:
    np.save(folder / "a.npy", np.zeros((3, 5), np.float32))


def other_dtype(folder: Path) -> None:
    np.save(folder / "a.npy", np.zeros((3, 4), np.float64))


def half_done(folder: Path) -> None:
    path = folder / "done.json"
    path.write_text(path.read_text()[:20])


def done(content: object):
    def damage(folder: Path) -> None:
        (folder / "done.json").write_text(json.dumps(content))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip_a_bit,
        empty,
        pickled,
        remove,
        other_shape,
        other_dtype,
        half_done,
        done([]),
        done({}),
        done(None),
        done({"key": "right", "arrays": 3}),
        done({"key": "right", "arrays": {"a": 1}}),
    ],
)
def test_damage_is_computed_again_with_a_warning(tmp_path, counted, caplog, damage):
    stages = Stages(tmp_path)
    stages.run("mean", {"x": 1}, counted)
    damage(tmp_path / "mean")
    text = (tmp_path / "mean" / "done.json").read_text()
    (tmp_path / "mean" / "done.json").write_text(text.replace("right", stage_key("mean", {"x": 1})))
    with caplog.at_level(logging.WARNING, "bidsapp"):
        got = Stages(tmp_path).run("mean", {"x": 1}, counted)
    assert counted.runs == 2
    np.testing.assert_array_equal(got["a"], counted.arrays["a"])
    assert "mean" in caplog.text
    assert "damaged" in caplog.text
    caplog.clear()
    Stages(tmp_path).run("mean", {"x": 1}, counted)
    assert counted.runs == 2
    assert not caplog.text


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_under_the_final_name(tmp_path, error, counted):
    def fails(folder: Path) -> dict[str, np.ndarray]:
        np.save(folder / "a.npy", np.ones(3))
        raise error

    stages = Stages(tmp_path)
    with pytest.raises(type(error)):
        stages.run("mean", {"x": 1}, fails)
    assert names(tmp_path) == []
    stages.run("mean", {"x": 1}, counted)
    assert counted.runs == 1


def test_a_failure_leaves_the_earlier_result(tmp_path, counted):
    def fails(_: Path) -> dict[str, np.ndarray]:
        raise ValueError("no")

    stages = Stages(tmp_path)
    stages.run("mean", {"x": 1}, counted)
    with pytest.raises(ValueError, match="no"):
        stages.run("mean", {"x": 2}, fails)
    stages.run("mean", {"x": 1}, counted)
    assert counted.runs == 1


def test_no_objects_are_pickled(tmp_path):
    with pytest.raises(ValueError, match="pickle"):
        Stages(tmp_path).run("bad", {}, Counted(a=np.array([{}, None], dtype=object)))
    assert names(tmp_path) == []


def test_a_stage_may_write_its_arrays_itself(tmp_path):
    def writes(folder: Path) -> dict[str, np.ndarray]:
        array = np.lib.format.open_memmap(folder / "big.npy", "w+", np.float32, (4, 2))
        array[:] = 7
        return {"big": array, "small": np.array(1)}

    got = Stages(tmp_path).run("own", {}, writes)
    assert got["big"].tolist() == [[7, 7]] * 4
    assert got["small"] == 1


@given(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=4))
def test_keys_depend_on_content_not_order(inputs):
    backwards = dict(reversed(inputs.items()))
    assert stage_key("a", inputs) == stage_key("a", backwards)
    assert stage_key("a", inputs) != stage_key("b", inputs)
    assert stage_key("a", inputs) != stage_key("a", {**inputs, "more?": 0})
