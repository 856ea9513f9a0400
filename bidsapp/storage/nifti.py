"""NIfTI files: headers checked without reading the data, 4-D files streamed, small volumes read and written.

NIfTI stores one volume after the other in Fortran order, so a gzipped file can be inflated from its
beginning and each volume dropped once the voxels of interest are taken from it. ISA-L (``isal``) inflates
several times faster than zlib.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn

import numpy as np
from isal import igzip, igzip_lib
from numpy.typing import NDArray

from bidsapp.errors import AppError, ExitCode
from bidsapp.storage import MOST_INFLATION
from bidsapp.storage.atomic import atomic_path
from bidsapp.storage.files import kind_of

#: Images on the same grid may differ in position by this fraction of a voxel (stored affines are rounded).
TOLERANCE = 0.1
_BLOCK = 1 << 20
#: A header that places its data later than this is damaged.
_MOST_OFFSET = 1 << 26
#: Voxels of one volume: a head at 0.5 mm has a third of this.
_MOST_VOXELS = 1 << 28
_BAD_DEFLATE: Any = igzip_lib.IsalError  # isal has no type hints
_FETCH_AGAIN = "Fetch or make the file again and compare its size or checksum with the source."


@dataclass(frozen=True)
class Header:
    """What a NIfTI header declares about its data.

    Attributes
    ----------
    shape : tuple of int
        (x, y, z).
    n_volumes : int
        1 for a 3-D file.
    dtype : numpy.dtype
        As stored, byte order included: integers, float32 or float64.
    slope, intercept : float
        Values are ``stored * slope + intercept``; 1 and 0 where the header has none.
    affine : ndarray of float64, (4, 4)
        Voxel indices to mm; invertible.
    offset : int
        Byte at which the data begin.
    """

    shape: tuple[int, int, int]
    n_volumes: int
    dtype: np.dtype[Any]
    slope: float
    intercept: float
    affine: NDArray[np.float64]
    offset: int

    @property
    def n_bytes(self) -> int:
        """Bytes of one volume."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def end(self) -> int:
        """Bytes of the whole file, uncompressed."""
        return self.offset + self.n_volumes * self.n_bytes


@dataclass(frozen=True)
class Volume:
    """A 3-D image: ``data`` (x, y, z) of any number type, ``affine`` (4, 4) float64 in mm."""

    data: NDArray[Any]
    affine: NDArray[np.float64]


def refuse(path: Path, what: str, fix: str = _FETCH_AGAIN, code: ExitCode = ExitCode.BAD_DATA) -> NoReturn:
    """Raise the :class:`AppError` for a file that cannot be used."""
    raise AppError(f"{path}: {what} {fix}", exit_code=code, path=path, fix=fix)


def read_header(path: Path) -> Header:
    """Read a header and check that the file holds the data that it declares.

    The gzip trailer gives the length of the data modulo 2^32. Only if it disagrees is the file inflated,
    block by block, to distinguish a truncated file from one of several gzip members.

    Raises
    ------
    AppError
        As :func:`open_volumes`.
    """
    with _open(path) as (raw, stream):
        header = _read_header(stream, path)
        _check_size(raw, stream, header, path)
        if stream is not raw:
            _check_length(raw, header, path)
    return header


@contextmanager
def open_volumes(path: Path) -> Iterator[tuple[Header, Iterator[NDArray[Any]]]]:
    """Open a NIfTI-1 or NIfTI-2 file (``.nii`` or ``.nii.gz``) for one pass over its volumes.

    The first bytes decide whether it is compressed, not its name.

    Yields
    ------
    volumes : iterator of ndarray, (x * y * z,)
        Each volume flat in Fortran order, as stored (unscaled, the file's byte order, read-only).

    Raises
    ------
    AppError
        Exit code 66 for a missing file, 74 for one that cannot be read, 65 for one that is not NIfTI, is
        truncated, damaged, of an unsupported type or shape, or declares more data than it can hold.
    """
    with _open(path) as (raw, stream):
        header = _read_header(stream, path)
        _check_size(raw, stream, header, path)
        yield header, _iterate(stream, header, path)


def load_volume(path: Path) -> Volume:
    """Read a 3-D image, scaled if its header has a scale factor.

    Raises
    ------
    AppError
        As :func:`open_volumes`, and exit code 65 for more than one volume.
    """
    header = read_header(path)
    if header.n_volumes != 1:
        refuse(path, f"It must be 3-D, but has {header.n_volumes} volumes.", "Give a 3-D image.")
    with open_volumes(path) as (_, volumes):
        stored = next(volumes)
    if (header.slope, header.intercept) != (1, 0):
        stored = stored.astype(np.float64) * header.slope + header.intercept
    return Volume(stored.reshape(header.shape, order="F"), header.affine)


def save_volume(path: Path, data: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write a 3-D image atomically; the same data give the same bytes.

    Parameters
    ----------
    path : Path
        ``*.nii`` or ``*.nii.gz``.
    data : ndarray, shape (x, y, z)
    affine : ndarray of float64, shape (4, 4)
        Voxel indices to mm.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(volume_bytes(data, affine, compressed=path.suffix == ".gz"))


def volume_bytes(data: NDArray[Any], affine: NDArray[np.float64], *, compressed: bool) -> bytes:
    """Give the content of the file that :func:`save_volume` writes."""
    import nibabel as nib

    image: Any = nib.Nifti1Image(data, affine)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm", "sec")
    raw: bytes = image.to_bytes()
    # Not nib.save: gzip would record the temporary file's name.
    return gzip.compress(raw, compresslevel=6, mtime=0) if compressed else raw


def displacement(a: NDArray[np.float64], b: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Largest distance, in voxels of ``a``, between the corners of a volume under two affines.

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


@contextmanager
def _open(path: Path) -> Iterator[tuple[BinaryIO, IO[bytes]]]:
    """Open a file: as it is, and (another stream only if it is compressed) inflated."""
    if kind := kind_of(path):
        raise AppError(f"{path}: {kind}.", exit_code=ExitCode.NO_INPUT, path=path)
    try:
        raw = path.open("rb")
    except OSError as error:
        refuse(path, f"Cannot be read: {error.strerror}.", "Check its permissions.", ExitCode.IO_ERROR)
    with raw:
        if raw.peek(2)[:2] != b"\x1f\x8b":
            yield raw, raw
            return
        open_gzip: Any = igzip.open  # it has no type hints
        with open_gzip(raw, "rb") as stream:
            yield raw, stream


def _read_header(stream: IO[bytes], path: Path) -> Header:
    """Read up to the first byte of the data; extensions declare any length, so they are skipped."""
    import nibabel as nib

    block = _read(stream, 4, path, "the header")
    sizes = {int.from_bytes(block, "little"), int.from_bytes(block, "big")}
    if not sizes & {348, 540}:
        refuse(path, "This is not a NIfTI file.", "Give a .nii or .nii.gz file.")
    block += _read(stream, 348 - 4, path, "the header")
    make: Any = nib.Nifti1Header  # nibabel has no type hints
    if 540 in sizes:
        block += _read(stream, 540 - 348, path, "the header")
        make = nib.Nifti2Header
    elif block[344:347] == b"ni1":
        refuse(path, "Its data are in a second file.", "Join the two into one .nii file.")
    try:
        header = make(block, check=True)
        dtype = header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
        dims = tuple(int(n) for n in header.get_data_shape())
        offset = float(header["vox_offset"])
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except Exception as error:  # nibabel raises a dozen kinds on damaged headers
        refuse(path, f"The NIfTI header is damaged ({error or type(error).__name__}).")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        refuse(path, f"Values of data type {dtype} are not supported.", "Store integers, float32 or float64.")
    dims = dims[:3] + tuple(n for n in dims[3:] if n != 1) if len(dims) > 4 else dims
    if len(dims) not in (3, 4) or min(dims) < 1:
        refuse(path, f"The shape is {dims}.", "A 3-D or 4-D file with at least one voxel is needed.")
    if not (len(block) <= offset <= _MOST_OFFSET):
        refuse(path, f"The NIfTI header is damaged (its data begin at byte {offset:g}).")
    if not np.all(np.isfinite(affine)) or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        refuse(path, "Its affine is not invertible.", "Correct the affine, or make the file again.")
    _read(stream, int(offset) - len(block), path, "the header's extensions")
    return Header(
        shape=(dims[0], dims[1], dims[2]),
        n_volumes=dims[3] if len(dims) == 4 else 1,
        dtype=dtype,
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        affine=affine,
        offset=int(offset),
    )


def _check_size(raw: BinaryIO, stream: IO[bytes], header: Header, path: Path) -> None:
    """Refuse a file that cannot hold what it declares."""
    size = os.fstat(raw.fileno()).st_size
    if header.end > size * (1 if stream is raw else MOST_INFLATION):
        refuse(
            path,
            f"The header declares {header.n_volumes} volumes of {header.shape}, {header.end} bytes, more "
            f"than a file of {size} bytes can hold: it is truncated or damaged.",
        )
    if (voxels := math.prod(header.shape)) > _MOST_VOXELS:
        refuse(path, f"It declares {voxels} voxels.", f"Volumes of up to {_MOST_VOXELS} voxels are read.")


def _check_length(raw: BinaryIO, header: Header, path: Path) -> None:
    """Refuse a gzip file that holds less than it declares, or much more."""
    raw.seek(-4, os.SEEK_END)
    (declared,) = struct.unpack("<I", raw.read(4))
    if declared == header.end % 2**32:
        return
    length = _inflated_length(path, header.end + _BLOCK)
    if length < header.end:
        refuse(path, "It is truncated or damaged: it holds less data than its header declares.")
    if length > header.end + _BLOCK:
        refuse(path, f"It holds more data than the {header.end} bytes that its header declares.")


def _inflated_length(path: Path, most: int) -> int:
    """Count the bytes of a gzip file's content, up to a little more than ``most``; -1 for a damaged one."""
    total = 0
    try:
        with _open(path) as (_, stream):
            while total <= most and (block := stream.read(_BLOCK)):
                total += len(block)
    except (EOFError, OSError, _BAD_DEFLATE):
        return -1
    return total


def _iterate(stream: IO[bytes], header: Header, path: Path) -> Iterator[NDArray[Any]]:
    for index in range(header.n_volumes):
        block = _read(stream, header.n_bytes, path, f"volume {index + 1} of {header.n_volumes}")
        if index == header.n_volumes - 1:
            # One byte further, so that gzip's closing checksum is read and verified as well.
            _read(stream, 1, path, "the end of the file", at_least=0)
        yield np.frombuffer(block, dtype=header.dtype)


def _read(stream: IO[bytes], n_bytes: int, path: Path, what: str, at_least: int | None = None) -> bytes:
    """Read ``n_bytes``; fewer than ``at_least`` (all of them by default) is an error."""
    try:
        block = stream.read(n_bytes)
    except EOFError:
        refuse(path, f"The gzip file is truncated: it ends in {what}.")
    except (_BAD_DEFLATE, OSError) as error:  # BadGzipFile (checksum, header) is an OSError without errno
        if isinstance(error, OSError) and error.errno is not None:
            refuse(path, f"Reading failed: {error.strerror}.", "Check the disk.", ExitCode.IO_ERROR)
        refuse(path, f"The gzip file is damaged in {what} ({error}).")
    if len(block) < (n_bytes if at_least is None else at_least):
        refuse(path, f"The file is truncated: it ends in {what}.")
    return block
