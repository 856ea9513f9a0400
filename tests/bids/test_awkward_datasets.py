"""Datasets as people have them: labels with hyphens, partial clones, tables from editors, odd paths."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from bidsapp.bids import validator
from bidsapp.bids.descriptions import update_participants
from bidsapp.bids.folders import check_folders
from bidsapp.bids.inputs import InputSelection, open_dataset
from bidsapp.bids.outputs import OutputTree
from bidsapp.errors import AppError, ExitCode, InputProblems


@pytest.fixture
def tiny(tiny_dataset: Callable[..., Path]) -> Path:
    return tiny_dataset()


def rename(root: Path, old: str, new: str) -> None:
    """Give another label in the names of all folders and files."""
    for path in sorted(root.rglob(f"*{old}*"), key=lambda p: -len(p.parts)):
        path.rename(path.with_name(path.name.replace(old, new)))


@pytest.mark.parametrize("label", ["NSD-01", "A_01", "pilot 1", "é1"])
def test_a_label_that_bids_does_not_allow_is_named(tiny: Path, label: str) -> None:
    shutil.rmtree(tiny / "sub-02")
    rename(tiny, "sub-01", f"sub-{label}")
    with pytest.raises(AppError, match=f"sub-{label}") as caught:
        open_dataset(tiny)
    assert caught.value.exit_code == ExitCode.INVALID_BIDS


def test_a_bad_label_next_to_a_good_one(tiny: Path) -> None:
    rename(tiny, "sub-01", "sub-NSD-01")
    dataset = open_dataset(tiny)
    assert [subject.label for subject in dataset.subjects] == ["02"]
    assert {problem.code for problem in dataset.problems} == {ExitCode.INVALID_BIDS}
    assert all("sub-NSD-01" in problem.path for problem in dataset.problems)
    assert open_dataset(tiny, InputSelection(participants=["02"])).problems == ()


def test_two_people_are_not_merged_into_one_subject(tiny: Path) -> None:
    rename(tiny, "sub-01", "sub-A_01")
    rename(tiny, "sub-02", "sub-A_02")
    with pytest.raises(AppError) as caught:
        open_dataset(tiny)
    assert caught.value.exit_code == ExitCode.INVALID_BIDS
    assert "sub-A_01" in str(caught.value)
    assert "sub-A_02" in str(caught.value)


def test_a_name_and_its_folders_must_agree(tiny: Path) -> None:
    rename(tiny, "ses-s1", "ses-pre-1")  # a hyphen in the session
    problems = open_dataset(tiny).problems
    assert any("ses-pre-1" in problem.path for problem in problems)
    assert all(problem.code == ExitCode.INVALID_BIDS for problem in problems if "ses-pre-1" in problem.path)


def test_plus_in_labels(tiny: Path, tmp_path: Path) -> None:
    """BIDS allows + in labels from version 1.10 on."""
    rename(tiny, "sub-01", "sub-a+b")
    dataset = open_dataset(tiny, InputSelection(participants=["a+b"]))
    assert dataset.problems == ()
    tree = OutputTree(tmp_path, "a+b", "x+y", "T1w")
    assert tree.path("metrics").name == "sub-a+b_task-x+y_desc-recon_metrics.tsv"
    with pytest.raises(ValueError, match="subject"):
        OutputTree(tmp_path, "a-b", "", "").path("metrics")


def fake_validator(folder: Path, *places: str) -> None:
    """A program that reports an error for each place, as the validator does."""
    issues = [{"code": "EMPTY_FILE", "severity": "error", "location": place} for place in places]
    path = folder / "bids-validator-deno"
    path.write_text("#!/bin/sh\ncat <<'X'\n" + json.dumps({"issues": {"issues": issues}}) + "\nX\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_errors_of_subjects_that_were_not_requested_do_not_count(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A DataLad clone of which only sub-01 was fetched."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(validator.sys, "executable", str(folder / "python"))
    fake_validator(folder, "/sub-02/func/x.nii.gz", "/sub-02/ses-s1/func/y.nii.gz")
    assert validator.validate_input(tiny, ["01"])
    assert validator.validate_input(tiny, ["sub-01"])
    for wanted in ([], ["02"], ["01", "sub-02"]):
        with pytest.raises(InputProblems, match="sub-02"):
            validator.validate_input(tiny, wanted)
    fake_validator(folder, "/dataset_description.json")
    with pytest.raises(InputProblems):
        validator.validate_input(tiny, ["01"])


@pytest.mark.parametrize(
    "content",
    [
        b"participant_id\tage\tsex\nsub-01\t30\n",
        b"participant_id\tcity\nsub-01\tK\xf6ln\n",
        b"participant_id\tage\tage\nsub-01\t30\t31\n",
        b"\0\0",
    ],
    ids=["short row", "latin-1", "two columns of a name", "binary"],
)
def test_a_bad_participants_table_is_a_warning(
    tiny: Path, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tiny / "participants.tsv").write_bytes(content)
    with caplog.at_level(logging.WARNING, "bidsapp"):
        path = update_participants(tmp_path / "out", ["01"], source_dir=tiny)
    assert path.read_text().split() == ["participant_id", "sub-01"]
    assert str(tiny / "participants.tsv") in caplog.text


@pytest.mark.parametrize("folder", ["data [1]", "a[b", "x]y"])
def test_brackets_in_the_path_of_a_roi(tiny: Path, tmp_path: Path, folder: str) -> None:
    (mask,) = tiny.glob("sub-01/func/*label-nsdgeneral_mask.nii.gz")
    place = tmp_path / folder / "rois"
    place.mkdir(parents=True)
    shutil.copy(mask, place / "sub-01_mine.nii.gz")
    selection = InputSelection(participants=["01"], roi=[f"{place}/sub-{{subject}}_*.nii.gz"])
    assert open_dataset(tiny, selection).problems == ()
    moved = tiny.rename(tmp_path / folder / "bids")
    selection = InputSelection(participants=["01"], roi=["sub-{subject}/func/*nsdgeneral_mask.nii.gz"])
    assert open_dataset(moved, selection).problems == ()


def test_output_inside_the_input_by_another_spelling(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bind mount, or a file system that ignores case: another path, the same folder on the disk."""
    other = tmp_path / "mounted"
    other.mkdir()
    real = os.stat

    def same(path: object, *args: object, **more: object) -> os.stat_result:
        return real(tiny if os.fspath(path) == str(other) else path, *args, **more)  # type: ignore[call-overload,arg-type]

    monkeypatch.setattr(os, "stat", same)
    (problem,) = check_folders([tiny], other / "sub-01" / "out", tmp_path / "work")
    assert "inside the input dataset" in problem.what
    assert check_folders([tiny], other / "derivatives" / "x", tmp_path / "work") == []
    (problem,) = check_folders([], tmp_path / "bids2" / "out", tmp_path / "bids2" / "out")
    assert "mixed" in problem.what
