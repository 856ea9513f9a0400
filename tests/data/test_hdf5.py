"""HDF5 betas: the values of the NIfTI twin bit for bit, however they are stored, or a named error."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bidsapp.data import _hdf5_trials
from bidsapp.data.betas import iterate_trials, mask_session
from bidsapp.errors import AppError, ExitCode
from bidsapp.records import Mask, Session

AFFINE = np.diag([1.8, 1.8, 1.8, 1.0])


def _session(path: Path, n: int, scale: float = 300.0) -> Session:
    return Session("01", path, path.with_name("trials.tsv"), tuple(f"s{i}" for i in range(n)), scale)


def _nifti(path: Path, values: np.ndarray) -> Path:
    header = nib.Nifti1Header(endianness=">" if values.dtype.byteorder == ">" else "<")
    header.set_data_dtype(values.dtype)
    nib.save(nib.Nifti1Image(values, AFFINE, header), path)
    return path


def _hdf5(path: Path, values: np.ndarray, **how: object) -> Path:
    """Store (x, y, z, trials) as MATLAB does: for Python, the axes are reversed."""
    with h5py.File(path, "w") as file:
        file.create_dataset("betas", data=np.ascontiguousarray(values.transpose(3, 2, 1, 0)), **how)
    return path


@st.composite
def stored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, dict[str, object], int]:
    """Betas, mask, how they are stored, and the size of the blocks that they are read in."""
    shape = draw(st.tuples(*[st.integers(1, 6)] * 3))
    n = draw(st.integers(1, 7))
    dtype = np.dtype(draw(st.sampled_from(["i2", "u1", "i4", "f4", "f8"])))
    dtype = dtype.newbyteorder(draw(st.sampled_from("<>")))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    values = rng.normal(0, 90, (*shape, n)).astype(dtype)
    if dtype.kind == "f" and draw(st.booleans()):
        values[rng.random(values.shape) < 0.2] = draw(st.sampled_from([np.nan, np.inf, -0.0, 1e30]))
    inside = rng.random(shape) < draw(st.sampled_from([0.1, 0.5, 1.0]))
    inside.flat[rng.integers(inside.size)] = True
    how: dict[str, object] = {}
    if draw(st.booleans()):
        how["chunks"] = tuple(draw(st.integers(1, size)) for size in (n, *shape[::-1]))
        how |= draw(st.sampled_from([{}, {"compression": "gzip"}, {"compression": "lzf", "shuffle": True}]))
    return values, inside, how, draw(st.sampled_from([1, 20, 1 << 24]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=stored(), scale=st.sampled_from([1.0, 300.0, 0.7]))
def test_values_are_those_of_the_nifti_twin_bit_for_bit(tmp_path_factory, case, scale):
    values, inside, how, block = case
    folder = tmp_path_factory.mktemp("twins")
    mask, n = Mask(inside, AFFINE), values.shape[3]
    expected = np.stack([*iterate_trials(_session(_nifti(folder / "b.nii.gz", values), n, scale), mask)])
    twin = _session(_hdf5(folder / "b.hdf5", values, **how), n, scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_hdf5_trials, "_BLOCK", block)
        got = np.stack([*iterate_trials(twin, mask)])
        some = np.stack([*iterate_trials(twin, mask, 3)])
    assert (got.dtype, got.shape) == (expected.dtype, (n, int(inside.sum())))
    assert got.tobytes() == expected.tobytes()
    assert some.tobytes() == expected[:3].tobytes()


SHAPE, N = (5, 4, 3), 6


@pytest.fixture
def mask(tmp_path):
    return Mask(np.random.default_rng(1).random(SHAPE) < 0.5, AFFINE)


def test_masked_to_a_file_as_its_nifti_twin(tmp_path, mask):
    files = (
        _nifti(tmp_path / "b.nii.gz", _values()),
        _hdf5(tmp_path / "b.hdf5", _values(), chunks=(N, 1, 1, 1)),
    )
    one, other = (mask_session(_session(f, N), mask, tmp_path / f"{f.name}.npy") for f in files)
    assert one.tobytes() == other.tobytes()


def _values(dtype: str = "i2") -> np.ndarray:
    return np.random.default_rng(0).normal(0, 500, (*SHAPE, N)).astype(dtype)


def _refused(session: Session, mask: Mask, folder: Path) -> AppError:
    with pytest.raises(AppError) as caught:
        mask_session(session, mask, folder / "work" / "out.npy")
    assert str(session.betas) in str(caught.value)
    assert not list((folder / "work").glob("*"))
    return caught.value


def _write(path: Path, fill: Callable[[h5py.File], object]) -> None:
    with h5py.File(path, "w") as file:
        fill(file)


def _linked_file(file: h5py.File) -> None:
    other = Path(file.filename).with_name("other.hdf5")
    _hdf5(other, _values())
    file["betas"] = h5py.ExternalLink(str(other), "/betas")


def _external_storage(file: h5py.File) -> None:
    raw = Path(file.filename).with_name("raw.bin")
    raw.write_bytes(_values().tobytes())
    file.create_dataset("betas", (N, *SHAPE[::-1]), "i2", external=[(str(raw), 0, h5py.h5f.UNLIMITED)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((N, *SHAPE[::-1]), "i2")
    other = _hdf5(Path(file.filename).with_name("other.hdf5"), _values())
    layout[:] = h5py.VirtualSource(str(other), "betas", (N, *SHAPE[::-1]))
    file.create_virtual_dataset("betas", layout)


def _half_written(file: h5py.File) -> None:
    array = file.create_dataset("betas", (N, *SHAPE[::-1]), "i2", chunks=(N, 1, 1, 1), compression="gzip")
    array[:, :2] = 1


REFUSED: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "another name": (lambda f: f.create_dataset("data", data=[1]), "no array 'betas' .* it has 'data'"),
    "nothing": (lambda f: None, "it has nothing"),
    "a group": (lambda f: f.create_group("betas"), "a group 'betas'"),
    "a soft link": (lambda f: f.__setitem__("betas", h5py.SoftLink("/other")), "behind a link|no array"),
    "a linked file": (_linked_file, "behind a link"),
    "external storage": (_external_storage, "in other files"),
    "a virtual array": (_virtual, "in other files"),
    "three axes": (lambda f: f.create_dataset("betas", data=np.zeros((2, 3, 4))), "4 axes"),
    "a scalar": (lambda f: f.create_dataset("betas", data=1.0), "4 axes"),
    "no shape": (lambda f: f.create_dataset("betas", data=h5py.Empty("f4")), "4 axes"),
    "no trials": (lambda f: f.create_dataset("betas", (0, 3, 4, 5), "i2"), "4 axes"),
    "text": (lambda f: f.create_dataset("betas", data=np.full((N, 3, 4, 5), b"x")), "data type"),
    "complex": (lambda f: f.create_dataset("betas", data=np.zeros((N, 3, 4, 5), "c8")), "complex64"),
    "truth values": (lambda f: f.create_dataset("betas", data=np.zeros((N, 3, 4, 5), bool)), "data type"),
    "huge": (
        lambda f: f.create_dataset("betas", (1 << 40, 1 << 20, 4, 5), "i2", chunks=(9, 1, 1, 1)),
        "hold",
    ),
    "huge and deflated": (
        lambda f: f.create_dataset(
            "betas", (1 << 40, 3, 4, 5), "i2", chunks=(9, 1, 1, 1), compression="gzip"
        ),
        "can hold",
    ),
    "never written": (
        lambda f: f.create_dataset("betas", (N, 3, 4, 5), "i2", compression="gzip"),
        "incomplete",
    ),
    "half written": (_half_written, "incomplete"),
    "huge chunks": (
        lambda f: f.create_dataset("betas", (1 << 29, 1, 1, 1), "i2", chunks=(1 << 28, 1, 1, 1)),
        "in chunks of",
    ),
    "another shape": (lambda f: f.create_dataset("betas", data=np.zeros((N, 3, 4, 6))), "the mask has"),
    "axes not reversed": (
        lambda f: f.create_dataset("betas", data=np.zeros((*SHAPE, N))),
        r"order \(x, y, z, trials\)",
    ),
    "a trial more": (lambda f: f.create_dataset("betas", data=np.zeros((N + 1, 3, 4, 5))), "lists 6 trials"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path, mask, name):
    fill, words = REFUSED[name]
    path = tmp_path / "b.hdf5"
    _write(path, fill)
    error = _refused(_session(path, N), mask, tmp_path)
    assert error.exit_code == ExitCode.BAD_DATA
    assert re.search(words, str(error)), str(error)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, mask, keep):
    path = _hdf5(tmp_path / "b.hdf5", _values("f8"), chunks=(N, 1, 1, 1))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    assert _refused(_session(path, N), mask, tmp_path).exit_code == ExitCode.BAD_DATA


# The same examples always: what a damaged file does inside the HDF5 library is not ours to explore by chance.
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_damaged_bytes_are_read_or_refused_by_name(tmp_path, mask, data):
    how = data.draw(
        st.sampled_from([{}, {"chunks": (2, 1, 2, 5), "compression": "gzip", "fletcher32": True}])
    )
    path = _hdf5(tmp_path / "b.hdf5", _values(), **how)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        shape, words = mask_session(_session(path, N), mask, tmp_path / "out.npy").shape, ""
    except AppError as error:
        shape, words = None, str(error)
    assert shape == (N, mask.n_voxels) or str(path) in words


def test_a_flipped_byte_under_a_checksum_is_refused(tmp_path, mask):
    values = _values()
    path = _hdf5(tmp_path / "b.hdf5", values, chunks=(N, *SHAPE[::-1]), fletcher32=True)
    raw = bytearray(path.read_bytes())
    at = raw.index(np.ascontiguousarray(values.transpose(3, 2, 1, 0)).tobytes()[:64])
    raw[at] ^= 1
    path.write_bytes(raw)
    assert "cannot be read" in str(_refused(_session(path, N), mask, tmp_path))


def test_missing_files_and_files_that_are_not_hdf5(tmp_path, mask):
    path = tmp_path / "b.hdf5"
    assert _refused(_session(path, N), mask, tmp_path).exit_code == ExitCode.NO_INPUT
    path.symlink_to("annex")
    assert "datalad get" in str(_refused(_session(path, N), mask, tmp_path))
    path.unlink()
    for content in (b"", b"hello" * 100, b"\x89HDF\r\n\x1a\n" + b"\0" * 2000):
        path.write_bytes(content)
        assert "HDF5" in str(_refused(_session(path, N), mask, tmp_path))


@pytest.mark.parametrize("scale", [0.0, float("nan")])
def test_the_scale_is_checked(tmp_path, mask, scale):
    path = _hdf5(tmp_path / "b.hdf5", _values())
    assert "scale factor" in str(_refused(_session(path, N, scale), mask, tmp_path))
