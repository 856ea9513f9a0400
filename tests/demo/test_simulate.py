"""The simulated dataset: layout, contents, determinism; the app and the BIDS validator accept it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bidsapp.bids.inputs import InputSelection, open_dataset
from bidsapp.demo import scenes
from bidsapp.demo.design import DEMO_FAMILY, DatasetDesign
from bidsapp.demo.simulate import write_dataset
from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.files import sha256_file
from bidsapp.storage.text import read_json, read_tsv

SMALL = DatasetDesign(4, n_subjects=2, n_sessions=2, n_train=40, n_test=20, repeats=2, image_size=64)
FUNC = "sub-01/func/sub-01_task-scenes_space-func3mm"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("demo") / "bids", SMALL)


def digests(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): sha256_file(p) for p in sorted(root.rglob("*")) if p.is_file()}


def session_betas(root: Path, subject: str, session: str) -> tuple[np.ndarray, list[str]]:
    """Betas (x, y, z, trials) in percent signal change and the stimulus of every trial."""
    func = root / f"sub-{subject}/ses-{session}/func"
    name = f"sub-{subject}_ses-{session}_task-scenes"
    stored = nib.load(func / f"{name}_space-func3mm_stat-effect_desc-singletrial_statmap.nii.gz")
    scale = read_json(func / f"{name}_space-func3mm_stat-effect_desc-singletrial_statmap.json")["ScaleFactor"]
    trials = read_tsv(func / f"{name}_desc-singletrial_trials.tsv")
    return np.asanyarray(stored.dataobj) / scale, trials["stim_id"]


def test_same_seed_same_bytes_on_any_number_of_threads(dataset: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "again", SMALL, n_cpus=1)
    assert digests(tmp_path / "again") == digests(dataset)


def test_another_seed_changes_stimuli_and_betas(dataset: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "other", replace(SMALL, seed=5, n_subjects=1))
    mine, other = digests(dataset), digests(tmp_path / "other")
    assert all(mine[name] != other[name] for name in mine if name in other and name.endswith((".png", ".gz")))


def test_a_subject_does_not_depend_on_the_others(dataset: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "alone", replace(SMALL, n_subjects=1))
    mine, alone = digests(dataset), digests(tmp_path / "alone")
    own = [name for name in alone if name.startswith("sub-01")]
    assert len(own) > 15
    assert all(mine[name] == alone[name] for name in own)


def test_the_bids_validator_accepts_it(dataset: Path) -> None:
    command = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("bids-validator-deno is not installed in this environment")
    done = subprocess.run([command, "--format", "json", str(dataset)], capture_output=True, check=False)
    errors = [i for i in json.loads(done.stdout)["issues"]["issues"] if i.get("severity") == "error"]
    assert errors == []
    assert done.returncode == 0


def test_the_app_reads_it(dataset: Path) -> None:
    found = open_dataset(dataset)
    assert found.problems == ()
    assert found.generated_by == "bidsapp-recon demo"
    assert [s.label for s in found.subjects] == ["01", "02"]
    subject = found.subjects[0]
    assert (subject.task, subject.space) == ("scenes", "func3mm")
    assert [s.label for s in subject.sessions] == ["01", "02"]
    assert all(s.scale == 300 for s in subject.sessions)
    assert all(i.startswith("scene") for s in subject.sessions for i in s.stimulus_ids)
    assert subject.masks == {"nsdgeneral": dataset / f"{FUNC}_label-nsdgeneral_mask.nii.gz"}
    assert subject.noise_ceiling == dataset / f"{FUNC}_desc-noiseceiling_statmap.nii.gz"
    assert subject.spatial_reference is not None
    assert (dataset / subject.spatial_reference.removeprefix("bids::")).is_file()
    for roi in ("early", "higher"):
        assert open_dataset(dataset, InputSelection(roi=(roi,))).problems == ()


def test_stimuli_are_the_scenes_and_captions_of_the_demo_family(dataset: Path) -> None:
    table = read_tsv(dataset / "stimuli/stimuli.tsv")
    assert len(table["stimulus_id"]) == 20 + 2 * 40
    assert table["split"].count("test") == 20
    assert table["shown_to"].count("sub-02") == 40
    assert set(table["scene_family"]) == {str(DEMO_FAMILY + 4)}
    captions = read_tsv(dataset / "stimuli/captions.tsv")
    for row in (0, 57, 99):
        scene = scenes.make_scene(DEMO_FAMILY + 4, int(table["scene_index"][row]))
        pixels = np.asarray(Image.open(dataset / "stimuli" / table["file"][row]))
        assert np.array_equal(pixels, scenes.draw(scene, 64))
        mine = [
            caption
            for i, caption in zip(captions["stimulus_id"], captions["caption"], strict=True)
            if i == table["stimulus_id"][row]
        ]
        assert tuple(mine) == scenes.captions(scene)


def test_every_volume_has_its_trial_and_all_maps_one_grid(dataset: Path) -> None:
    table = read_tsv(dataset / "stimuli/stimuli.tsv")
    split = dict(zip(table["stimulus_id"], table["split"], strict=True))
    shown_to = dict(zip(table["stimulus_id"], table["shown_to"], strict=True))
    for subject in ("01", "02"):
        images = [nib.load(p) for p in sorted(dataset.glob(f"sub-{subject}/**/*.nii.gz"))]
        assert len(images) == 6
        assert len({i.shape[:3] for i in images}) == 1
        assert len({i.affine.tobytes() for i in images}) == 1
        seen: list[str] = []
        for session in ("01", "02"):
            betas, stimuli = session_betas(dataset, subject, session)
            assert betas.shape[3] == len(stimuli)
            seen += stimuli
        assert {shown_to[i] for i in seen} == {"all", f"sub-{subject}"}
        assert all(seen.count(i) == 2 for i in split if split[i] == "test")
    for path in dataset.glob("sub-*/**/*.nii.gz"):
        sidecar = read_json(path.with_name(path.name.replace(".nii.gz", ".json")))
        reference = sidecar["SpatialReference"].removeprefix("bids::")
        assert (dataset / reference).is_file()


def test_rois_and_ceiling_agree(dataset: Path) -> None:
    mask = nib.load(dataset / f"{FUNC}_label-nsdgeneral_mask.nii.gz").get_fdata()
    labels = nib.load(dataset / f"{FUNC}_seg-visualrois_dseg.nii.gz").get_fdata()
    assert np.array_equal(mask > 0, labels > 0)
    table = read_tsv(dataset / f"{FUNC}_seg-visualrois_dseg.tsv")
    assert table == {"index": ["1", "2"], "name": ["early", "higher"]}
    ceiling = nib.load(dataset / f"{FUNC}_desc-noiseceiling_statmap.nii.gz").get_fdata()
    assert np.all(ceiling[mask == 0] == 0)
    # Two repeats of median ncsnr 0.5: 100 * 0.25 / (0.25 + 1 / 2).
    assert np.median(ceiling[mask > 0]) == pytest.approx(100 / 3, abs=4)
    sidecar = read_json(dataset / f"{FUNC}_desc-noiseceiling_statmap.json")
    assert sidecar["NumberOfRepeats"] == 2
    assert sidecar["Units"] == "percent"
    assert "ncsnr" in sidecar["Formula"]


def test_repeats_agree_as_well_as_the_ceiling_predicts(dataset: Path) -> None:
    mask = nib.load(dataset / f"{FUNC}_label-nsdgeneral_mask.nii.gz").get_fdata() > 0
    ceiling = nib.load(dataset / f"{FUNC}_desc-noiseceiling_statmap.nii.gz").get_fdata() / 100
    outside = nib.load(dataset / "sub-01/anat/sub-01_space-func3mm_T1w.nii.gz").get_fdata() == 0
    betas, stimuli = [], []
    for session in ("01", "02"):
        one, ids = session_betas(dataset, "01", session)
        assert np.all(one[outside] == 0)
        betas.append(one - one.mean(axis=3, keepdims=True))
        stimuli += ids
    both = np.concatenate(betas, axis=3)
    twice = [np.flatnonzero(np.array(stimuli) == i) for i in sorted(set(stimuli)) if stimuli.count(i) == 2]
    first, second = (both[..., [pair[k] for pair in twice]] for k in (0, 1))
    with np.errstate(invalid="ignore"):
        agreement = (first * second).mean(axis=3) / ((first**2 + second**2) / 2).mean(axis=3)
    # From the ceiling of a mean of two trials to the explainable variance of one.
    single_trial = ceiling / (2 - ceiling)
    assert agreement[mask].mean() == pytest.approx(single_trial[mask].mean(), abs=0.05)
    assert np.corrcoef(agreement[mask], single_trial[mask])[0, 1] > 0.5
    assert abs(agreement[~mask & ~outside].mean()) < 0.04


def test_a_complete_dataset_is_unchanged_and_an_incomplete_one_is_completed(tmp_path: Path) -> None:
    tiny = replace(SMALL, n_subjects=1, n_train=4, n_test=2)
    root = write_dataset(tmp_path / "bids", tiny)
    before = digests(root)
    png = root / "stimuli/stim-scene00000_image.png"
    stamp = png.stat().st_mtime_ns
    write_dataset(root, tiny)
    assert png.stat().st_mtime_ns == stamp
    (root / "dataset_description.json").unlink()
    png.write_bytes(b"half a fi")
    write_dataset(root, tiny)
    assert digests(root) == before


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("My own study.\n")
    with pytest.raises(AppError, match="not empty") as caught:
        write_dataset(tmp_path, SMALL)
    assert caught.value.exit_code == ExitCode.CANNOT_CREATE
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("wrong", [{"image_size": 32}, {"n_subjects": 0}, {"seed": -1}, {"n_test": 0}])
def test_impossible_settings_are_refused_before_anything_is_written(
    tmp_path: Path, wrong: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        write_dataset(tmp_path / "bids", replace(SMALL, **wrong))
    assert not (tmp_path / "bids").exists()
