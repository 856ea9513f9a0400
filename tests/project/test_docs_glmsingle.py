"""The script of docs/tutorials/own-data.md for GLMsingle's output, run as the page says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from bidsapp import cli
from bidsapp.bids.inputs import InputSelection, open_dataset
from bidsapp.models.suite import EMBEDDED
from bidsapp.storage.nifti import load_volume

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "own-data.md"
SHAPE, AFFINE = (6, 7, 5), np.diag([-2.0, 2.0, 2.0, 1.0])


def script() -> str:
    page = PAGE.read_text(encoding="utf-8")
    (found,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    return found


@pytest.fixture
def made(tmp_path: Path, tiny_dataset: Callable[..., Path]) -> tuple[Path, np.ndarray, list[tuple[str, str]]]:
    """Dataset of one subject made by the script, its betas, and (session, stimulus) of each trial."""
    rng = np.random.default_rng(0)
    tiny = tiny_dataset(n_subjects=1)
    shown = [("1", f"pic{i:03d}") for i in rng.permutation(12)] + [("2", f"pic{i:03d}") for i in range(10)]
    betas = rng.standard_normal((*SHAPE, len(shown)))
    with h5py.File(tmp_path / "TYPED_FITHRF_GLMDENOISE_RR.hdf5", "w") as file:
        file["betasmd"], file["R2"] = betas, np.zeros(SHAPE)
    inside = np.zeros(SHAPE, np.int16)
    inside[1:5, 1:6, 1:4] = 1
    nib.save(nib.Nifti1Image(inside, AFFINE), tmp_path / "mask.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.float32), AFFINE), tmp_path / "mean.nii.gz")
    rows = [f"{session}\t{1 + i // 6}\t{stimulus}" for i, (session, stimulus) in enumerate(shown)]
    (tmp_path / "trials.tsv").write_text("\n".join(["session\trun\tstim_id", *rows]) + "\n")
    (tmp_path / "glmsingle2bids.py").write_text(script())
    words = ["BIDS", "01", "TYPED_FITHRF_GLMDENOISE_RR.hdf5", "mean.nii.gz", "trials.tsv", "mask.nii.gz"]
    subprocess.run([sys.executable, "glmsingle2bids.py", *words], cwd=tmp_path, check=True)
    root = tmp_path / "BIDS"
    shutil.copytree(tiny / "stimuli", root / "stimuli")
    (root / "participants.tsv").write_text("participant_id\nsub-01\n")
    return root, betas, shown


def test_the_script_keeps_every_trial(made: tuple[Path, np.ndarray, list[tuple[str, str]]]) -> None:
    root, betas, shown = made
    dataset = open_dataset(root, InputSelection(roi=["brain"]))
    assert dataset.problems == ()
    (subject,) = dataset.subjects
    assert [s.label for s in subject.sessions] == ["1", "2"]
    start = 0
    for session in subject.sessions:
        n = len(session.stimulus_ids)
        assert list(session.stimulus_ids) == [stimulus for _, stimulus in shown[start : start + n]]
        image = nib.load(session.betas)
        assert np.array_equal(np.asarray(image.dataobj), betas[..., start : start + n].astype(np.float32))
        assert np.array_equal(image.affine, AFFINE)
        start += n
    assert start == len(shown)
    assert load_volume(subject.masks["brain"]).data.sum() == 4 * 5 * 3


def test_the_result_is_valid_bids(
    made: tuple[Path, np.ndarray, list[tuple[str, str]]], validate: Callable[[Path], list[str]]
) -> None:
    assert validate(made[0]) == []


@pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded weights are not there")
def test_the_result_can_be_planned(
    made: tuple[Path, np.ndarray, list[tuple[str, str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [made[0], tmp_path / "out", "participant", "--roi", "brain", "--dry-run", "--recipe", "embedded"]
    assert cli.main([str(word) for word in words]) == 0
    assert "2 sessions, 22 trials, 8 training and 4 test images" in capsys.readouterr().out


def test_trials_that_do_not_fit_are_refused(
    made: tuple[Path, np.ndarray, list[tuple[str, str]]], tmp_path: Path
) -> None:
    lines = (tmp_path / "trials.tsv").read_text().splitlines()
    (tmp_path / "trials.tsv").write_text("\n".join(lines[:-1]) + "\n")
    words = ["other", "01", "TYPED_FITHRF_GLMDENOISE_RR.hdf5", "mean.nii.gz", "trials.tsv", "mask.nii.gz"]
    done = subprocess.run(
        [sys.executable, "glmsingle2bids.py", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "do not fit together" in done.stderr
