"""The voxels chosen: the union of the ROIs, above a minimum noise ceiling."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp.bids import preflight
from bidsapp.bids._rois import Roi
from bidsapp.bids.inputs import Dataset, InputSelection, open_dataset
from bidsapp.bids.voxels import choose_voxels
from bidsapp.errors import AppError, ExitCode
from bidsapp.records import Mask

CEILING = "sub-01/func/sub-01_task-tiny_space-func3mm_desc-noiseceiling_statmap.nii.gz"


@pytest.fixture
def bids(tiny_dataset: Callable[..., Path]) -> Path:
    """One subject whose noise ceilings run from 0 to 100 %, with NaN, and -1 outside."""
    root = tiny_dataset(n_subjects=1)
    image = nib.load(root / CEILING)
    values = np.linspace(-1, 99.9, np.prod(image.shape)).reshape(image.shape).astype(np.float32)
    values[3, 3] = np.nan
    nib.save(nib.Nifti1Image(values, image.affine), root / CEILING)
    return root


def _labels(root: Path) -> np.ndarray:
    return np.asarray(nib.load(next(root.rglob("*seg-visualrois_dseg.nii.gz"))).dataobj)


@pytest.mark.parametrize("minimum", [None, 0.0, 42.5, 80.0])
def test_union_above_a_noise_ceiling(bids: Path, minimum: float | None) -> None:
    labels, ceiling = _labels(bids), np.asarray(nib.load(bids / CEILING).dataobj)
    region = (labels == 1) | (labels == 2) | (labels == 3)
    expected = region if minimum is None else region & ~np.isnan(ceiling) & (ceiling >= minimum)
    dataset = open_dataset(bids, InputSelection(roi=("V1", "hV4", "nsdgeneral")))
    mask = choose_voxels(dataset, "01", minimum)
    assert (mask.n_roi, mask.n_voxels) == (region.sum(), expected.sum())
    assert np.array_equal(mask.inside, expected)
    assert np.array_equal(mask.affine, nib.load(bids / CEILING).affine)
    assert np.array_equal(mask.flat_index, np.flatnonzero(expected.ravel(order="F")))
    assert preflight.find_problems(dataset, None, None, min_noise_ceiling=minimum) == []


def _problem(root: Path, minimum: float = 20.0) -> preflight.Problem:
    (problem,) = preflight.find_problems(open_dataset(root), None, None, min_noise_ceiling=minimum)
    assert problem.subject == "01"
    assert problem.fix
    return problem


def test_no_voxel_reaches_it(bids: Path) -> None:
    problem = _problem(bids, 100.0)
    assert problem.path == str(bids / CEILING)
    n = (_labels(bids) > 0).sum()
    assert f"None of the {n} voxels" in problem.what


def test_without_a_map(bids: Path) -> None:
    (bids / CEILING).unlink()
    problem = _problem(bids)
    assert problem.code == ExitCode.NO_INPUT
    assert "no noise-ceiling map" in problem.what
    assert preflight.find_problems(open_dataset(bids), None, None) == []


def test_shares_are_not_taken_for_percent(bids: Path) -> None:
    sidecar = bids / CEILING.replace(".nii.gz", ".json")
    image = nib.load(bids / CEILING)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) / 100, image.affine), bids / CEILING)
    assert "voxels of the ROI" in _problem(bids).what  # the sidecar says percent, so it is
    sidecar.write_text(json.dumps({}))
    assert "seems to hold fractions" in _problem(bids).what
    sidecar.write_text(json.dumps({"Units": "arbitrary"}))
    assert "'arbitrary'" in _problem(bids).what


SHAPE, AFFINE = (5, 6, 4), np.diag([1.8, 1.8, 1.8, 1.0])


def _roi(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Roi:
    nib.save(nib.Nifti1Image(values, affine), path)
    return Roi(path)


def _choose(*rois: Roi) -> Mask:
    return choose_voxels(
        Dataset(Path(), "", (), rois={"01": {str(i): roi for i, roi in enumerate(rois)}}), "01"
    )


def test_a_roi_is_where_its_image_is_above_zero(tmp_path: Path) -> None:
    a = np.full(SHAPE, -1, np.float32)
    a[1, 2, 3], a[0, 0, 0], a[4, 5, 0] = 2, 0, np.nan
    b = np.zeros(SHAPE, np.float32)
    b[4, 5, 3] = 0.5
    mask = _choose(_roi(tmp_path / "a.nii.gz", a), _roi(tmp_path / "b.nii", b))
    assert (mask.n_voxels, mask.n_roi, mask.shape) == (2, 2, SHAPE)
    assert {tuple(map(int, v)) for v in np.argwhere(mask.inside)} == {(1, 2, 3), (4, 5, 3)}
    np.testing.assert_allclose(mask.affine, AFFINE, rtol=1e-6)
    np.testing.assert_array_equal(np.unravel_index(mask.flat_index[0], SHAPE, order="F"), (1, 2, 3))
    volume = mask.to_volume([5.0, 6.0], fill=0)
    assert (volume[1, 2, 3], volume[4, 5, 3], volume.sum()) == (5, 6, 11)
    assert np.argwhere(mask.subset(np.array([False, True])).inside).tolist() == [[4, 5, 3]]


def test_rois_that_cannot_be_used_together(tmp_path: Path) -> None:
    ones = _roi(tmp_path / "ones.nii.gz", np.ones(SHAPE, np.uint8))
    for message, roi in {
        "the shape": _roi(tmp_path / "other.nii.gz", np.ones((4, 4, 4), np.uint8)),
        "different grids": _roi(tmp_path / "moved.nii.gz", np.ones(SHAPE, np.uint8), AFFINE * 2),
        "must be 3-D": _roi(tmp_path / "four.nii.gz", np.ones((*SHAPE, 2), np.uint8)),
    }.items():
        with pytest.raises(AppError, match=message) as caught:
            _choose(ones, roi)
        assert caught.value.exit_code == ExitCode.BAD_DATA
    with pytest.raises(AppError) as caught:
        _choose(Roi(tmp_path / "no.nii.gz"))
    assert caught.value.exit_code == ExitCode.NO_INPUT
