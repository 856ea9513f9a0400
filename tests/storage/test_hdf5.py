"""Datasets whose betas are HDF5: found, checked before computing, and chosen between twins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from bidsapp.bids import preflight
from bidsapp.bids.inputs import InputSelection, open_dataset
from bidsapp.data.splits import make_split
from bidsapp.data.stimuli import StimulusSet
from bidsapp.errors import Problem

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def pristine(tiny_dataset: Make) -> Path:
    return tiny_dataset(n_subjects=1)


@pytest.fixture
def tiny(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "bids"))


def _as_hdf5(root: Path, pattern: str = "*stat-effect*.nii.gz", *, keep: bool = False) -> list[Path]:
    """Store betas as NSD's HDF5 files do."""
    made = []
    for path in sorted(root.rglob(pattern)):
        values = np.asarray(nib.load(path).dataobj.get_unscaled())
        made.append(path.with_name(path.name.replace(".nii.gz", ".hdf5")))
        with h5py.File(made[-1], "w") as file:
            file.create_dataset("betas", data=values.transpose(3, 2, 1, 0), chunks=(len(values.T), 1, 1, 1))
        if not keep:
            path.unlink()
    return made


def _check(root: Path) -> list[Problem]:
    dataset, stimuli = open_dataset(root), StimulusSet.open(root)
    seen = [s for u in dataset.subjects for session in u.sessions for s in session.stimulus_ids]
    return preflight.find_problems(dataset, stimuli, make_split(stimuli, seen))


def test_they_are_found_with_their_sidecars_and_trials(
    tiny: Path, validate: Callable[[Path], list[str]]
) -> None:
    before = open_dataset(tiny).subjects[0].sessions
    made = _as_hdf5(tiny)
    after = open_dataset(tiny).subjects[0].sessions
    assert [s.betas for s in after] == made
    assert [(s.label, s.trials, s.stimulus_ids, s.scale) for s in after] == [
        (s.label, s.trials, s.stimulus_ids, s.scale) for s in before
    ]
    assert _check(tiny) == []
    assert validate(tiny) == []


def test_of_twins_the_nifti_is_taken_unless_asked_otherwise(tiny: Path, tmp_path: Path) -> None:
    made = _as_hdf5(tiny, keep=True)
    assert _check(tiny) == []
    assert [s.betas.suffix for s in open_dataset(tiny).subjects[0].sessions] == [".gz", ".gz"]
    filters = tmp_path / "filters.json"
    filters.write_text(json.dumps({"betas": {"extension": ".hdf5"}}))
    assert [s.betas for s in open_dataset(tiny, InputSelection(filters=filters)).subjects[0].sessions] == made
    made[0].rename(made[0].with_name(made[0].name.replace("desc-singletrial", "desc-singletrialother")))
    assert ["Several files could be the betas" in p.what for p in _check(tiny)] == [True]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _replace(path: Path, values: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["betas"] = values


def _shape(path: Path) -> tuple[int, ...]:
    with h5py.File(path) as file:
        shape: tuple[int, ...] = file["betas"].shape
    return shape


MUTATIONS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (_truncate, "not a readable HDF5 file, or is truncated"),
    "empty": (lambda p: p.write_bytes(b""), "not a readable HDF5"),
    "gone": (lambda p: (p.unlink(), p.symlink_to("annex")), "datalad get"),
    "a trial less": (lambda p: _replace(p, np.ones(_shape(p), "i2")[:-1]), "Holds 11 volumes, but"),
    "cropped": (lambda p: _replace(p, np.ones(_shape(p), "i2")[:, :-1]), "the volume's shape is"),
    "axes not reversed": (lambda p: _replace(p, np.ones(_shape(p)[::-1], "i2")), "(x, y, z, trials)"),
    "3-D": (lambda p: _replace(p, np.ones((3, 4, 5), "i2")), "4 axes"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_wrong_is_said_before_computing(tiny: Path, name: str) -> None:
    mutate, words = MUTATIONS[name]
    path = _as_hdf5(tiny)[-1]
    mutate(path)
    problems = [p for p in _check(tiny) if p.path == str(path)]
    assert any(words in p.what for p in problems), problems


def test_a_mask_of_another_shape_is_said(tiny: Path) -> None:
    _as_hdf5(tiny)
    mask = next(tiny.rglob("*nsdgeneral_mask.nii.gz"))
    image = nib.load(mask)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), mask)
    (problem,) = _check(tiny)
    assert "ROI nsdgeneral: the volume's shape" in problem.what
    assert ".hdf5" in problem.what


@pytest.mark.parametrize("moved", ["*nsdgeneral_mask.nii.gz", "*noiseceiling_statmap.nii.gz"])
def test_without_an_affine_the_other_images_must_agree_among_themselves(tiny: Path, moved: str) -> None:
    _as_hdf5(tiny)
    path = next(tiny.rglob(moved))
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([1, 1, 1.5, 1])), path)
    (problem,) = _check(tiny)
    assert "noise ceiling: its affine differs" in problem.what
    assert "nsdgeneral_mask" in problem.what


def test_one_session_in_hdf5_is_compared_with_those_in_nifti(tiny: Path) -> None:
    _as_hdf5(tiny, "*ses-s1*stat-effect*.nii.gz")
    assert _check(tiny) == []
    path = next(tiny.rglob("*ses-s2*stat-effect*.nii.gz"))
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), path)
    assert any("shape" in p.what for p in _check(tiny))
