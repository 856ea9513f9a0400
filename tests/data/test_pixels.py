"""Pixels of unusual image files: 16 bits, orientation, transparency; the same from files and from bricks."""

from __future__ import annotations

import fcntl
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hostile.hostile_case import confined
from numpy.typing import NDArray
from PIL import Image

from bidsapp.data._pixels import Bricks, decode, size_of
from bidsapp.data._stimulus_table import Place
from bidsapp.data.image_check import check_images
from bidsapp.errors import AppError, ExitCode

RAMP = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (32, 1))
GREY = np.repeat(RAMP[..., None], 3, axis=-1)
RAMP_16 = RAMP.astype(np.uint16) * 257
COLOURS = np.stack([RAMP, np.full_like(RAMP, 20), 255 - RAMP], axis=-1)
ORIENTATION = 0x0112


def encoded(values: NDArray[Any], kind: str, **how: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, kind, **how)
    return stream.getvalue()


def with_tag(tiff: bytes, tag: int, value: int) -> bytes:
    """A TIFF file with another value of a short tag that it has already."""
    whole = bytearray(tiff)
    (start,) = struct.unpack_from("<I", whole, 4)
    for i in range(struct.unpack_from("<H", whole, start)[0]):
        place = start + 2 + 12 * i
        if struct.unpack_from("<H", whole, place)[0] == tag:
            struct.pack_into("<H", whole, place + 8, value)
    return bytes(whole)


def from_file(folder: Path, content: bytes) -> NDArray[np.uint8]:
    path = folder / "image"
    path.write_bytes(content)
    pixels = decode(path)
    assert size_of(path) == pixels.shape[:2]
    return pixels


def from_brick(folder: Path, content: bytes) -> NDArray[np.uint8]:
    path = folder / "brick.hdf5"
    with h5py.File(path, "w") as file:
        rows = file.create_dataset("images", (2,), h5py.vlen_dtype(np.uint8))
        rows[1] = np.frombuffer(content, np.uint8)
    with Bricks() as bricks:
        pixels = bricks.row(path, 1)
        assert bricks.size(path, 1) == pixels.shape[:2]
    return pixels


READERS = pytest.mark.parametrize("read", [from_file, from_brick])
Read = Callable[[Path, bytes], NDArray[np.uint8]]


@READERS
@pytest.mark.parametrize(
    "content",
    [
        encoded(RAMP, "PNG"),
        encoded(RAMP_16, "PNG"),
        encoded(RAMP_16, "TIFF"),
        encoded(RAMP_16.astype(">u2"), "TIFF"),
        with_tag(encoded(65535 - RAMP_16, "TIFF"), 262, 0),  # white is zero
        encoded(np.repeat(RAMP_16[..., None], 1, -1)[..., 0], "TIFF", compression="tiff_lzw"),
    ],
    ids=["8 bits", "PNG", "TIFF", "big-endian TIFF", "TIFF with inverted values", "compressed TIFF"],
)
def test_16_bits_are_scaled_to_8(tmp_path: Path, read: Read, content: bytes) -> None:
    np.testing.assert_array_equal(read(tmp_path, content), GREY)


def test_16_bits_are_rounded_to_the_nearest_of_256_levels(tmp_path: Path) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.round(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(from_file(tmp_path, encoded(values, "PNG"))[..., 0], expected)


@READERS
def test_transparent_pixels_of_16_bits_are_grey(tmp_path: Path, read: Read) -> None:
    expected = GREY.copy()
    expected[:, 10] = 128
    content = encoded(RAMP_16, "PNG", transparency=int(RAMP_16[0, 10]))
    np.testing.assert_array_equal(read(tmp_path, content), expected)


@READERS
@pytest.mark.parametrize(
    ("values", "words"),
    [
        (RAMP_16.astype(np.int32), "32-bit integers"),
        (RAMP.astype(np.float32) / 255, "floating-point"),
        (RAMP.astype(np.float32), "floating-point"),
    ],
)
def test_values_without_a_known_range_are_refused(
    tmp_path: Path, read: Read, values: NDArray[Any], words: str
) -> None:
    with pytest.raises(AppError, match=words) as caught:
        read(tmp_path, encoded(values, "TIFF"))
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert str(tmp_path) in str(caught.value)


def test_the_check_of_images_names_every_image_without_a_known_range(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.tif" for i in range(4)]
    for path in paths:
        path.write_bytes(encoded(RAMP.astype(np.float32), "TIFF"))
    problems = check_images([Place(path) for path in paths], n_decoded=1)
    assert [p.path for p in problems] == [str(path) for path in paths]
    assert all("floating-point" in p.what for p in problems)


@READERS
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("number", range(1, 9))
def test_images_are_turned_upright(tmp_path: Path, read: Read, kind: str, number: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = number
    how: dict[str, Any] = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}.get(
        kind, {}
    )
    stored = np.zeros((24, 40, 3), np.uint8)
    stored[:12, :10] = 200  # its first rows and columns
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored),
    }[number]
    found = read(tmp_path, encoded(stored, kind, exif=exif, **how))
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).max() < 30


@pytest.mark.parametrize("damage", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", b"junk"])
def test_a_damaged_orientation_leaves_the_image_as_it_is(tmp_path: Path, damage: bytes) -> None:
    content = encoded(COLOURS, "PNG", exif=damage)
    np.testing.assert_array_equal(from_file(tmp_path, content), COLOURS)


@READERS
@pytest.mark.parametrize(
    ("mode", "tolerance"), [("1", 255), ("L", 0), ("P", 60), ("LA", 0), ("RGBA", 0), ("CMYK", 8)]
)
def test_other_modes_keep_their_colours(tmp_path: Path, read: Read, mode: str, tolerance: int) -> None:
    source = Image.fromarray(GREY).convert(mode)
    stream = io.BytesIO()
    source.save(stream, "TIFF" if mode == "CMYK" else "PNG")
    found = read(tmp_path, stream.getvalue())
    assert np.abs(found.astype(int) - GREY).max() <= tolerance
    assert abs(found.mean() - GREY.mean()) < 2


def png(width: int, height: int) -> bytes:
    """A valid black PNG, of 1 bit per pixel."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + -(-width // 8)) * height))
    parts = ((b"IHDR", head), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


SIZES = pytest.mark.parametrize(
    ("width", "height", "words"),
    [
        (4_000_000, 16, "sides of up to 16384"),
        (1, 64_000_000, "sides of up to 16384"),
        (16_385, 400, "sides of up to 16384"),
        (8, 8_000, "100 times"),
        (16_384, 163, "100 times"),
        (9_000, 9_000, "the limit of 64000000"),
    ],
)


@SIZES
@READERS
def test_sizes_that_are_refused(tmp_path: Path, read: Read, width: int, height: int, words: str) -> None:
    with pytest.raises(AppError, match=f"{width} x {height} pixels.*{words}") as caught:
        read(tmp_path, png(width, height))
    assert caught.value.exit_code == ExitCode.BAD_DATA


@SIZES
def test_the_check_of_images_refuses_the_same_sizes(
    tmp_path: Path, width: int, height: int, words: str
) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(png(width, height))
    (problem,) = check_images([Place(path)], n_decoded=0)
    assert words in problem.what


@SIZES
def test_bricks_of_pixels_have_the_same_limits(tmp_path: Path, width: int, height: int, words: str) -> None:
    path = tmp_path / "brick.hdf5"
    with h5py.File(path, "w") as file:
        file.create_dataset("imgBrick", (1, height, width, 3), "u1", chunks=(1, 1, 1, 3))
    with pytest.raises(AppError, match=f"{width} x {height} pixels.*{words}"), Bricks() as bricks:
        bricks.row(path, 0)


@pytest.mark.parametrize("sides", [(16_384, 164), (80, 8_000), (1, 1), (1, 100)])
def test_long_images_within_the_limits_are_read(tmp_path: Path, sides: tuple[int, int]) -> None:
    assert from_file(tmp_path, png(*sides)).shape == (*sides[::-1], 3)


CLAIMS = pytest.mark.parametrize("length", [4_000_000_000, 100_000])


def brick_of_copies(path: Path, content: bytes, **how: Any) -> None:
    with h5py.File(path, "w", userblock_size=how.pop("userblock_size", 0)) as file:
        rows = file.create_dataset("images", (4,), h5py.vlen_dtype(np.uint8), **how)
        for row in range(4):
            rows[row] = np.frombuffer(content, np.uint8)


def refused_before_it_is_read(path: Path, length: int) -> None:
    words = f"row 3 declares {length} bytes, more than the file can hold"
    with Bricks() as bricks:
        for row in range(3):
            np.testing.assert_array_equal(bricks.row(path, row), COLOURS)
        with confined(slack=1 << 28), pytest.raises(AppError, match=words) as caught:
            bricks.row(path, 3)
    assert caught.value.exit_code == ExitCode.BAD_DATA


@CLAIMS
@pytest.mark.parametrize("userblock_size", [0, 1024])
def test_a_row_that_claims_more_than_its_file_holds(tmp_path: Path, length: int, userblock_size: int) -> None:
    """Its length is changed in the file: HDF5 allocates what a row claims before it looks further."""
    path = tmp_path / "brick.hdf5"
    brick_of_copies(path, encoded(COLOURS, "PNG"), userblock_size=userblock_size)
    with h5py.File(path) as file:
        place = file["images"].id.get_offset() + 3 * 16
    whole = bytearray(path.read_bytes())
    whole[place : place + 4] = struct.pack("<I", length)
    path.write_bytes(whole)
    refused_before_it_is_read(path, length)


@CLAIMS
@pytest.mark.parametrize("compression", [None, 4])
def test_a_row_that_claims_too_much_in_a_chunk(tmp_path: Path, length: int, compression: Any) -> None:
    path = tmp_path / "brick.hdf5"
    brick_of_copies(path, encoded(COLOURS, "PNG"), chunks=(2,), compression=compression)
    with h5py.File(path, "r+") as file:
        rows = file["images"].id
        mask, raw = rows.read_direct_chunk((2,))
        raw = zlib.decompress(raw) if compression else raw
        raw = raw[:16] + struct.pack("<I", length) + raw[20:]
        rows.write_direct_chunk((2,), zlib.compress(raw) if compression else raw, mask)
    refused_before_it_is_read(path, length)


def test_a_brick_that_another_process_has_locked_is_read(tmp_path: Path) -> None:
    path = tmp_path / "brick.hdf5"
    brick_of_copies(path, encoded(COLOURS, "PNG"))
    with path.open("rb") as stream, Bricks() as bricks:
        fcntl.flock(stream, fcntl.LOCK_EX)
        np.testing.assert_array_equal(bricks.row(path, 0), COLOURS)
