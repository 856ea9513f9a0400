"""Every mutation of a good dataset is found, with its path and exit code, before computing."""

from __future__ import annotations

import gzip
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
from bidsapp.errors import AppError, ExitCode, InputProblems, Problem
from bidsapp.records import Split
from bidsapp.storage.nifti import displacement, read_header

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def pristine(tiny_dataset: Make) -> Path:
    return tiny_dataset(n_subjects=1)


@pytest.fixture
def tiny(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "bids"))


def _check(root: Path, **options: object) -> list[Problem]:
    dataset = open_dataset(root, InputSelection(**options))  # type: ignore[arg-type]
    stimuli = StimulusSet.open(root)
    seen = [s for u in dataset.subjects for session in u.sessions for s in session.stimulus_ids]
    split = make_split(stimuli, seen)
    return preflight.find_problems(dataset, stimuli, split)


def _one(root: Path, pattern: str) -> Path:
    return sorted(root.rglob(pattern))[0]


def _resave(path: Path, change: Callable[[nib.Nifti1Image], nib.Nifti1Image]) -> None:
    nib.save(change(nib.load(path)), path)


def test_a_good_dataset_has_no_problems_and_nothing_is_left(tiny: Path) -> None:
    before = sorted(tiny.parent.rglob("*"))
    assert _check(tiny) == []
    assert _check(tiny, roi=("V1", "hV4")) == []
    assert sorted(tiny.parent.rglob("*")) == before


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _flip_affine(path: Path) -> None:
    _resave(path, lambda i: nib.Nifti1Image(np.asarray(i.dataobj), i.affine @ np.diag([1, 1, 1.5, 1])))


def _complex(path: Path) -> None:
    _resave(path, lambda i: nib.Nifti1Image(np.asarray(i.dataobj).astype(np.complex64), i.affine))


def _crop(path: Path) -> None:
    _resave(path, lambda i: nib.Nifti1Image(np.asarray(i.dataobj)[:-1], i.affine))


def _empty(path: Path) -> None:
    _resave(path, lambda i: nib.Nifti1Image(-np.asarray(i.dataobj).astype(np.int16), i.affine))


def _declare_too_much(path: Path) -> None:
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[40:56] = np.array([4, 30000, 30000, 30000, 30000, 1, 1, 1], "<i2").tobytes()[:16]
    path.write_bytes(gzip.compress(bytes(raw)))


def _one_trial_less(path: Path) -> None:
    path.write_text("\n".join(path.read_text().rstrip("\n").split("\n")[:-1]) + "\n")


def _unknown_stimulus(path: Path) -> None:
    lines = path.read_text().split("\n")
    lines[1] = lines[1].rpartition("\t")[0] + "\tstim-nobody"
    path.write_text("\n".join(lines))


def _no_captions_of_pic000(path: Path) -> None:
    path.write_text("".join(line for line in path.open() if "pic000" not in line))


BETAS, MASK = "*ses-s2*statmap.nii.gz", "*nsdgeneral_mask.nii.gz"
MUTATIONS: dict[str, tuple[str, Callable[[Path], object], str, ExitCode]] = {
    "betas truncated": (BETAS, _truncate, "truncated or damaged", ExitCode.BAD_DATA),
    "betas empty": (BETAS, lambda p: p.write_bytes(b""), "truncated", ExitCode.BAD_DATA),
    "betas no gzip": (BETAS, lambda p: p.write_bytes(b"x" * 999), "not a NIfTI file", ExitCode.BAD_DATA),
    "betas complex": (BETAS, _complex, "data type complex64", ExitCode.BAD_DATA),
    "betas cropped": (BETAS, _crop, "shape is", ExitCode.BAD_DATA),
    "betas moved": (BETAS, _flip_affine, "affine differs", ExitCode.BAD_DATA),
    "betas bomb": (BETAS, _declare_too_much, "more than a file of", ExitCode.BAD_DATA),
    "betas dangling": (
        BETAS,
        lambda p: (p.unlink(), p.symlink_to("annex")),
        "datalad get",
        ExitCode.NO_INPUT,
    ),
    "mask cropped": (MASK, _crop, "ROI nsdgeneral: the volume's shape", ExitCode.BAD_DATA),
    "mask moved": (MASK, _flip_affine, "ROI nsdgeneral: its affine", ExitCode.BAD_DATA),
    "mask empty": (MASK, _empty, "No voxel of sub-01", ExitCode.BAD_DATA),
    "mask truncated": (MASK, _truncate, "truncated", ExitCode.BAD_DATA),
    "mask gone": (MASK, Path.unlink, "no ROI 'nsdgeneral'", ExitCode.NO_INPUT),
    "ceiling cropped": (
        "*noiseceiling_statmap.nii.gz",
        _crop,
        "noise ceiling: the volume",
        ExitCode.BAD_DATA,
    ),
    "trial missing": ("*ses-s2*trials.tsv", _one_trial_less, "lists 11 trials", ExitCode.BAD_DATA),
    "trials gone": ("*ses-s2*trials.tsv", Path.unlink, "No *_trials.tsv", ExitCode.NO_INPUT),
    "stimulus unknown": ("*ses-s2*trials.tsv", _unknown_stimulus, "not listed in", ExitCode.BAD_DATA),
    "image gone": ("stim-pic003_image.png", Path.unlink, "image file is missing", ExitCode.NO_INPUT),
    "caption gone": ("captions.tsv", _no_captions_of_pic000, "no caption: pic000", ExitCode.BAD_DATA),
    "captions gone": ("captions.tsv", Path.unlink, "12 stimuli have no caption", ExitCode.BAD_DATA),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutations(tiny: Path, name: str) -> None:
    pattern, mutate, words, code = MUTATIONS[name]
    mutate(_one(tiny, pattern))
    problems = _check(tiny)
    assert len(problems) == 1, problems
    assert words in problems[0].what
    assert problems[0].code == code
    assert problems[0].path.startswith(str(tiny))
    assert problems[0].fix.endswith(".")


def test_all_at_once(tiny: Path) -> None:
    for name in ("mask cropped", "trial missing", "image gone", "betas complex"):
        pattern, mutate, _, _ = MUTATIONS[name]
        mutate(_one(tiny, pattern))
    problems = _check(tiny)
    assert len(problems) == 3  # betas that can't be read have no number of volumes to compare
    with pytest.raises(InputProblems) as caught:
        raise InputProblems(problems)
    assert all(p.path in str(caught.value) for p in problems)


def test_the_split_is_checked(tiny: Path) -> None:
    dataset, stimuli = open_dataset(tiny), StimulusSet.open(tiny)
    for split, words in (
        (Split("x", (), ("pic000", "pic001")), "training set is empty"),
        (Split("x", ("pic004", "pic005"), ()), "test set is empty"),
        (Split("x", ("pic004", "pic005"), ("pic000",)), "test set has one stimulus"),
        (Split("x", ("pic004",), ("pic000", "pic001")), "training set has one stimulus"),
        (Split("x", ("pic000", "pic4"), ("pic000", "pic1")), "both the training and the test set: pic000"),
    ):
        for given in (split, {"01": split}):
            (problem,) = preflight.find_problems(dataset, stimuli, given)
            assert words in problem.what
    assert preflight.find_problems(dataset, stimuli, None) == []


def test_labels_that_collide(tiny: Path) -> None:
    for path in (_one(tiny, "stimuli.tsv"), _one(tiny, "captions.tsv"), *tiny.rglob("*trials.tsv")):
        path.write_text(
            path.read_text()
            .replace("stim-pic001\t", "stim-pic_000\t")
            .replace("stim-pic001\n", "stim-pic_000\n")
        )
    (problem,) = _check(tiny)
    assert "'pic000' and 'pic_000'" in problem.what


def test_gzip_of_several_members_is_no_truncation(tmp_path: Path) -> None:
    """Tools that compress in blocks write such files; their trailer has the last block's length."""
    raw = nib.Nifti1Image(np.zeros((5, 6, 7), np.float32), np.eye(4)).to_bytes()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(raw[:500]) + gzip.compress(raw[500:]))
    assert read_header(path).shape == (5, 6, 7)
    path.write_bytes(gzip.compress(raw[:500]) + gzip.compress(raw[500:-4]))
    with pytest.raises(AppError, match="truncated"):
        read_header(path)
    (tmp_path / "b.nii").write_bytes(raw[:-1])
    with pytest.raises(AppError, match="truncated"):
        read_header(tmp_path / "b.nii")


def test_displacement_is_in_voxels() -> None:
    a = np.diag([2.0, 2, 2, 1])
    b = a.copy()
    b[0, 3] = 1.0  # half a voxel
    assert displacement(a, b, (10, 10, 10)) == pytest.approx(0.5)
    c = a.copy()
    c[1, 1] = 2.2  # grows with distance: 9 voxels x 0.2 mm = 0.9 voxels
    assert displacement(a, c, (10, 10, 10)) == pytest.approx(0.9)
    assert displacement(a, a, (10, 10, 10)) == 0


@pytest.mark.parametrize("n_wrong", [1, 2])
def test_hdf5_betas_with_reversed_axes_are_named_once_each(tiny: Path, n_wrong: int) -> None:
    paths = sorted(tiny.glob("sub-01/ses-*/func/*_statmap.nii.gz"))
    for number, path in enumerate(paths):
        image = nib.load(path)
        values = np.asarray(image.dataobj)
        with h5py.File(path.with_name(path.name.replace(".nii.gz", ".hdf5")), "w") as file:
            file["betas"] = values if number < n_wrong else values.transpose()
        path.unlink()
    problems = _check(tiny)
    assert [p.path for p in problems] == [str(p).replace(".nii.gz", ".hdf5") for p in paths[:n_wrong]]
    for problem in problems:
        assert "order (x, y, z, trials)" in problem.what
        assert "(trials, z, y, x)" in problem.fix
