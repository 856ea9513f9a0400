"""Pixels from image files and HDF5 bricks, with sizes checked before anything is decoded."""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.files import kind_of
from bidsapp.storage.hdf5 import DAMAGED, is_complete
from bidsapp.storage.hdf5_rows import chunks_per_row, row_is_written, row_lengths

#: An image with more pixels is treated as a decompression bomb and not decoded.
MAX_PIXELS = 64_000_000
#: Longest side, in pixels, and largest ratio of the sides: networks that resize the shorter side to a given
#: length need memory for the longer one.
MAX_SIDE, MAX_RATIO = 16_384, 100
#: Longest image file, in bytes, that is read: twice what the pixels of the largest can take.
MAX_FILE = 1 << 30
#: Largest HDF5 chunk, in bytes, that is inflated to read one image.
MAX_CHUNK = 1 << 30
#: Most chunks of an HDF5 array that hold one image, and most encoded images of one chunk.
MAX_CHUNKS, MAX_CHUNK_ROWS = 100_000, 1 << 20
#: Background of transparent pixels: the mid-grey of a screen, as LAION-fMRI showed its images
#: (its documentation, "Image Format"; 0.5 in [0, 1]).
BACKGROUND = (128, 128, 128, 255)

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
#: Pillow's modes of 16-bit grey images, and those whose values cannot be scaled, because black and white are
#: not defined.
_GREY_16 = "I;16"
_UNKNOWN_RANGE = {"I": "32-bit integers (or signed 16-bit integers)", "F": "floating-point values"}
#: What EXIF's orientations require to be upright, and those of them that swap width and height.
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = (5, 6, 7, 8)


@dataclass(frozen=True)
class _Brick:
    """An open HDF5 file, its images (pixels or encoded files), whether all were written, known lengths."""

    file: Any
    images: Any
    encoded: bool
    complete: bool
    lengths: dict[int, int] = field(default_factory=dict)


class Bricks:
    """HDF5 bricks, each opened once while images are read."""

    def __init__(self) -> None:
        self._open: dict[Path, _Brick] = {}

    def __enter__(self) -> Bricks:
        return self

    def __exit__(self, *_: object) -> None:
        for brick in self._open.values():
            brick.file.close()

    def row(self, path: Path, row: int) -> NDArray[np.uint8]:
        """One image of a brick, uint8 (H, W, 3)."""
        stored = self._stored(path, row)
        return decode(path, row, stored.tobytes()) if self._open[path].encoded else stored

    def size(self, path: Path, row: int) -> tuple[int, int]:
        """Height and width of one image of a brick, in pixels."""
        if not self._brick(path).encoded:
            height, width = self._brick(path).images.shape[1:3]
            return int(height), int(width)
        return size_of(path, row, self._stored(path, row).tobytes())

    def stored(self, path: Path, row: int) -> bytes:
        """One image of a brick as stored: its pixels, or its encoded file."""
        return self._stored(path, row).tobytes()

    def _brick(self, path: Path) -> _Brick:
        if path not in self._open:
            self._open[path] = _open_brick(path)
        return self._open[path]

    def require(self, path: Path, row: int) -> None:
        """Raise AppError if the brick cannot be opened or has no such row; reads no pixels."""
        brick = self._brick(path)
        n = brick.images.shape[0]
        if not 0 <= row < n:
            raise _bad(path, f"has {n} images, but row {row} (from 0) is requested")
        try:
            written = brick.complete or row_is_written(brick.images, row)
            if brick.encoded and row not in brick.lengths:
                brick.lengths.update(row_lengths(brick.images, path, row))
        except (*DAMAGED, struct.error) as error:
            raise _bad(path, f"row {row} cannot be read ({error})") from error
        if not written:
            raise _bad(path, f"row {row} was never written: the file is a subset, or incomplete")
        length = brick.lengths.get(row, 0)
        if length > min(MAX_FILE, path.stat().st_size):
            raise _bad(path, f"row {row} declares {length} bytes, more than the file can hold")

    def _stored(self, path: Path, row: int) -> NDArray[np.uint8]:
        self.require(path, row)
        try:
            return np.asarray(self._brick(path).images[row], np.uint8)
        except DAMAGED as error:
            raise _bad(path, f"row {row} cannot be read ({error})") from error


def _open_brick(path: Path) -> _Brick:
    import h5py

    require(path)
    try:
        file = h5py.File(path, "r", locking=False)
    except DAMAGED as error:
        raise _bad(path, f"is not a readable HDF5 file ({error})") from error
    try:
        return _find_images(file, path)
    except DAMAGED as error:
        file.close()
        raise _bad(path, f"is damaged ({error})") from error
    except AppError:
        file.close()
        raise


def _find_images(file: Any, path: Path) -> _Brick:
    import h5py

    # Links to other files are ignored: they may lead anywhere on the machine.
    own = [file[k] for k in file if isinstance(file.get(k, getlink=True), h5py.HardLink)]
    arrays = [d for d in own if isinstance(d, h5py.Dataset)]
    pixels = [d for d in arrays if d.ndim == 4 and d.shape[3] == 3 and d.dtype == np.uint8]
    encoded = [d for d in arrays if d.ndim == 1 and h5py.check_vlen_dtype(d.dtype) == np.uint8]
    found = pixels or encoded
    what = ""
    chunks = found[0].chunks if found else None
    if len(found) != 1:
        what = "must hold exactly one array at its top level: uint8 (N, H, W, 3), or N encoded images"
    elif found[0].external or found[0].is_virtual:
        what = "stores its pixels in other files, which is not supported"
    elif pixels and size_fault(found[0].shape[2], found[0].shape[1]):
        what = size_fault(found[0].shape[2], found[0].shape[1])
    elif chunks and math.prod(chunks) * found[0].dtype.itemsize > MAX_CHUNK:
        what = f"is stored in chunks of {math.prod(chunks)} bytes, too large to read one image"
    elif not pixels and chunks and chunks[0] > MAX_CHUNK_ROWS:
        what = f"is stored in chunks of {chunks[0]} images; up to {MAX_CHUNK_ROWS} are read"
    elif (n := chunks_per_row(found[0])) > MAX_CHUNKS:
        what = f"is stored in {n} chunks per image; up to {MAX_CHUNKS} are read"
    if what:
        raise _bad(path, what)
    return _Brick(file, found[0], not pixels, is_complete(found[0]))


def decode(path: Path, row: int | None = None, stored: bytes | None = None) -> NDArray[np.uint8]:
    """Decode an image file, or the image ``stored`` in a brick's row, as RGB, uint8 (H, W, 3).

    Size and mode are checked first. The image is rotated and mirrored as its EXIF orientation requires, as
    image viewers do. 16-bit grey values are divided by 257. Transparent pixels are placed on mid-grey
    (:data:`BACKGROUND`). Of files with several images, the first is read.
    """
    with _opened(path, row, stored) as image:
        try:
            transpose = _TRANSPOSE.get(_orientation(image))
            if image.mode.startswith(_GREY_16):
                image = _to_8_bits(image)
            if image.has_transparency_data:
                below = Image.new("RGBA", image.size, BACKGROUND)
                image = Image.alpha_composite(below, image.convert("RGBA"))
            image = image.convert("RGB")
            return np.asarray(image if transpose is None else image.transpose(transpose))
        except Exception as error:  # damaged files raise a dozen kinds
            raise _bad(path, f"{_which(row)}is not a readable image ({error})") from error


def size_of(path: Path, row: int | None = None, stored: bytes | None = None) -> tuple[int, int]:
    """Height and width in pixels of an image, from its header; see :func:`decode`."""
    with _opened(path, row, stored) as image:
        sides = image.height, image.width
        return sides[::-1] if _orientation(image) in _SWAPS_SIDES else sides


def _orientation(image: Image.Image) -> int:
    """EXIF orientation of an image that is not loaded yet, 1 to 8; 1 (upright) if it has none."""
    # Pillow itself applies that of TIFF. For PNG, it would decode the image to look behind the pixels.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # damaged metadata do not make an image unreadable
        return 1


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey values (12 bits in some TIFF files) to 0 to 255; keep a transparent value."""
    tags: Any = getattr(image, "tag_v2", {})  # of TIFF
    largest = 2 ** tags.get(258, (16,))[0] - 1
    values = np.asarray(image).astype(np.uint32)
    grey = (values * 255 + largest // 2) // largest
    if tags.get(262) == 0:  # white is zero
        grey = 255 - grey
    result = Image.fromarray(grey.astype(np.uint8))
    if "transparency" in image.info:
        alpha = np.where(values == image.info["transparency"], 0, 255)
        result.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return result


def require_image(path: Path) -> None:
    """Raise AppError if the file is missing, or too long for an image of the largest size."""
    require(path)
    if (size := path.stat().st_size) > MAX_FILE:
        raise _bad(path, f"has {size} bytes; image files of up to {MAX_FILE} are read")


def _opened(path: Path, row: int | None, stored: bytes | None) -> Image.Image:
    """Open an image without decoding it, and refuse one that is too large or has an unknown range."""
    if stored is None:
        require_image(path)
    try:
        image = Image.open(path if stored is None else io.BytesIO(stored), formats=_FORMATS)
    except Exception as error:  # damaged files raise a dozen kinds
        raise _bad(path, f"{_which(row)}is not a readable image ({error})") from error
    what = size_fault(image.width, image.height)
    if image.mode in _UNKNOWN_RANGE:
        what = f"has {_UNKNOWN_RANGE[image.mode]}, whose range is unknown; save 8 or 16 bits per channel"
    if what:
        image.close()
        raise _bad(path, f"{_which(row)}{what}")
    return image


def size_fault(width: int, height: int) -> str:
    """Return why an image of this size is not decoded, "" if it is."""
    size = f"declares {width} x {height} pixels"
    if width * height > MAX_PIXELS:
        return f"{size}, more than the limit of {MAX_PIXELS}"
    if max(width, height) > MAX_SIDE:
        return f"{size}; sides of up to {MAX_SIDE} are read"
    if max(width, height) > MAX_RATIO * min(width, height):
        return f"{size}; one side may be at most {MAX_RATIO} times as long as the other"
    return ""


def _which(row: int | None) -> str:
    return "" if row is None else f"row {row} "


def require(path: Path) -> None:
    """Raise AppError (exit code 66) if the file is missing."""
    if kind := kind_of(path):
        raise AppError(f"{path}: {kind}.", exit_code=ExitCode.NO_INPUT)


def _bad(path: Path, what: str) -> AppError:
    return AppError(f"{path}: {what}.", exit_code=ExitCode.BAD_DATA)
