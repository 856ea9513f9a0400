"""The index agrees with pybids on entities and on inherited metadata, and reads awkward trees."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from bids.layout import BIDSLayout

from bidsapp.bids._index import build_index, entities_of


@pytest.fixture
def tiny(tiny_dataset: Callable[..., Path]) -> Path:
    return tiny_dataset()


#: An entity of statistical maps, which pybids does not know.
STAT = {"name": "stat", "entities": [{"name": "stat", "pattern": r"[_/\\]stat-([a-zA-Z0-9+]+)_"}]}
SIDECARS = {
    "stat-effect_statmap.json": {"ScaleFactor": 1, "Units": "root"},
    "sub-01/sub-01_stat-effect_statmap.json": {"Units": "subject"},
    "sub-01/ses-s1/func/sub-01_ses-s1_desc-other_statmap.json": {"Units": "of another file"},
    "task-tiny_mask.json": {"Type": "ROI"},
}


def test_entities_and_metadata_are_those_of_pybids(tiny: Path) -> None:
    for name, content in SIDECARS.items():
        (tiny / name).write_text(json.dumps(content))
    index = build_index(tiny)
    layout = BIDSLayout(tiny, validate=False, config=["bids", "derivatives", STAT])
    theirs = {Path(file.path): file for file in layout.get(extension=[".nii.gz", ".tsv"])}
    compared = 0
    for file in index.files:
        other = theirs.get(file.path)
        if other is None or not file.get("subject"):
            continue
        known = {name: str(value) for name, value in other.get_entities().items()}
        for name in (
            "subject",
            "session",
            "task",
            "space",
            "label",
            "desc",
            "stat",
            "suffix",
            "extension",
            "datatype",
        ):
            assert file.get(name) == known.get(name, ""), (file.path, name)
        if file.get("suffix") in ("statmap", "mask"):
            assert index.metadata(file) == other.get_metadata(), file.path
            compared += 1
    assert compared >= 4


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "sub-01_ses-2_task-x_stat-effect_statmap.nii.gz": {
            "subject": "01",
            "session": "2",
            "task": "x",
            "stat": "effect",
            "suffix": "statmap",
            "extension": ".nii.gz",
        },
        "sub-01_label-FFA-1_mask.nii": {
            "subject": "01",
            "label": "FFA-1",
            "suffix": "mask",
            "extension": ".nii",
        },
        "sub-a+b_run-01_run-02_x.tsv": {"subject": "a+b", "run": "01", "suffix": "x", "extension": ".tsv"},
        "sub-a_b_task-x y_unknown-1_-_trials.tsv": {"subject": "a", "suffix": "trials", "extension": ".tsv"},
        "sub-01_mask": {"subject": "01"},
        "README": {},
    }.items(),
)
def test_entities_of(name: str, expected: dict[str, str]) -> None:
    assert entities_of(Path("sub-01/rois") / name) == expected
    assert entities_of(Path("sub-01/func") / name) == expected | {"datatype": "func"}


def test_a_subject_folder_that_links_to_the_root_is_not_followed(tiny: Path) -> None:
    before = [file.path for file in build_index(tiny).files]
    (tiny / "sub-09").symlink_to("/", target_is_directory=True)
    (tiny / "sub-08").symlink_to(tiny.parent, target_is_directory=True)
    assert [file.path for file in build_index(tiny).files] == before
