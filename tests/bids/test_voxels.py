"""The voxels chosen: union of ROIs, and a smallest noise ceiling, as both rooms read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp.bids import preflight
from bidsapp.bids.inputs import mask_files, open_dataset
from bidsapp.bids.voxels import chosen_voxels
from bidsapp.data.betas import load_mask
from bidsapp.data.selection import keep_reliable
from bidsapp.errors import AppError, ExitCode

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
def test_both_rooms_choose_the_same_voxels(bids: Path, tmp_path: Path, minimum: float | None) -> None:
    labels, ceiling = _labels(bids), np.asarray(nib.load(bids / CEILING).dataobj)
    region = (labels == 1) | (labels == 2) | (labels == 3)
    expected = region if minimum is None else region & ~np.isnan(ceiling) & (ceiling >= minimum)
    dataset = open_dataset(bids, roi=("V1", "hV4", "nsdgeneral"))
    found = chosen_voxels(dataset, "01", minimum)
    assert (found.n_roi, found.n) == (region.sum(), expected.sum())
    assert np.array_equal(found.inside, expected)
    mask = load_mask(mask_files(dataset, "01", tmp_path))
    if minimum is not None:
        mask = keep_reliable(mask, bids / CEILING, minimum)
    assert np.array_equal(mask.data, expected)
    assert np.array_equal(mask.flat_index, np.flatnonzero(expected.ravel(order="F")))
    assert preflight.check(dataset, None, None, min_noise_ceiling=minimum) == []


def _problem(root: Path, minimum: float = 20.0) -> preflight.Problem:
    (problem,) = preflight.check(open_dataset(root), None, None, min_noise_ceiling=minimum)
    assert problem.subject == "01"
    assert problem.mend
    return problem


def test_no_voxel_reaches_it(bids: Path, tmp_path: Path) -> None:
    problem = _problem(bids, 100.0)
    assert problem.path == str(bids / CEILING)
    n = (_labels(bids) > 0).sum()
    assert f"None of the {n} voxels" in problem.what
    mask = load_mask({"all": next(bids.rglob("*nsdgeneral_mask.nii.gz"))})
    with pytest.raises(AppError, match="None of the") as caught:
        keep_reliable(mask, bids / CEILING, 100.0)
    assert caught.value.exit_code == ExitCode.BAD_DATA


def test_without_a_map(bids: Path) -> None:
    (bids / CEILING).unlink()
    problem = _problem(bids)
    assert problem.code == ExitCode.NO_INPUT
    assert "no noise-ceiling map" in problem.what
    assert preflight.check(open_dataset(bids), None, None) == []


def test_shares_are_not_taken_for_percent(bids: Path) -> None:
    sidecar = bids / CEILING.replace(".nii.gz", ".json")
    image = nib.load(bids / CEILING)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) / 100, image.affine), bids / CEILING)
    assert "voxels of the ROI" in _problem(bids).what  # the sidecar says percent, so it is
    sidecar.write_text(json.dumps({}))
    assert "seems to hold shares" in _problem(bids).what
    sidecar.write_text(json.dumps({"Units": "arbitrary"}))
    assert "'arbitrary'" in _problem(bids).what
