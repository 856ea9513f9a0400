"""Damaged stimuli are found without decoding all stimuli."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from bidsapp.data._stimulus_table import Place
from bidsapp.data.image_check import check_images
from bidsapp.errors import ExitCode

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
FORMATS = {"png": "PNG", "jpg": "JPEG", "bmp": "BMP", "tif": "TIFF", "webp": "WEBP"}


def encoded(suffix: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, FORMATS[suffix])
    return stream.getvalue()


def write(folder: Path, name: str, content: bytes) -> Place:
    (folder / name).write_bytes(content)
    return Place(folder / name)


@pytest.mark.parametrize("suffix", FORMATS)
def test_sound_files_pass(tmp_path: Path, suffix: str) -> None:
    places = [write(tmp_path, f"{i}.{suffix}", encoded(suffix)) for i in range(3)]
    for n_decoded in (0, 1, 16):
        assert check_images(places, n_decoded) == []


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.9, 0.99])
def test_truncated_files_are_found_without_a_sample(tmp_path: Path, suffix: str, kept: float) -> None:
    whole = encoded(suffix)
    sound = write(tmp_path, f"sound.{suffix}", whole)
    cut = write(tmp_path, f"cut.{suffix}", whole[: int(len(whole) * kept)])
    (problem,) = check_images([sound, cut], 0)
    assert problem.path == str(cut.path)
    assert "not a readable image" in problem.what
    assert problem.code == ExitCode.BAD_DATA


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_bytes_after_the_end_do_no_harm(tmp_path: Path, suffix: str) -> None:
    assert check_images([write(tmp_path, f"a.{suffix}", encoded(suffix) + b"\0" * 50)], 0) == []


def test_a_bomb_is_not_decoded(tmp_path: Path) -> None:
    content = bytearray(encoded("png"))
    content[16:24] = (10_000).to_bytes(4, "big") + (8_000).to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (problem,) = check_images([write(tmp_path, "bomb.png", bytes(content))], 0)
    assert "10000 x 8000" in problem.what


def test_damage_inside_is_found_in_the_sample(tmp_path: Path) -> None:
    content = bytearray(encoded("png"))
    content[len(content) // 2] ^= 0xFF
    places = [write(tmp_path, f"{i}.png", bytes(content)) for i in range(8)]
    assert check_images(places, 0) == []
    assert [p.path for p in check_images(places, 4)] == [str(places[i].path) for i in (0, 2, 4, 6)]


def test_many_damaged_files_are_summarised(tmp_path: Path) -> None:
    places = [write(tmp_path, f"{i:02d}.png", b"") for i in range(25)]
    problems = check_images(places)
    assert len(problems) == 11
    assert "15 more images" in problems[-1].what
    assert problems[-1].path == str(places[10].path)


def test_bricks(tmp_path: Path) -> None:
    path = tmp_path / "bricks.hdf5"
    with h5py.File(path, "w") as file:
        file["imgBrick"] = np.stack([PIXELS] * 4)
    rows = [Place(path, i) for i in range(4)]
    assert check_images(rows) == []
    (problem,) = check_images([*rows, Place(path, 4)], 0)
    assert "Has 4 images, but row 4" in problem.what
    path.write_bytes(path.read_bytes()[:2000])
    (problem,) = check_images(rows, 0)
    assert "not a readable HDF5" in problem.what


def test_missing_files_are_not_reported_here(tmp_path: Path) -> None:
    assert check_images([Place(tmp_path / "none.png")]) == []
