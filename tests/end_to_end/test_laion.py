"""Both levels on a tree in LAION-fMRI's layout, with its split files, from its root and its derivative."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.laion_tree import (
    OOD,
    SHAPE,
    SHARED,
    SUBJECTS,
    UNIQUE,
    Laion,
    brain,
    high_level,
    not_a_number,
    write_laion_tree,
)
from PIL import Image

from bidsapp import cli
from bidsapp.config import RECIPES
from bidsapp.models.suite import EMBEDDED
from bidsapp.outputs.provenance import write_settings
from bidsapp.storage.text import read_tsv

pytestmark = pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded weights are not there")


@pytest.fixture(scope="module")
def laion(tmp_path_factory: pytest.TempPathFactory) -> Laion:
    return write_laion_tree(tmp_path_factory.mktemp("laion"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded recipe with fewer steps, one evaluation network, and controls on few images."""
    content = tomllib.loads((RECIPES / "embedded.toml").read_text())
    content["diffusion"]["steps"] = 4
    content["metrics"]["networks"] = ["small_clip"]
    content["controls"]["max_images"] = 2
    path = tmp_path_factory.mktemp("recipe") / "quick.toml"
    write_settings(path, content)
    return path


def run(laion: Laion, recipe: Path, out: Path, *words: object, base: Path | None = None) -> int:
    common = ("--recipe", recipe, "-w", laion.root.parent / "work", "--skip-bids-validation", "--keep-work")
    rois = ("-d", f"atlases={laion.root / 'derivatives' / 'atlases'}", "--roi", "hlvis")
    machine = ("--n-cpus", "1", "--device", "cpu")
    given = (base or laion.root, out, "participant", *common, *rois, *machine, *words)
    return cli.main([str(word) for word in given])


@pytest.fixture(scope="module")
def out(laion: Laion, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of both levels from the root, each subject with the ``tau`` split of its own pool."""
    folder = tmp_path_factory.mktemp("tau") / "out"
    assert run(laion, recipe, folder, "--split", laion.splits / "sub-{subject}" / "tau.json") == 0
    assert cli.main([str(laion.root), str(folder), "group"]) == 0
    return folder


def settings(out: Path, subject: str) -> dict:
    return tomllib.loads(next(out.glob(f"logs/sub-{subject}/*/run.toml")).read_text())


@pytest.mark.parametrize("subject", SUBJECTS)
def test_tau_from_the_root(laion: Laion, out: Path, subject: str) -> None:
    path = laion.split(f"sub-{subject}", "tau")
    (split,) = json.loads(path.read_text())["variants"]
    table = read_tsv(next((out / f"sub-{subject}" / "func").glob("*_desc-recon_metrics.tsv")))
    assert table["stimulus_id"] == [f"stim-{name}" for name in sorted(split["test_ids"])]
    recorded = settings(out, subject)["split"]
    assert recorded["name"] == "tau"
    assert recorded["variant"] == "0"
    assert recorded["file"] == str(path)
    assert recorded["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert recorded["training_images"] == len(split["train_ids"])
    assert recorded["test_images"] == len(split["test_ids"])
    assert recorded["not_in_the_dataset"] == 0
    inputs = settings(out, subject)["data"]
    assert inputs["dataset"] == str(laion.glmsingle)
    assert inputs["noise_ceiling"].endswith("_desc-NoiseceilingAllrep_statmap.nii.gz")
    assert inputs["masks"] == [
        str(laion.root / "derivatives" / "atlases" / f"sub-{subject}" / "rois" / "hlvis.nii.gz")
    ]


def test_the_output_is_valid_and_says_where_its_inputs_are(laion: Laion, out: Path, validate) -> None:
    assert validate(out) == []
    links = json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]
    assert set(links) == {"input", "atlases", "source"}
    assert (out / links["atlases"] / "sub-01" / "rois" / "hlvis.nii.gz").is_file()
    mask = next((out / "sub-01" / "func").glob("*_mask.json"))
    assert json.loads(mask.read_text())["Sources"] == ["bids:atlases:sub-01/rois/hlvis.nii.gz"]
    people = read_tsv(out / "participants.tsv")
    assert people["participant_id"] == ["sub-01", "sub-03"]
    assert people["age"] == ["25", "26"]
    assert read_tsv(out / "phenotype" / "reconmetrics.tsv")["participant_id"] == ["sub-01", "sub-03"]


def test_voxels_that_are_nan_or_outside_the_brain_are_counted(laion: Laion, out: Path) -> None:
    roi = high_level()
    nans = roi & np.any([not_a_number(session) for session in range(3)], axis=0)
    outside = roi & ~brain()
    assert nans.sum() > 2
    assert outside.sum() > 0
    log = next(out.glob("logs/sub-01/*/run.log")).read_text()
    assert f"{nans.sum()} voxels were dropped: NaN or infinite in some trial" in log
    assert f"{outside.sum()} voxels were dropped: constant over all training images" in log
    page = (out / "sub-01.html").read_text()
    for count, words in (
        (nans.sum(), "Voxels dropped: not finite in some trial"),
        (outside.sum(), "Voxels dropped: constant over training images"),
        (roi.sum() - nans.sum() - outside.sum(), "Voxels used"),
        ("30.0", "Median noise ceiling, %"),
    ):
        assert f"<dt>{words}</dt><dd>{count}</dd>" in page
    image = nib.load(next((out / "sub-01" / "func").glob("*_mask.nii.gz")))
    assert image.shape == SHAPE


def test_responses_are_the_averages_of_each_images_trials(laion: Laion, out: Path) -> None:
    """Rows of the responses against sums over the fixture's own arrays."""
    names, betas = laion.shown["01"], laion.betas["01"]
    work = laion.root.parent / "work" / "sub-01" / "responses"
    (split,) = json.loads(laion.split("sub-01", "tau").read_text())["variants"]
    voxels = np.flatnonzero(high_level().ravel(order="F"))
    for kind in ("train", "test"):
        rows = np.load(work / f"{kind}.npy")
        for row, name in zip(rows, sorted(split[f"{kind}_ids"]), strict=True):
            trials = [
                session[..., i].ravel(order="F")[voxels].astype(np.float64)
                for session, shown in zip(betas, names, strict=True)
                for i, stimulus in enumerate(shown)
                if stimulus == name
            ]
            np.testing.assert_allclose(row, np.mean(trials, axis=0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("split", "words", "n_test"),
    [
        ("cluster_k5", ("--split-variant", "2"), 2),
        ("ood", (), len(OOD)),
        ("random_3", (), 2),
    ],
)
def test_other_splits_from_the_derivative(
    laion: Laion, recipe: Path, tmp_path: Path, split: str, words: tuple[str, ...], n_test: int
) -> None:
    path = laion.split("sub-01", split)
    given = ("--participant-label", "01", "--split", path, *words)
    assert run(laion, recipe, tmp_path / "out", *given, base=laion.glmsingle) == 0
    recorded = settings(tmp_path / "out", "01")["split"]
    variant = int(recorded["variant"])
    wanted = json.loads(path.read_text())["variants"][variant]
    assert variant == (2 if words else 0)
    assert recorded["name"] == (f"{split} variant 2" if words else split)
    table = read_tsv(next((tmp_path / "out" / "sub-01" / "func").glob("*_desc-recon_metrics.tsv")))
    assert table["stimulus_id"] == [f"stim-{name}" for name in sorted(wanted["test_ids"])]
    assert len(table["stimulus_id"]) >= n_test


def test_the_plan_is_the_same_from_root_and_derivative(
    laion: Laion, recipe: Path, tmp_path: Path, capsys
) -> None:
    plans = []
    for base in (laion.root, laion.glmsingle):
        split = laion.split("shared", "cluster_k5")
        assert run(laion, recipe, tmp_path / "out", "--split", split, "--dry-run", base=base) == 0
        plans.append(capsys.readouterr().out)
    assert plans[0] == plans[1]
    assert "images of cluster_k5 variant 0" in plans[0]
    assert not (tmp_path / "out").exists()


def test_what_a_first_try_gets_told(laion: Laion, recipe: Path, tmp_path: Path, capsys) -> None:
    """No split, no known ROI: everything at once, with what there is."""
    given = [laion.root, tmp_path / "out", "participant", "--recipe", recipe, "--skip-bids-validation"]
    rois = laion.root / "derivatives" / "rois"
    code = cli.main([*map(str, given), "--device", "cpu", "-d", f"rois={rois}"])
    text = capsys.readouterr().err
    assert code != 0
    assert "no ROI 'nsdgeneral'" in text
    assert "meanR2gt15mask" in text
    assert "rois:laion-general" in text
    assert "The training set is empty" in text
    assert "task-images_metadata.csv" in text
    assert "--split FILE" in text


def test_the_older_stimulus_layout_and_the_other_region_files(recipe: Path, tmp_path: Path, capsys) -> None:
    laion = write_laion_tree(tmp_path, older_stimuli=True)
    pattern = "derivatives/atlases/sub-{subject}/rois/hlvis.nii.gz"
    rois = laion.root / "derivatives" / "rois"
    split = laion.splits / "sub-{subject}" / "tau.json"
    given = [laion.root, tmp_path / "out", "participant", "--recipe", recipe, "--skip-bids-validation"]
    given += ["--split", split, "--dry-run", "--device", "cpu", "-d", f"rois={rois}"]
    for names in ([pattern], ["FFA1"], ["laion-general", "rois:FFA-1"]):
        assert cli.main([*map(str, given), "--roi", *names]) == 0
        assert "sub-03: 3 sessions" in capsys.readouterr().out


def test_images_of_several_sizes_and_shapes(recipe: Path, tmp_path: Path) -> None:
    laion = write_laion_tree(tmp_path, older_stimuli=True)
    tests = json.loads(laion.split("sub-01", "tau").read_text())["variants"][0]["test_ids"]
    for name, size in zip((tests[0], SHARED[-1]), ((64, 48), (33, 90)), strict=True):
        path = laion.root / "stimuli" / "images" / name
        Image.open(path).resize(size).save(path)
    given = ("--participant-label", "01", "--split", laion.split("sub-01", "tau"))
    assert run(laion, recipe, tmp_path / "out", *given) == 0
    log = next((tmp_path / "out").glob("logs/sub-01/*/run.log")).read_text()
    assert "test images differ in size: resized to 40 x 40 pixels" in log


def test_unknown_and_unseen_ids_are_said(laion: Laion, recipe: Path, tmp_path: Path, capsys) -> None:
    split = tmp_path / "mine.json"
    train = [*SHARED[:4], "gone.jpg", UNIQUE["03"][0]]
    split.write_text(json.dumps({"name": "mine", "train_ids": train, "test_ids": list(SHARED[4:])}))
    given = ("--participant-label", "01", "--split", split, "--dry-run")
    assert run(laion, recipe, tmp_path / "out", *given) == 0
    said = capsys.readouterr()
    assert "4 training and 2 test images of mine" in said.out
    assert "1 of its ids is not among the dataset's stimuli and left out: gone.jpg" in said.err


def test_a_dataset_without_captions(recipe: Path, tmp_path: Path, capsys) -> None:
    laion = write_laion_tree(tmp_path)
    (laion.root / "stimuli" / "task-images_desc-captions.csv").rename(tmp_path / "mine.csv")
    given = ("--split", laion.splits / "sub-{subject}" / "ood.json", "--dry-run")
    assert run(laion, recipe, tmp_path / "out", *given) == 65
    text = capsys.readouterr().err
    assert "no caption" in text
    assert "--captions FILE" in text
    assert run(laion, recipe, tmp_path / "out", *given, "--captions", tmp_path / "mine.csv") == 0
