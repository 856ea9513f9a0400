"""The folders to write to, and the room in them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from bidsapp.bids import folders
from bidsapp.bids.folders import RequiredSpace, check_folders, check_space
from bidsapp.errors import ExitCode


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    (tmp_path / "bids").mkdir()
    return tmp_path / "bids"


def test_what_cannot_be_written_to(bids: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(bids, target_is_directory=True)
    (tmp_path / "astray").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    inside = "inside the input dataset"
    for out, words in (
        (bids, inside),
        (bids / "out", inside),
        (tmp_path / "link" / "x", inside),
        (bids / "derivatives", inside),
        (tmp_path / "file" / "out", "is a file"),
        (tmp_path / "astray" / "out", "is a link to nothing"),
    ):
        (problem,) = check_folders([bids], out, work)
        assert words in problem.what
        assert problem.path == str(out)
        assert problem.code == ExitCode.CANNOT_CREATE
    (problem,) = check_folders([bids], tmp_path / "out", bids / "work")
    assert "work folder is inside" in problem.what
    assert check_folders([bids], bids / "derivatives" / "bidsapp-recon", work) == []
    assert sorted(tmp_path.rglob("*")) == before


def test_work_and_output_folders_that_would_mix(bids: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "alias").symlink_to(out, target_is_directory=True)
    out.mkdir()
    for work in (
        out,
        tmp_path / "alias",
        out / ".." / "out",
        out / "sub-01",
        out / "sub-01" / "w",
        out / "logs",
    ):
        (problem,) = check_folders([bids], out, work)
        assert "would be mixed" in problem.what
        assert problem.path == str(work)
        assert problem.code == ExitCode.CANNOT_CREATE
    for inner in ("sub-01", "targets-1/out", "cache"):
        (problem,) = check_folders([bids], tmp_path / "w" / inner, tmp_path / "w")
        assert "would be mixed" in problem.what
    for work in (out / ".work", out / "work", tmp_path / "alias" / "sub", tmp_path):
        assert check_folders([bids], out, work) == []


def test_datasets_of_others_are_not_overwritten(bids: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "other"}]}')
    (problem,) = check_folders([bids], out, out / ".work")
    assert "dataset of other" in problem.what


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that refuses everybody")
def test_a_file_system_that_refuses(bids: Path, tmp_path: Path) -> None:
    (problem,) = check_folders([bids], Path("/proc/out"), tmp_path / "work")
    assert "refuses" in problem.what


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(bids: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    (problem,) = check_folders([bids], tmp_path / "closed" / "out", tmp_path / "work")
    assert "Permission denied" in problem.what


class _Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_room_is_counted_by_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda _: _Usage(10, 0, 3_000_000_000))
    out, work = tmp_path / "out", tmp_path / "work"
    assert check_space([RequiredSpace(out, "output", 10**9), RequiredSpace(work, "work", 2 * 10**9)]) == []
    (problem,) = check_space(
        [RequiredSpace(out, "output", 10**9 + 1), RequiredSpace(work, "work", 2 * 10**9)]
    )
    assert "1.0 GB for the output folder and 2.0 GB for the work folder" in problem.what
    assert "3.0 GB are free" in problem.what
    assert problem.code == ExitCode.IO_ERROR
    assert not out.exists()


def test_room_of_the_real_disk(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert check_space([RequiredSpace(tmp_path / "a" / "b", "output", 1)]) == []
    assert len(check_space([RequiredSpace(tmp_path / "a" / "b", "output", 2 * free)])) == 1
