"""Regions that are decoded one at a time: those chosen, or all that a dataset has."""

from __future__ import annotations

import shutil

import nibabel as nib
import numpy as np
import pytest

from bidsapp.analyses.regions import voxels_of
from bidsapp.bids.inputs import InputSelection, open_dataset
from bidsapp.bids.regions import region_masks

SHAPE = (8, 9, 7)


@pytest.fixture(scope="module")
def bids(tiny_dataset):
    return tiny_dataset(n_subjects=1)


def labels(bids) -> np.ndarray:
    return np.asarray(nib.load(next(bids.rglob("*_dseg.nii.gz"))).dataobj)


def test_all_masks_segmentations_and_labels(bids):
    found = region_masks(open_dataset(bids), "01", SHAPE)
    values = labels(bids)
    expected = {
        "nsdgeneral": values > 0,
        "visualrois": values > 0,  # as in NSD, -1 is outside
        "V1": np.isin(values, (1, 2)),
        "hV4": values == 3,
    }
    assert found.keys() == expected.keys()
    for name, inside in expected.items():
        np.testing.assert_array_equal(found[name], inside)


def test_several_that_were_chosen_are_the_regions(bids):
    found = region_masks(open_dataset(bids, InputSelection(roi=["V1v", "hV4"])), "01", SHAPE)
    assert list(found) == ["V1v", "hV4"]
    np.testing.assert_array_equal(found["V1v"], labels(bids) == 1)


def test_regions_of_a_further_dataset(bids, tmp_path):
    shutil.copytree(bids, tmp_path / "more")
    found = region_masks(
        open_dataset(bids, InputSelection(derivatives={"more": tmp_path / "more"})), "01", SHAPE
    )
    assert {"hV4", "more:hV4"} <= found.keys()
    np.testing.assert_array_equal(found["hV4"], found["more:hV4"])


def test_other_grids_and_damaged_tables_are_left_out(bids, tmp_path, caplog):
    shutil.copytree(bids, tmp_path / "bids")
    table = next((tmp_path / "bids").rglob("*_dseg.tsv"))
    table.write_text("index\tname\none\tV1v\n")
    dataset = open_dataset(tmp_path / "bids")
    assert region_masks(dataset, "01", SHAPE).keys() == {"nsdgeneral", "visualrois"}
    assert "labels of visualrois are left out" in caplog.text
    assert region_masks(dataset, "01", (8, 9, 8)) == {}


def test_voxels_of_regions_among_those_decoded():
    volume = np.zeros((2, 2, 2), bool)
    volume[1, 0, 0] = volume[1, 1, 1] = True
    flat = np.array([1, 2, 7])  # places in Fortran order: (1, 0, 0), (0, 1, 0), (1, 1, 1)
    regions = {"a": volume, "b": volume.copy(), "none": volume & False, "whole": volume | True}
    found = voxels_of(regions, flat)
    assert list(found) == ["a"]
    assert found["a"].tolist() == [True, False, True]
