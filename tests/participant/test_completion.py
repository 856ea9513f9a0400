"""What a finished subject was computed from."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bidsapp.config import RunConfig, load_recipe
from bidsapp.models.suite import EMBEDDED
from bidsapp.participant.completion import mask_record
from bidsapp.planning.check import check_run


def test_a_segmentation_with_another_table_counts_as_changed(tmp_path: Path) -> None:
    image, table = tmp_path / "sub-01_dseg.nii.gz", tmp_path / "sub-01_dseg.tsv"
    image.write_bytes(b"an image")
    found = [mask_record(image)]
    for text in ("index\tname\n1\tV1\n", "index\tname\n11\tV1\n"):
        table.write_text(text)
        found.append(mask_record(image))
    assert found[0] != found[1] != found[2]
    assert mask_record(image) == found[2]


@pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded weights are not there")
def test_an_added_region_matters_with_the_option_that_decodes_it(tiny_dataset, tmp_path: Path) -> None:
    bids = tiny_dataset(n_subjects=1)
    config = RunConfig(
        bids,
        tmp_path / "out",
        tmp_path / "work",
        load_recipe("embedded"),
        device="cpu",
        skip_bids_validation=True,
    )
    with_regions = replace(config, roi_analysis=True)
    before = check_run(with_regions).region_files("01", with_regions)
    mask = next(path for path in before if path.name.endswith("_mask.nii.gz"))
    added = mask.with_name(re.sub("label-[^_]+", "label-another", mask.name))
    shutil.copy(mask, added)
    assert check_run(with_regions).region_files("01", with_regions) == sorted([*before, added])
    assert check_run(config).region_files("01", config) == []
