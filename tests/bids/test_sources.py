"""Regions of other datasets, spelled and placed in other ways; LAION-fMRI's derivatives side by side."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.laion_tree import SHAPE, Laion, write_laion_tree

from bidsapp.bids.inputs import Dataset, InputSelection, open_dataset
from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.nifti import read_header


@pytest.fixture(scope="module")
def laion(tmp_path_factory: pytest.TempPathFactory) -> Laion:
    return write_laion_tree(tmp_path_factory.mktemp("laion"))


def opened(laion: Laion, *roi: str, base: Path | None = None, **more: Path) -> Dataset:
    derivatives = laion.root / "derivatives"
    others = {"rois": derivatives / "rois", "atlases": derivatives / "atlases", **more}
    return open_dataset(base or laion.root, InputSelection(roi=roi, derivatives=others))


@pytest.mark.parametrize(
    "folder", ["", "derivatives/glmsingle-tedana", "derivatives/rois/../glmsingle-tedana"]
)
def test_betas_trials_and_maps_are_found(laion: Laion, folder: str) -> None:
    dataset = opened(laion, "meanR2gt15mask", base=laion.root / folder)
    assert dataset.problems == ()
    assert dataset.name == "LAION-fMRI"
    assert dataset.root.resolve() == laion.glmsingle
    assert [s.label for s in dataset.subjects] == ["01", "03"]
    for subject in dataset.subjects:
        assert (subject.task, subject.space) == ("images", "T1w")
        assert [s.label for s in subject.sessions] == ["01", "02", "03"]
        shown = [list(s.stimulus_ids) for s in subject.sessions]
        assert shown == laion.shown[subject.label]
        assert len({len(s) for s in shown}) == 3
        for session in subject.sessions:
            assert session.betas.name.endswith("_stat-effect_desc-SingletrialBetas_statmap.nii.gz")
            header = read_header(session.betas)
            assert (*header.shape, header.n_volumes) == (*SHAPE, len(session.stimulus_ids))
            assert session.scale == 1.0
        assert subject.noise_ceiling is not None
        assert subject.noise_ceiling.name.endswith("_desc-NoiseceilingAllrep_statmap.nii.gz")


@pytest.mark.parametrize("desc", ["Noiseceiling4rep", "Noiseceiling12rep"])
def test_another_noise_ceiling_is_chosen_by_a_filter_file(laion: Laion, tmp_path: Path, desc: str) -> None:
    path = tmp_path / "filters.json"
    path.write_text(f'{{"noiseceiling": {{"desc": "{desc}"}}}}')
    dataset = open_dataset(laion.root, InputSelection(roi=["meanR2gt15mask"], filters=path))
    assert all(f"desc-{desc}_" in s.noise_ceiling.name for s in dataset.subjects if s.noise_ceiling)
    assert all(s.noise_ceiling for s in dataset.subjects)


def test_a_sessions_own_noise_ceiling_is_never_the_subjects(laion: Laion, tmp_path: Path) -> None:
    copy = tmp_path / "laion"
    shutil.copytree(laion.glmsingle, copy / "derivatives" / "glmsingle-tedana")
    shutil.copy(laion.root / "dataset_description.json", copy)
    for path in copy.rglob("*rep_statmap.nii.gz"):
        path.unlink()
    dataset = open_dataset(copy, InputSelection(roi=["meanR2gt15mask"]))
    assert all(s.noise_ceiling is None for s in dataset.subjects)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("hlvis", "rois/hlvis.nii.gz"),
        ("atlases:visual", "rois/visual.nii.gz"),
        ("FFA-1", "face/sub-03_space-T1w_res-1pt8_label-FFA-1_mask.nii.gz"),
        ("FFA1", "face/sub-03_space-T1w_res-1pt8_label-FFA-1_mask.nii.gz"),
        ("rois:laiongeneral", "laion/sub-03_space-T1w_res-1pt8_label-laion-general_mask.nii.gz"),
        (
            "derivatives/rois/sub-{subject}/*/*FFA-1_mask.nii.gz",
            "face/sub-03_space-T1w_res-1pt8_label-FFA-1_mask",
        ),
        ("derivatives/atlases/sub-{subject}/rois/hlvis.nii.gz", "rois/hlvis.nii.gz"),
    ],
)
def test_regions_outside_of_the_betas_dataset(laion: Laion, name: str, file: str) -> None:
    dataset = opened(laion, name)
    assert dataset.problems == ()
    roi = dataset.rois["03"][name]
    assert file in str(roi.path)
    # LAION-fMRI has every region on two grids: the one of the betas is taken.
    assert read_header(roi.path).shape == SHAPE


def test_a_pattern_may_climb_out_of_the_derivative(laion: Laion) -> None:
    pattern = "../atlases/sub-{subject}/rois/hl*.nii.gz"
    dataset = opened(laion, pattern, base=laion.glmsingle)
    assert dataset.problems == ()
    assert dataset.rois["01"][pattern].path.samefile(
        laion.root / "derivatives" / "atlases" / "sub-01" / "rois" / "hlvis.nii.gz"
    )
    absolute = f"{laion.root}/derivatives/atlases/sub-{{subject}}/rois/h?vis.nii.gz"
    assert opened(laion, absolute).problems == ()


def test_what_is_there_is_listed(laion: Laion) -> None:
    dataset = opened(laion, "nsdgeneral", "rois:hlvis", "derivatives/*/sub-{subject}/rois/*.nii.gz")
    texts = [p.what for p in dataset.problems if p.subject in ("", "01")][:3]
    names = "HRFindex, meanR2gt15mask, rois:FFA-1, rois:laion-general, atlases:hlvis, atlases:visual"
    assert names in texts[0]
    assert "no ROI 'rois:hlvis'" in texts[1]
    assert "in several files" in texts[2]
    assert "visual.nii.gz" in texts[2]


def test_a_region_in_two_datasets_needs_the_datasets_name(laion: Laion, tmp_path: Path) -> None:
    shutil.copytree(laion.root / "derivatives" / "atlases", tmp_path / "mine")
    dataset = opened(laion, "hlvis", mine=tmp_path / "mine")
    assert "in several files" in dataset.problems[0].what
    assert dataset.problems[0].code == ExitCode.USAGE
    dataset = opened(laion, "mine:hlvis", mine=tmp_path / "mine")
    assert dataset.rois["01"]["mine:hlvis"].path.is_relative_to(tmp_path)
    assert dataset.links == {
        "source": laion.glmsingle,
        "rois": laion.root / "derivatives" / "rois",
        "atlases": laion.root / "derivatives" / "atlases",
        "mine": tmp_path / "mine",
        "input": laion.root,
    }


@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_datasets_that_are_none(laion: Laion, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "file":
        path.write_text("")
    elif kind == "empty":
        path.mkdir()
    with pytest.raises(AppError, match="--derivatives other=") as caught:
        opened(laion, "hlvis", other=path)
    assert caught.value.exit_code == ExitCode.NO_INPUT


def test_a_localizers_maps_are_not_taken_for_betas(laion: Laion, tmp_path: Path) -> None:
    """They are called stat-effect as well, but have no table of trials."""
    assert list((laion.root / "derivatives" / "localizers").rglob("*stat-effect_statmap.nii.gz"))
    copy = tmp_path / "laion"
    shutil.copytree(laion.root, copy)
    for path in copy.rglob("*_trials.tsv"):
        path.unlink()
    shutil.rmtree(copy / "derivatives" / "localizers")
    dataset = open_dataset(copy, InputSelection(roi=["meanR2gt15mask"]))
    assert len(dataset.problems) == 6
    assert all("No *_trials.tsv belongs to these betas" in p.what for p in dataset.problems)


def test_two_files_of_one_grid_stay_ambiguous(laion: Laion, tmp_path: Path) -> None:
    copy = tmp_path / "rois"
    shutil.copytree(laion.root / "derivatives" / "rois", copy)
    first = next((copy / "sub-01" / "face").glob("*res-1pt8_label-FFA-1_mask.nii.gz"))
    shutil.copy(first, first.with_name(first.name.replace("_label", "_desc-second_label")))
    dataset = open_dataset(laion.root, InputSelection(roi=["FFA1"], derivatives={"rois": copy}))
    assert [p.subject for p in dataset.problems] in (["01"], [""])
    assert "in several files" in dataset.problems[0].what
    assert "1pt5" not in dataset.problems[0].what
    assert np.all(
        read_header(first).affine == read_header(laion.glmsingle / "sub-01" / first_betas(laion)).affine
    )


def first_betas(laion: Laion) -> Path:
    path = next((laion.glmsingle / "sub-01").rglob("*SingletrialBetas_statmap.nii.gz"))
    return path.relative_to(laion.glmsingle / "sub-01")


def test_relative_paths_of_all_datasets(laion: Laion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(laion.root.parent)
    for folder in ("laion/derivatives", "laion/stimuli/../derivatives"):
        others = {name: Path(folder) / name for name in ("rois", "atlases")}
        dataset = open_dataset("laion", InputSelection(roi=["laion-general", "hlvis"], derivatives=others))
        assert dataset.problems == ()
        for subject in dataset.subjects:
            own = laion.root / "derivatives" / "atlases" / f"sub-{subject.label}" / "rois" / "hlvis.nii.gz"
            assert subject.masks["hlvis"].samefile(own)
            assert subject.masks["laion-general"].name.endswith("_res-1pt8_label-laion-general_mask.nii.gz")
