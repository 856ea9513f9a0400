"""NIfTI headers checked without reading the data, and small 3-D volumes read and written."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.atomic import atomic_path
from bidsapp.storage.text import kind_of

#: Data types that betas, masks and maps may have; RGB and complex numbers make no sense here.
_NUMBERS = "iuf"
#: Images on one grid may differ in place by this share of a voxel (rounding of stored affines).
TOLERANCE = 0.1
#: deflate cannot shrink below about 1/1032, so a header that declares more than that is a lie.
_MOST_INFLATION = 1100
_BLOCK = 1 << 20
#: A header whose data begin later than this is damaged.
_MOST_OFFSET = 1 << 26
#: Voxels of one volume: a head at 0.5 mm has a third of it.
_MOST_VOXELS = 1 << 28


@dataclass(frozen=True)
class Header:
    """What a NIfTI file says of itself.

    Attributes
    ----------
    shape : tuple of int
        Trailing axes of length 1 beyond the third are dropped when ``shape[3:]`` holds only ones.
    affine : ndarray of float64, shape (4, 4)
        Voxel indices to mm.
    dtype : dtype
        Of the values as they are stored.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Volume:
    """A 3-D image: ``data`` (x, y, z) of any number type, ``affine`` (4, 4) float64 in mm."""

    data: NDArray[Any]
    affine: NDArray[np.float64]


def read_header(path: Path) -> Header:
    """Read a header and check that the file can hold what it declares.

    The size is checked by the gzip trailer, which holds the length of the data modulo 2^32; only
    where that disagrees is the file inflated, block by block, to tell a truncated one from one of
    several gzip members.

    Raises
    ------
    AppError
        Exit code 66 for a missing file, 65 for one that is no NIfTI file of numbers, is truncated,
        or declares more data than it can hold.
    """
    if kind := kind_of(path):
        raise _bad(path, kind, ExitCode.NO_INPUT)
    try:
        header = _fields(path)
        shape = tuple(int(n) for n in header.get_data_shape())
        dtype = np.dtype(header.get_data_dtype())
        offset = int(header.get_data_offset())
        affine = np.asarray(header.get_best_affine(), float)
    except AppError:
        raise
    except Exception as error:  # nibabel raises a dozen kinds on damaged headers
        if path.suffix == ".gz" and _is_gzip(path) and _inflated_length(path, _MOST_OFFSET) < 0:
            raise _bad(path, "is truncated or damaged: it cannot be decompressed to its end") from error
        detail = str(error).replace(str(path), "").strip() or type(error).__name__
        raise _bad(path, f"is no readable NIfTI file ({detail})") from error
    if dtype.kind not in _NUMBERS:
        raise _bad(path, f"has the data type {dtype}; integers or floating-point numbers are needed")
    if not shape or min(shape) < 1:
        raise _bad(path, f"has the shape {shape}, which holds no data")
    if not 0 <= offset <= _MOST_OFFSET:
        raise _bad(path, f"has a damaged header: its data are said to begin at byte {offset}")
    if not np.all(np.isfinite(affine)) or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise _bad(path, "has an affine that is not invertible")
    expected = offset + _product(shape) * dtype.itemsize
    _check_room(path, expected)
    if (voxels := _product(shape[:3])) > _MOST_VOXELS:
        raise _bad(path, f"declares {voxels} voxels; volumes of up to {_MOST_VOXELS} are read")
    if path.suffix == ".gz":
        _check_length(path, expected)
    if len(shape) > 3 and all(n == 1 for n in shape[3:]):
        shape = shape[:3]
    return Header(shape, affine, dtype)


def _fields(path: Path) -> Any:
    """Read the header as nibabel's record, without its extensions, whose declared lengths may be anything."""
    import nibabel as nib

    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
        start = stream.read(540)
    if len(start) < 4:
        raise ValueError("it is empty")
    sizes = {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}
    if 540 in sizes:
        return nib.Nifti2Header(start)  # type: ignore[no-untyped-call]
    if 348 not in sizes:
        raise ValueError("it has no NIfTI header")
    if start[344:347] == b"ni1":
        raise ValueError("its data are in a second file; join the two to one .nii file")
    return nib.Nifti1Header(start[:348])  # type: ignore[no-untyped-call]


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for n in shape:
        result *= n  # Python's integers: NumPy's would overflow on a malicious header
    return result


def _check_room(path: Path, expected: int) -> None:
    """Refuse a file that can't hold what it declares."""
    size = path.stat().st_size
    if path.suffix != ".gz":
        if size < expected:
            raise _bad(path, f"is truncated: its header declares {expected} bytes, the file has {size}")
        return
    if expected > size * _MOST_INFLATION:
        raise _bad(path, f"declares {expected} bytes of data, more than a file of {size} bytes can hold")


def _check_length(path: Path, expected: int) -> None:
    """Refuse a gzip file that holds less than it declares, or much more."""
    with path.open("rb") as stream:
        stream.seek(-4, os.SEEK_END)
        (declared,) = struct.unpack("<I", stream.read(4))
    if declared == expected % 2**32:
        return
    length = _inflated_length(path, expected + _BLOCK)
    if length < expected:
        raise _bad(path, "is truncated or damaged: it holds less data than its header declares")
    if length > expected + _BLOCK:
        raise _bad(path, f"holds more data than the {expected} bytes that its header declares")


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _inflated_length(path: Path, most: int) -> int:
    """Count the bytes of a gzip file's content, to a little more than ``most``; -1 for a damaged one."""
    total = 0
    try:
        with gzip.open(path, "rb") as stream:
            while total <= most and (block := stream.read(_BLOCK)):
                total += len(block)
    except (EOFError, OSError, zlib.error):
        return -1
    return total


def displacement(a: NDArray[np.float64], b: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Largest distance in voxels of ``a`` by which the corners of a volume differ under two affines.

    Parameters
    ----------
    a, b : ndarray of float64, shape (4, 4)
    shape : tuple of int
        The first three axes count.
    """
    grid = np.array(np.meshgrid(*[(0, n - 1) for n in shape[:3]], indexing="ij"), float).reshape(3, -1)
    corners = np.vstack([grid, np.ones(grid.shape[1])])
    distance = np.linalg.norm(((a - b) @ corners)[:3], axis=0)
    voxel = np.sqrt((a[:3, :3] ** 2).sum(axis=0)).min()
    return float(distance.max() / voxel)


def load_volume(path: Path) -> Volume:
    """Read a 3-D image after its header was checked (see :func:`read_header` for the errors)."""
    import nibabel as nib

    header = read_header(path)
    if len(header.shape) != 3:
        raise _bad(path, f"must be 3-D, but its shape is {header.shape}")
    try:
        data = np.asanyarray(nib.arrayproxy.ArrayProxy(path, _fields(path)))  # type: ignore[no-untyped-call]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _bad(path, f"cannot be read ({error})") from error
    return Volume(data.reshape(header.shape), header.affine)


def save_volume(path: Path, data: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write a 3-D image atomically, with mm as its unit; the same data give the same bytes.

    Parameters
    ----------
    path : Path
        ``*.nii`` or ``*.nii.gz``.
    data : ndarray, shape (x, y, z)
    affine : ndarray of float64, shape (4, 4)
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(volume_bytes(data, affine, compressed=path.suffix == ".gz"))


def volume_bytes(data: NDArray[Any], affine: NDArray[np.float64], *, compressed: bool) -> bytes:
    """Give what :func:`save_volume` writes into a file."""
    import nibabel as nib

    image: Any = nib.Nifti1Image(data, affine)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm", "sec")
    raw: bytes = image.to_bytes()
    # Not nib.save: gzip would put the temporary file's name into the result.
    return gzip.compress(raw, compresslevel=6, mtime=0) if compressed else raw


def _bad(path: Path, what: str, code: ExitCode = ExitCode.BAD_DATA) -> AppError:
    return AppError(f"{path}: {what}.", exit_code=code)
