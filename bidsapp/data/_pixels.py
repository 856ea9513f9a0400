"""Pixels from image files and HDF5 bricks, with sizes checked before anything is decoded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bidsapp.errors import AppError, ExitCode

#: An image of more pixels than this is taken for a decompression bomb and not decoded.
MAX_PIXELS = 64_000_000
#: Largest HDF5 chunk, in bytes, that is inflated to read one image.
MAX_CHUNK = 1 << 30

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")


class Bricks:
    """HDF5 bricks, each opened once while images are read."""

    def __init__(self) -> None:
        self._open: dict[Path, tuple[Any, Any]] = {}

    def __enter__(self) -> Bricks:
        return self

    def __exit__(self, *_: object) -> None:
        for file, _brick in self._open.values():
            file.close()

    def row(self, path: Path, row: int) -> NDArray[np.uint8]:
        """One image of a brick, uint8 (H, W, 3)."""
        if path not in self._open:
            self._open[path] = _open_brick(path)
        brick = self._open[path][1]
        if not 0 <= row < brick.shape[0]:
            raise _bad(path, f"has {brick.shape[0]} images, but stimuli.tsv asks for row {row} (from 0)")
        try:
            return np.asarray(brick[row], np.uint8)
        except OSError as error:
            raise _bad(path, f"row {row} cannot be read ({error})") from error


def _open_brick(path: Path) -> tuple[Any, Any]:
    import h5py

    require(path)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise _bad(path, f"is no readable HDF5 file ({error})") from error
    # Links to other files are passed over: they may lead anywhere on the machine.
    own = [file[k] for k in file if isinstance(file.get(k, getlink=True), h5py.HardLink)]
    bricks = [d for d in own if isinstance(d, h5py.Dataset) and d.ndim == 4 and d.shape[3] == 3]
    if len(bricks) != 1 or bricks[0].dtype != np.uint8:
        file.close()
        raise _bad(path, "must hold exactly one uint8 array of shape (N, H, W, 3) at its top")
    brick = bricks[0]
    what = ""
    if brick.external or brick.is_virtual:
        what = "keeps its pixels in other files, which is not supported"
    elif brick.shape[1] * brick.shape[2] > MAX_PIXELS:
        what = f"declares images of {brick.shape[2]} x {brick.shape[1]} pixels, too many to read"
    elif brick.chunks and math.prod(brick.chunks) > MAX_CHUNK:
        what = f"is stored in chunks of {math.prod(brick.chunks)} bytes, too large to read one image"
    if what:
        file.close()
        raise _bad(path, what)
    return file, brick


def decode(path: Path) -> NDArray[np.uint8]:
    """Read an image file as RGB, uint8 (H, W, 3); its size is checked before it is decoded."""
    require(path)
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height <= MAX_PIXELS:
                return np.asarray(image.convert("RGB"))
            size = f"{image.width} x {image.height}"
    except Exception as error:  # damaged files raise a dozen kinds
        raise _bad(path, f"is no readable image ({error})") from error
    raise _bad(path, f"declares {size} pixels, more than the limit of {MAX_PIXELS}")


def require(path: Path) -> None:
    """Raise AppError (exit code 66) where there is no such file."""
    if not path.is_file():
        link = " (a link to nothing: if this is a DataLad dataset, run `datalad get` on it)"
        what = f"{path}: there is no such file{link if path.is_symlink() else ''}."
        raise AppError(what, exit_code=ExitCode.NO_INPUT)


def _bad(path: Path, what: str) -> AppError:
    return AppError(f"{path}: {what}.", exit_code=ExitCode.BAD_DATA)
