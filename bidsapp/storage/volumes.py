"""NIfTI files read volume by volume, without ever holding the 4-D array.

NIfTI stores volumes one after the other in Fortran order, so a gzipped file can be inflated from its
beginning and each volume dropped as soon as the wanted voxels are taken from it. Inflating is done by
ISA-L (``isal``), several times faster than zlib.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import numpy.typing as npt

from bidsapp.errors import AppError, ExitCode

#: Bytes that DEFLATE can make of one compressed byte at most; a header that declares more is a lie.
_MAX_INFLATION = 1032
#: Header extensions longer than this are taken for a damaged ``vox_offset``.
_MAX_OFFSET = 1 << 26
_MEND_COPY = "Fetch or make the file again and compare its size or checksum with the source."


@dataclass(frozen=True)
class VolumeHeader:
    """What a NIfTI header says of its data.

    Attributes
    ----------
    shape : tuple of int
        (x, y, z).
    n_volumes : int
        1 for a 3-D file.
    dtype : numpy.dtype
        As stored, byte order included.
    slope, intercept : float
        Values are ``stored * slope + intercept``; 1 and 0 where the header has none.
    affine : ndarray of float64, (4, 4)
        Voxel indices to mm.
    zooms : tuple of float
        Voxel sizes, mm.
    sform_code, qform_code : int
        NIfTI's codes of the space.
    offset : int
        Byte at which the data begin.
    """

    shape: tuple[int, int, int]
    n_volumes: int
    dtype: np.dtype[Any]
    slope: float
    intercept: float
    affine: npt.NDArray[np.float64]
    zooms: tuple[float, float, float]
    sform_code: int
    qform_code: int
    offset: int

    @property
    def n_bytes(self) -> int:
        """Bytes of one volume."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def refuse(path: Path, what: str, mend: str = _MEND_COPY, code: ExitCode = ExitCode.BAD_DATA) -> NoReturn:
    """Raise the :class:`AppError` of a file that can't be used."""
    raise AppError(f"{path}: {what} {mend}", exit_code=code, path=path)


@contextmanager
def open_volumes(path: Path) -> Iterator[tuple[VolumeHeader, Iterator[npt.NDArray[Any]]]]:
    """Open a NIfTI-1 or NIfTI-2 file (``.nii`` or ``.nii.gz``) for one pass over its volumes.

    Compression is told by the file's first bytes, not by its name.

    Parameters
    ----------
    path : Path
        File to read.

    Yields
    ------
    header : VolumeHeader
    volumes : iterator of ndarray, (x * y * z,)
        Each volume flat in Fortran order, as stored (unscaled, the file's byte order, read-only).

    Raises
    ------
    AppError
        Exit code 66 for a missing file, 74 for one that can't be read, 65 for one that is no NIfTI,
        truncated, damaged, of an unsupported type, or that declares more data than it can hold.
    """
    try:
        raw = open(path, "rb")  # noqa: SIM115 (closed by the with below, after its own errors are told)
    except FileNotFoundError:
        refuse(
            path, "There is no such file.", "Check the dataset, and that it is mounted.", ExitCode.NO_INPUT
        )
    except OSError as error:
        refuse(path, f"Cannot be read: {error.strerror}.", "Check its permissions.", ExitCode.IO_ERROR)
    with raw:
        compressed = raw.peek(2)[:2] == b"\x1f\x8b"
        stream: IO[bytes] = raw
        if compressed:
            from isal import igzip

            open_gzip: Any = igzip.open  # it has no type hints
            stream = open_gzip(raw, "rb")
        with stream:
            header = _read_header(stream, path)
            size = os.fstat(raw.fileno()).st_size
            declared = header.offset + header.n_volumes * header.n_bytes
            if declared > size * (_MAX_INFLATION if compressed else 1):
                refuse(
                    path,
                    f"The header declares {header.n_volumes} volumes of {header.shape}, {declared} bytes, "
                    f"but the file of {size} bytes cannot hold them: it is truncated or damaged.",
                )
            yield header, _iterate(stream, header, path)


def _read_header(stream: IO[bytes], path: Path) -> VolumeHeader:
    import nibabel as nib

    block = _read(stream, 348, path, "the header")
    size = {int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big")}
    if not size & {348, 540}:
        refuse(path, "This is not a NIfTI file.", "Give a .nii or .nii.gz file.")
    make: Any = nib.Nifti1Header  # nibabel has no type hints
    if 540 in size:
        block += _read(stream, 540 - 348, path, "the header")
        make = nib.Nifti2Header
    try:
        header = make(block, check=True)
        dtype = header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
        dims = tuple(int(n) for n in header.get_data_shape())
        offset = float(header["vox_offset"])
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
        zooms = tuple(float(z) for z in header.get_zooms()[:3])
    except (nib.spatialimages.HeaderDataError, nib.wrapstruct.WrapStructError, ValueError, KeyError) as error:
        refuse(path, f"The NIfTI header is damaged ({error}).")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        refuse(path, f"Values of type {dtype} are not supported.", "Store integers, float32 or float64.")
    dims = dims[:3] + tuple(n for n in dims[3:] if n != 1) if len(dims) > 4 else dims
    if len(dims) not in (3, 4) or min(dims) < 1:
        refuse(path, f"The shape is {dims}.", "A 3-D or 4-D file with at least one voxel is needed.")
    if not (len(block) <= offset <= _MAX_OFFSET):
        refuse(path, f"The NIfTI header is damaged (data said to begin at byte {offset:g}).")
    _read(stream, int(offset) - len(block), path, "the header's extensions")
    return VolumeHeader(
        shape=(dims[0], dims[1], dims[2]),
        n_volumes=dims[3] if len(dims) == 4 else 1,
        dtype=dtype,
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        affine=affine,
        zooms=(zooms[0], zooms[1], zooms[2]),
        sform_code=int(header["sform_code"]),
        qform_code=int(header["qform_code"]),
        offset=int(offset),
    )


def _iterate(stream: IO[bytes], header: VolumeHeader, path: Path) -> Iterator[npt.NDArray[Any]]:
    for index in range(header.n_volumes):
        what = f"volume {index + 1} of {header.n_volumes}"
        block = _read(stream, header.n_bytes, path, what)
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
    except (zlib.error, OSError) as error:
        # isal's own error is zlib.error or a subclass of OSError (BadGzipFile: checksum, header).
        if isinstance(error, OSError) and error.errno is not None:
            refuse(path, f"Reading failed: {error.strerror}.", "Check the disk.", ExitCode.IO_ERROR)
        refuse(path, f"The gzip file is damaged in {what} ({error}).")
    if len(block) < (n_bytes if at_least is None else at_least):
        refuse(path, f"The file is truncated: it ends in {what}.")
    return block
