"""The stage that masks betas: whole or not at all, and the same for any number of CPUs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bidsapp.bids.inputs import open_dataset
from bidsapp.bids.voxels import choose_voxels
from bidsapp.errors import AppError
from bidsapp.pipeline.responses import mask_betas
from bidsapp.records import Mask, SubjectInputs
from bidsapp.storage.stages import Stages


@pytest.fixture(scope="module")
def pristine(tiny_dataset: Callable[..., Path]) -> Path:
    return tiny_dataset(n_subjects=1, n_sessions=4)


@pytest.fixture
def inputs(pristine: Path, tmp_path: Path) -> tuple[SubjectInputs, Mask]:
    root = Path(shutil.copytree(pristine, tmp_path / "bids"))
    dataset = open_dataset(root)
    return dataset.subjects[0], choose_voxels(dataset, "01")


def _contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_number_of_cpus_does_not_change_results_or_recompute_them(inputs, tmp_path, caplog):
    subject, mask = inputs
    made = {}
    for n_cpus in (1, 3):
        result = mask_betas(Stages(tmp_path / str(n_cpus)), subject, mask, n_cpus)
        assert list(result.arrays) == ["session000", "session001", "session002", "session003"]
        made[n_cpus] = _contents(tmp_path / str(n_cpus))
    assert made[1] == made[3]
    with caplog.at_level("INFO", "bidsapp"):
        mask_betas(Stages(tmp_path / "1"), subject, mask, 2)
    assert "found from an earlier run" in caplog.text


@pytest.mark.parametrize("n_cpus", [1, 3])
def test_one_bad_session_stops_the_stage_by_name_and_leaves_nothing(inputs, tmp_path, n_cpus):
    subject, mask = inputs
    for number in (1, 3):
        path = subject.sessions[number].betas
        path.write_bytes(path.read_bytes()[:-100])
    stages = Stages(tmp_path / "work")
    with pytest.raises(AppError, match="truncated") as caught:
        mask_betas(stages, subject, mask, n_cpus)
    assert str(subject.sessions[1].betas) in str(caught.value)
    assert list((tmp_path / "work").iterdir()) == []
