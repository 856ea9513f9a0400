"""Masking of betas, against nibabel's own reading of the same files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp.data.betas import mask_session
from bidsapp.errors import AppError, ExitCode
from bidsapp.records import Mask, Session
from bidsapp.storage.npy import open_rows

SHAPE = (5, 6, 4)
N_TRIALS = 7
AFFINE = np.diag([1.8, 1.8, 1.8, 1.0])


def _session(path: Path, n: int = N_TRIALS, scale: float = 1.0) -> Session:
    ids = tuple(f"s{i}" for i in range(n))
    return Session("01", path, path.with_name("trials.tsv"), ids, scale)


def _write(
    path: Path, values: np.ndarray, *, endian: str = "<", slope=None, inter=None, cls=nib.Nifti1Image
) -> Path:
    header = cls.header_class(endianness=endian)
    header.set_data_dtype(values.dtype.newbyteorder(endian))
    image = nib.Nifti1Image(values, AFFINE, header)
    if slope is not None:
        # Write the stored values as they are, then the scaling into the header.
        image.header.set_slope_inter(slope, inter)
        raw = image.header.copy()
        raw["vox_offset"] = 352
        raw["magic"] = b"n+1"
        data = (
            raw.binaryblock + b"\0" * 4 + values.astype(values.dtype.newbyteorder(endian)).tobytes(order="F")
        )
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    else:
        nib.save(image, path)
    return path


def _values(dtype: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 500, (*SHAPE, N_TRIALS))
    return values.astype(dtype)


@pytest.fixture
def mask():
    return Mask(np.random.default_rng(1).integers(-1, 3, SHAPE) > 0, AFFINE)


def _literal(path: Path, mask_data: np.ndarray, scale: float) -> np.ndarray:
    """The definition: the whole array as float64, the mask's voxels in Fortran order, over the scale."""
    data = nib.load(path).get_fdata(dtype=np.float64)
    index = np.flatnonzero(mask_data.ravel(order="F"))
    flat = data.reshape(-1, data.shape[3], order="F")
    return (flat[index].T / scale).astype(np.float32)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("dtype", ["int16", "uint8", "int32", "float32", "float64"])
def test_masked_equals_nibabel(tmp_path, mask, dtype, endian, suffix):
    path = _write(tmp_path / f"betas{suffix}", _values(dtype), endian=endian)
    assert nib.load(path).header.endianness == endian
    got = mask_session(_session(path, scale=300.0), mask, tmp_path / "out.npy")
    assert isinstance(got, np.memmap)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, _literal(path, mask.inside, 300.0))


@pytest.mark.parametrize("endian", ["<", ">"])
def test_slope_and_intercept_applied_before_scale(tmp_path, mask, endian):
    path = _write(tmp_path / "b.nii.gz", _values("int16"), endian=endian, slope=0.01, inter=-2.5)
    assert nib.load(path).dataobj.slope == pytest.approx(0.01)
    got = mask_session(_session(path, scale=3.0), mask, tmp_path / "out.npy")
    np.testing.assert_array_equal(got, _literal(path, mask.inside, 3.0))
    assert got.mean() == pytest.approx((0.01 * _values("int16")[mask.inside].mean() - 2.5) / 3, rel=1e-5)


def test_nifti2_and_header_extension(tmp_path, mask):
    image = nib.Nifti2Image(_values("float32"), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 100))
    nib.save(image, tmp_path / "b.nii.gz")
    got = mask_session(_session(tmp_path / "b.nii.gz"), mask, tmp_path / "out.npy")
    np.testing.assert_array_equal(got, _literal(tmp_path / "b.nii.gz", mask.inside, 1.0))


def test_several_gzip_members(tmp_path, mask):
    plain = _write(tmp_path / "b.nii", _values("int16")).read_bytes()
    path = tmp_path / "b.nii.gz"
    path.write_bytes(gzip.compress(plain[:900]) + gzip.compress(plain[900:]))
    got = mask_session(_session(path), mask, tmp_path / "out.npy")
    np.testing.assert_array_equal(got, _literal(path, mask.inside, 1.0))


def test_nan_is_kept(tmp_path, mask):
    values = _values("float32")
    where = tuple(np.argwhere(mask.inside)[3])
    values[where] = np.nan
    path = _write(tmp_path / "b.nii.gz", values)
    got = mask_session(_session(path), mask, tmp_path / "out.npy")
    column = int(np.flatnonzero(mask.flat_index == np.ravel_multi_index(where, SHAPE, order="F"))[0])
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(got).any(axis=0)), [column])


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_truncated_file_is_refused_and_leaves_nothing(tmp_path, mask, suffix, keep):
    path = _write(tmp_path / f"betas{suffix}", _values("float32"))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    folder = tmp_path / "work"
    with pytest.raises(AppError, match="truncated") as caught:
        mask_session(_session(path), mask, folder / "out.npy")
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert str(path) in str(caught.value)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("cut", [1, 8])
def test_missing_gzip_trailer_is_refused(tmp_path, mask, cut):
    path = _write(tmp_path / "b.nii.gz", _values("int16"))
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(AppError, match="truncated"):
        mask_session(_session(path), mask, tmp_path / "out.npy")


def test_flipped_byte_is_refused(tmp_path, mask):
    path = _write(tmp_path / "b.nii.gz", _values("float32"))
    raw = bytearray(path.read_bytes())
    raw[-6] ^= 0xFF  # in the checksum
    path.write_bytes(raw)
    with pytest.raises(AppError, match="damaged") as caught:
        mask_session(_session(path), mask, tmp_path / "out.npy")
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert not (tmp_path / "out.npy").exists()


def test_former_result_survives_a_failure(tmp_path, mask):
    good = _write(tmp_path / "good.nii.gz", _values("int16"))
    bad = _write(tmp_path / "bad.nii.gz", _values("int16", seed=2))
    bad.write_bytes(bad.read_bytes()[:-200])
    before = mask_session(_session(good), mask, tmp_path / "out.npy").copy()
    with pytest.raises(AppError):
        mask_session(_session(bad), mask, tmp_path / "out.npy")
    np.testing.assert_array_equal(open_rows(tmp_path / "out.npy"), before)


def test_wrong_counts_shapes_and_scales(tmp_path, mask):
    path = _write(tmp_path / "b.nii.gz", _values("int16"))
    cases = {
        "7 volumes, but .* 6 trials": (_session(path, n=6), "out1.npy"),
        "scale factor is 0": (_session(path, scale=0.0), "out2.npy"),
        "scale factor is nan": (_session(path, scale=float("nan")), "out3.npy"),
        "have the shape": (_session(_write(tmp_path / "c.nii.gz", _values("int16")[1:])), "out4.npy"),
    }
    for message, (session, name) in cases.items():
        with pytest.raises(AppError, match=message) as caught:
            mask_session(session, mask, tmp_path / name)
        assert caught.value.exit_code == ExitCode.BAD_DATA
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x1f\x8b", b"\x1f\x8bnot gzip at all" * 40, b"\0" * 400]
)
def test_files_that_are_not_nifti(tmp_path, mask, content):
    path = tmp_path / "b.nii.gz"
    path.write_bytes(content)
    with pytest.raises(AppError) as caught:
        mask_session(_session(path), mask, tmp_path / "out.npy")
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path, mask):
    with pytest.raises(AppError) as caught:
        mask_session(_session(tmp_path / "no.nii.gz"), mask, tmp_path / "out.npy")
    assert caught.value.exit_code == ExitCode.NO_INPUT


def test_header_that_declares_more_than_the_file_can_hold(tmp_path, mask):
    raw = bytearray(_write(tmp_path / "m.nii", np.ones(SHAPE, np.uint8)).read_bytes())
    raw[42:48] = struct.pack("<3h", 32767, 32767, 32767)
    for name, content in (("m.nii", bytes(raw)), ("m.nii.gz", gzip.compress(bytes(raw)))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AppError, match="can hold"):
            mask_session(_session(tmp_path / name), mask, tmp_path / "out.npy")


def test_unsupported_type(tmp_path, mask):
    path = _write(tmp_path / "b.nii.gz", _values("float32").astype(np.complex64))
    with pytest.raises(AppError, match="complex64"):
        mask_session(_session(path), mask, tmp_path / "out.npy")


def test_open_rows_refuses_other_arrays(tmp_path, mask):
    np.save(tmp_path / "x.npy", np.zeros((2, 2)))
    np.save(tmp_path / "o.npy", np.array([object()]), allow_pickle=True)
    path = _write(tmp_path / "b.nii.gz", _values("int16"))
    mask_session(_session(path), mask, tmp_path / "cut.npy")
    whole = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-10])
    for name in ("x.npy", "o.npy", "cut.npy"):
        with pytest.raises(AppError) as caught:
            open_rows(tmp_path / name)
        assert caught.value.exit_code == ExitCode.BAD_DATA
