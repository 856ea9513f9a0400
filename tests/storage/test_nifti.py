"""NIfTI files: one reader of headers, single volumes and streams of them."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.nifti import load_volume, open_volumes, read_header

RNG = np.random.default_rng(0)


def image(path: Path, data: np.ndarray, slope: float = 1.0) -> Path:
    made = nib.Nifti1Image(data, np.diag([2.0, 2.0, 2.0, 1.0]))
    made.header.set_slope_inter(slope, 0.5 if slope != 1 else 0.0)
    nib.save(made, path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("slope", [1.0, 0.25])
def test_a_volume_is_what_nibabel_reads(tmp_path: Path, suffix: str, slope: float) -> None:
    data = RNG.integers(-900, 900, (4, 5, 6)).astype(np.int16)
    path = image(tmp_path / f"x{suffix}", data, slope)
    volume = load_volume(path)
    np.testing.assert_array_equal(volume.data, np.asanyarray(nib.load(path).dataobj))
    np.testing.assert_array_equal(volume.affine, nib.load(path).affine)


@pytest.mark.parametrize("where", [0.01, 0.3, 0.9])
def test_a_damaged_gzip_stream_is_named(tmp_path: Path, where: float) -> None:
    path = image(tmp_path / "x.nii.gz", RNG.integers(-900, 900, (9, 9, 9, 8)).astype(np.int16))
    raw = bytearray(path.read_bytes())
    for position in range(int(len(raw) * where), int(len(raw) * where) + 40):
        raw[position] ^= 0xFF
    raw[-4:] = b"\0\0\0\0"  # so that the length is checked by inflating
    path.write_bytes(bytes(raw))
    with pytest.raises(AppError) as caught:
        read_header(path)
    assert caught.value.exit_code == ExitCode.BAD_DATA
    with pytest.raises(AppError) as caught, open_volumes(path) as (_, volumes):
        list(volumes)
    assert caught.value.exit_code == ExitCode.BAD_DATA


def test_axes_of_one_and_names_that_mislead(tmp_path: Path) -> None:
    """AFNI writes 5-D files with an axis of one; some tools call uncompressed files .nii.gz."""
    path = image(tmp_path / "afni.nii.gz", np.zeros((3, 4, 5, 1, 7), np.float32))
    header = read_header(path)
    assert (header.shape, header.n_volumes) == ((3, 4, 5), 7)
    plain = tmp_path / "plain.nii.gz"
    plain.write_bytes(gzip.decompress(path.read_bytes()))
    assert read_header(plain).n_volumes == 7
    packed = tmp_path / "packed.nii"
    packed.write_bytes(path.read_bytes())
    assert read_header(packed).n_volumes == 7
    image(path, np.zeros((3, 4, 5, 2, 7), np.float32))
    with pytest.raises(AppError, match="The shape is"):
        read_header(path)
