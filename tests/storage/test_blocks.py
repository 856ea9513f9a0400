"""Blocks of a stage: cut at the same places for all, kept whole, taken up by whoever comes next."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from bidsapp.storage.blocks import Blocks, count_blocks


def blocks(folder: Path, key: str = "k", n: int = 7, **inputs: int) -> Blocks:
    return Blocks(folder, "stage2_brain", key, inputs, n)


def images(rows: slice) -> np.ndarray:
    places = np.arange(rows.start, rows.stop)
    return np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)[places]


def begun(folder: Path, size: int = 3) -> Blocks:
    made = blocks(folder)
    made.begin(lambda: size)
    return made


def write_all(made: Blocks) -> None:
    for index in range(len(made)):
        made.write(index, images(made.rows(index)))


def test_blocks_cover_every_image_once(tmp_path):
    made = begun(tmp_path)
    assert len(made) == 3
    assert [(r.start, r.stop) for r in map(made.rows, range(3))] == [(0, 3), (3, 6), (6, 7)]


def test_gathered_is_what_was_written_and_only_what_is_missing_is_made(tmp_path):
    made, asked = begun(tmp_path), []
    made.write(1, images(made.rows(1)))

    def make(index: int) -> np.ndarray:
        asked.append(index)
        return images(made.rows(index))

    whole = made.gather(tmp_path / "images.npy", make)
    assert asked == [0, 2]
    np.testing.assert_array_equal(whole, images(slice(0, 7)))
    assert whole.dtype == np.uint8
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), whole)


def test_who_comes_next_keeps_the_size_that_was_begun_with(tmp_path):
    first = begun(tmp_path)
    first.write(0, images(first.rows(0)))
    again = blocks(tmp_path)
    again.begin(lambda: pytest.fail("the size was chosen again"))
    assert (again.size, again.there()) == (3, 1)
    other = blocks(tmp_path)
    assert other.begun()
    np.testing.assert_array_equal(other.find(0), images(slice(0, 3)))
    assert other.find(1) is None
    assert count_blocks(tmp_path, "stage2_brain") == (1, 3)
    assert count_blocks(tmp_path, "stage2_null") is None


def test_before_the_first_block_the_size_may_still_change(tmp_path):
    begun(tmp_path)
    assert begun(tmp_path, size=2).size == 2


def test_other_inputs_begin_anew_and_the_log_says_why(tmp_path, caplog):
    first = blocks(tmp_path, seed=0)
    first.begin(lambda: 3)
    write_all(first)
    other = blocks(tmp_path, "other", seed=1)
    assert not other.begun()
    with caplog.at_level(logging.INFO, "bidsapp"):
        other.begin(lambda: 2)
    assert "seed (0, now 1)" in caplog.text
    assert (other.size, other.there()) == (2, 0)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def nonsense(path: Path) -> None:
    path.write_bytes(b"\xff" * 400)


def of_another_stage(path: Path) -> None:
    other = blocks(path.parent.parent / "other", "another key")
    other.begin(lambda: 3)
    other.write(0, images(slice(0, 3)))
    path.write_bytes((other.folder / path.name).read_bytes())


def of_other_images(path: Path) -> None:
    path.write_bytes((path.parent / "00001.safetensors").read_bytes())


@pytest.mark.parametrize("damage", [flip_a_bit, cut, empty, nonsense, of_another_stage, of_other_images])
def test_a_damaged_block_is_made_again(tmp_path, caplog, damage):
    made = begun(tmp_path)
    write_all(made)
    damage(made.folder / "00000.safetensors")
    assert made.find(0) is None
    assert "block 0 is damaged" in caplog.text
    np.testing.assert_array_equal(
        made.gather(tmp_path / "a.npy", lambda i: images(made.rows(i))), images(slice(0, 7))
    )


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": "k", "size": 0, "n": 7, "inputs": {}}', "\x00"])
def test_a_damaged_plan_begins_anew(tmp_path, text):
    made = begun(tmp_path)
    write_all(made)
    (made.folder / "plan.json").write_text(text)
    assert not blocks(tmp_path).begun()
    assert count_blocks(tmp_path, "stage2_brain") is None
    assert begun(tmp_path, size=2).there() == 0


def test_removed_are_all(tmp_path):
    made = begun(tmp_path)
    write_all(made)
    made.remove()
    assert list(tmp_path.iterdir()) == []
    made.remove()  # and again
