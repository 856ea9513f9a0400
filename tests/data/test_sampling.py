"""Sessions that are NaN or never change are found early, and named when they are masked."""

from __future__ import annotations

from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from bidsapp.data.betas import SessionCheck, mask_session
from bidsapp.data.sampling import N_SAMPLED, check_magnitudes, sample_session
from bidsapp.errors import AppError, ExitCode
from bidsapp.records import Mask, Session

SHAPE, N = (4, 5, 3), 8
INSIDE = np.random.default_rng(1).random(SHAPE) < 0.5
MASK = Mask(INSIDE, np.eye(4))


def session(folder: Path, betas: np.ndarray, ids: tuple[str, ...] | None = None) -> Session:
    path = folder / "betas.nii.gz"
    nib.save(nib.Nifti1Image(betas.astype(np.float32), np.eye(4)), path)
    return Session("01", path, folder / "trials.tsv", ids or tuple(f"s{i}" for i in range(N)))


def masked(found: Session, folder: Path) -> np.ndarray:
    return np.asarray(mask_session(found, MASK, folder / "out.npy"))


def betas() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((*SHAPE, N))


@pytest.mark.parametrize(
    ("trials", "voxels", "early", "words"),
    [
        (slice(None), np.nan, True, "All 3 trials are NaN|All 8 trials are NaN"),
        (slice(None), np.inf, True, "All 3 trials are NaN|All 8 trials are NaN"),
        (slice(1, 2), np.nan, True, r"1 trial \(1\) is NaN"),
        (slice(N_SAMPLED, N), np.nan, False, r"5 trials \(counted from 0: 3, 4, 5, 6, 7\) are NaN"),
        (slice(None), 0.0, True, "the same value in all"),
        (slice(None), 7.0, True, "the same value in all"),
    ],
)
def test_faults(tmp_path: Path, trials: slice, voxels: float, early: bool, words: str) -> None:
    values = betas()
    values[..., trials] = voxels
    found = session(tmp_path, values)
    problems = sample_session(found, MASK)[0]
    assert len(problems) == early
    for problem in problems:
        assert problem.path == str(found.betas)
        assert f"The first {N_SAMPLED} of its 8 trials" in problem.what
    with pytest.raises(AppError, match=words) as caught:
        masked(found, tmp_path)
    assert str(found.betas) in str(caught.value)
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert not list(tmp_path.glob("*.npy"))


def test_a_repeated_volume_is_constant(tmp_path: Path) -> None:
    values = np.repeat(betas()[..., :1], N, axis=3)
    (problem,) = sample_session(session(tmp_path, values), MASK)[0]
    assert "the same value in all 3 trials" in problem.what


def test_some_bad_voxels_are_accepted(tmp_path: Path) -> None:
    values = betas()
    values[:2] = np.nan
    values[2] = 0
    found = session(tmp_path, values)
    assert sample_session(found, MASK)[0] == []
    assert np.array_equal(masked(found, tmp_path).shape, (N, INSIDE.sum()))


def test_anything_is_accepted_outside_the_region(tmp_path: Path) -> None:
    values = betas()
    values[~INSIDE] = np.nan
    assert sample_session(session(tmp_path, values), MASK)[0] == []


def test_trials_without_a_stimulus_are_not_checked(tmp_path: Path) -> None:
    values = betas()
    values[..., 1] = np.nan
    ids = tuple("" if i == 1 else f"s{i}" for i in range(N))
    found = session(tmp_path, values, ids)
    assert sample_session(found, MASK)[0] == []
    assert np.isnan(masked(found, tmp_path)[1]).all()


@pytest.mark.parametrize("bad", [False, True])
def test_few_voxels_of_hdf5_files_are_read(tmp_path: Path, bad: bool) -> None:
    shape, n = (9, 10, 11), 6
    values = np.random.default_rng(2).integers(1, 999, (n, *shape[::-1])).astype(np.int16)
    path = tmp_path / "betas_session01.hdf5"
    with h5py.File(path, "w") as file:
        file.create_dataset("betas", data=values * (not bad), chunks=(n, 1, 1, 1))
    found = Session("01", path, tmp_path / "trials.tsv", tuple(f"s{i}" for i in range(n)))
    problems = sample_session(found, Mask(np.ones(shape, np.bool_), np.eye(4)))[0]
    assert len(problems) == bad
    for problem in problems:
        assert "the same value in all 3 trials" in problem.what
        assert "of 990 voxels" in problem.what


def test_one_trial_cannot_vary() -> None:
    contents = SessionCheck(("a",))
    contents.add(np.zeros(3, np.float32))
    assert contents.fault() == ""


def test_a_voxel_that_is_known_in_one_trial_only_does_not_vary() -> None:
    contents = SessionCheck(("a", "b"))
    contents.add(np.array([1, np.nan], np.float32))
    contents.add(np.array([1, 5], np.float32))
    assert "the same value" in contents.fault()


def test_damaged_files_are_reported(tmp_path: Path) -> None:
    found = session(tmp_path, betas())
    found.betas.write_bytes(found.betas.read_bytes()[:100])
    (problem,) = sample_session(found, MASK)[0]
    assert problem.path == str(found.betas)


def test_the_magnitude_ignores_zeros(tmp_path: Path) -> None:
    values = np.zeros((*SHAPE, N))
    values[..., : N_SAMPLED - 1] = np.where(np.arange(SHAPE[2]) > 0, 2.0, np.nan)[:, None]
    values[..., N_SAMPLED:] = 1000
    problems, magnitude = sample_session(session(tmp_path, values), MASK)
    assert problems == []
    assert magnitude == 2


@pytest.mark.parametrize(
    ("magnitudes", "odd"),
    [
        ([1.0, 2.0, 0.5], []),
        ([1.0, 1 / 300, 0.7], [1]),
        ([300.0, 1.0], [0]),
        ([1.0, 300.0], [1]),
        ([np.nan, 1.0, 300.0, 1.2], [2]),
        ([np.nan], []),
        ([1.0, 25.0, 0.04], []),
        ([], []),
    ],
)
def test_sessions_of_another_scale(magnitudes: list[float], odd: list[int]) -> None:
    sessions = [Session(str(i), Path(f"{i}.nii.gz"), Path("t.tsv"), ("a",)) for i in range(len(magnitudes))]
    assert [p.path for p in check_magnitudes(sessions, magnitudes)] == [f"{i}.nii.gz" for i in odd]
