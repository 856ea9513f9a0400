"""Both levels from end to end, on a tiny dataset and whatever weights the package holds."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp import cli
from bidsapp.config import RECIPES, load_recipe
from bidsapp.decoding.model_file import load as load_model
from bidsapp.models.suite import EMBEDDED
from bidsapp.outputs.provenance import write_settings
from bidsapp.storage.text import read_tsv

needs_weights = pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded weights are not there")
pytestmark = needs_weights


def run(*words: object) -> int:
    return cli.main([*map(str, words), "--n-cpus", "1", "--device", "cpu"])


def recipe_file(folder: Path, **changes: dict) -> Path:
    """A copy of the embedded recipe with a few steps of diffusion and one evaluation network."""
    content = tomllib.loads((RECIPES / "embedded.toml").read_text())
    quick = {
        "diffusion": {"steps": 4},
        "metrics": {"networks": ["small_clip"]},
        "controls": {"max_images": 3},
    }
    for section, values in (*quick.items(), *changes.items()):
        content[section] |= values
    write_settings(folder / "quick.toml", content)
    return folder / "quick.toml"


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Path:
    return recipe_file(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def bids(tiny_dataset) -> Path:
    return tiny_dataset(n_subjects=2, n_trials=12)


@pytest.fixture(scope="module")
def out(bids, tmp_path_factory) -> Path:
    """Output of both levels, embedded recipe."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert run(bids, folder, "participant", "--recipe", "embedded", "--keep-work") == 0
    assert run(bids, folder, "group") == 0
    return folder


def hashes(folder: Path, *patterns: str) -> dict[str, str]:
    """Content of the files that match, by path."""
    files = sorted({p for pattern in patterns for p in folder.rglob(pattern) if p.is_file()})
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
        if ".work" not in p.parts
    }


TEST_IDS = [f"pic{i:03d}" for i in range(4)]


@pytest.mark.parametrize("subject", ["01", "02"])
def test_all_outputs_are_there(out, subject):
    func = out / f"sub-{subject}" / "func"
    stem = f"sub-{subject}_task-tiny"
    for desc in ("recon", "vdvae"):
        assert len(list(func.glob(f"{stem}_stim-*_desc-{desc}_image.png"))) == len(TEST_IDS)
        for stimulus in TEST_IDS:
            assert (func / f"{stem}_stim-{stimulus}_desc-{desc}_image.png").is_file()
    for name in (
        "desc-ridge_model.h5",
        "desc-ridge_model.json",
        "space-func3mm_label-nsdgeneral_mask.nii.gz",
    ):
        assert (func / f"{stem}_{name}").is_file()
    for desc in ("recon", "null", "oracle"):
        table = read_tsv(func / f"{stem}_desc-{desc}_metrics.tsv")
        assert table["stimulus_id"] == [f"stim-{i}" for i in TEST_IDS]
        described = json.loads((func / f"{stem}_desc-{desc}_metrics.json").read_text())
        assert set(table) <= set(described)
    summary = read_tsv(func / f"{stem}_desc-summary_metrics.tsv")
    assert set(summary["condition"]) == {"brain", "null", "oracle"}
    assert set(summary["stage"]) == {"stage1", "stage2"}
    page = (out / f"sub-{subject}.html").read_text()
    assert "embedded" in page
    assert "Traceback" not in page


def test_the_summary_is_the_mean_of_the_table(out):
    stem = out / "sub-01" / "func" / "sub-01_task-tiny"
    summary = read_tsv(Path(f"{stem}_desc-summary_metrics.tsv"))
    files = {"brain": "recon", "null": "null", "oracle": "oracle"}
    checked = 0
    for i, condition in enumerate(summary["condition"]):
        table = read_tsv(Path(f"{stem}_desc-{files[condition]}_metrics.tsv"))
        values = np.array(table[f"{summary['stage'][i]}_{summary['metric'][i]}"], dtype=float)
        assert float(summary["mean"][i]) == pytest.approx(values.mean(), abs=1e-4)
        checked += 1
    assert checked >= 3 * 2 * 4


def test_the_group_level_gathers_both(out):
    table = read_tsv(out / "phenotype" / "reconmetrics.tsv")
    assert table["participant_id"] == ["sub-01", "sub-02"]
    assert (out / "phenotype" / "reconmetrics.json").is_file()
    page = (out / "group.html").read_text()
    assert "sub-01.html" in page
    assert "sub-02.html" in page


def test_the_validator_passes(out, validate):
    assert validate(out) == []


def test_the_dataset_says_who_made_it(out):
    described = json.loads((out / "dataset_description.json").read_text())
    assert described["GeneratedBy"][0]["Name"] == "bidsapp-recon"
    assert described["DatasetType"] == "derivative"
    settings = tomllib.loads(next(out.glob("logs/sub-01/*/run.toml")).read_text())
    assert settings["recipe"]["name"] == "embedded"
    run = settings["run"]
    assert (run["seed"], run["roi"], run["skip_bids_validation"]) == (0, ["nsdgeneral"], False)
    assert Path(run["bids_dir"]).is_dir()
    assert settings["machine"]["host"] == platform.node()
    assert settings["machine"]["peak_memory_of_process"] > 50_000_000
    assert "participant" not in settings["command"] or "bidsapp-recon" in settings["command"]
    log = next(out.glob("logs/sub-01/*/run.log")).read_text()
    assert "targets" in log


def test_nothing_unfinished_is_left(out):
    assert list(out.rglob("*partial*")) == []


def test_reports_alone_are_written_again_from_the_output_folder(out, bids, tmp_path, capsys):
    copy = tmp_path / "out"
    shutil.copytree(out, copy, ignore=shutil.ignore_patterns(".work"))
    before = hashes(copy, "sub-*.html", "*.png")
    (copy / "sub-01.html").write_text("lost")
    (copy / "sub-02.html").unlink()
    assert run(tmp_path / "no-input", copy, "participant", "--reports-only") == 0
    assert str(copy / "sub-01.html") in capsys.readouterr().out
    assert hashes(copy, "sub-*.html", "*.png") == before
    assert run(tmp_path, copy, "participant", "--reports-only", "--participant-label", "03") == 66
    assert "sub-03" in capsys.readouterr().err
    record = next(copy.glob("logs/sub-01/*/report.npz"))
    record.write_bytes(record.read_bytes()[:1000])
    assert run(tmp_path, copy, "participant", "--reports-only", "--participant-label", "01") == 65
    assert "report.npz" in capsys.readouterr().err
    record.unlink()
    assert run(tmp_path, copy, "participant", "--reports-only", "--participant-label", "sub-01") == 66
    assert run(tmp_path, copy, "group", "--reports-only") == 64


def test_a_second_run_finds_every_stage(out, bids, capsys):
    before = hashes(out, "*.png", "*.tsv", "*.h5", "*.nii.gz")
    model = next(out.glob("sub-01/func/*_model.h5"))
    written = model.stat().st_mtime_ns
    (record,) = (out / "logs" / "sub-01").glob("*_done.json")
    record.unlink()  # otherwise the stages are not asked
    words = ("participant", "--participant-label", "sub-01", "--recipe", "embedded", "--keep-work")
    assert run(bids, out, *words) == 0
    said = capsys.readouterr().err
    assert said.count("found from an earlier run") >= 10
    assert model.stat().st_mtime_ns == written
    assert "computing" not in said
    assert hashes(out, "*.png", "*.tsv", "*.h5", "*.nii.gz") == before


def test_a_dry_run_writes_nothing(bids, tmp_path, capsys):
    before = hashes(bids, "*")
    assert run(bids, tmp_path / "out", "participant", "--dry-run", "--recipe", "embedded") == 0
    said = capsys.readouterr().out
    assert "sub-01: 2 sessions, 24 trials, 8 training and 4 test images" in said
    assert list(tmp_path.iterdir()) == []
    assert hashes(bids, "*") == before


def test_a_dry_run_of_the_group_writes_nothing(out, bids, tmp_path, capsys):
    copy = tmp_path / "out"
    shutil.copytree(out, copy, ignore=shutil.ignore_patterns(".work", "phenotype", "group.html", "*.png"))
    before = hashes(copy, "*")
    assert run(bids, copy, "group", "--dry-run") == 0
    assert "sub-02" in capsys.readouterr().out
    assert hashes(copy, "*") == before


def test_the_same_seed_gives_the_same_bytes(bids, tmp_path, quick):
    def made(name: str, seed: int) -> dict[str, str]:
        folder = tmp_path / name
        words = (bids, folder / "out", "participant", "--participant-label", "02", "--recipe", quick)
        assert run(*words, "-w", folder / "work", "--seed", seed, "--skip-bids-validation") == 0
        return hashes(folder / "out" / "sub-02" / "func", "*.png", "*.tsv")

    first, again, other = made("a", 5), made("b", 5), made("c", 6)
    assert first == again
    assert first.keys() == other.keys()
    images = [name for name in first if name.endswith("desc-recon_image.png")]
    assert len(images) == len(TEST_IDS)
    assert [name for name in images if first[name] == other[name]] == []


def with_a_bad_last_trial(path: Path) -> None:
    """Make betas fail when they are masked: the trials that are looked at before a run are sound."""
    image = nib.load(path)
    values = np.asarray(image.dataobj, dtype=np.float32)
    values[..., -1] = np.nan
    nib.save(nib.Nifti1Image(values, image.affine), path)


@pytest.fixture
def with_a_broken_subject(tiny_dataset) -> Callable[[str], Path]:
    def make(label: str) -> Path:
        folder = tiny_dataset(n_subjects=2, n_trials=6)
        with_a_bad_last_trial(next(folder.glob(f"sub-{label}/ses-s2/func/*statmap.nii.gz")))
        return folder

    return make


def test_one_broken_subject_does_not_stop_the_other(with_a_broken_subject, tmp_path, quick, capsys, validate):
    folder, out = with_a_broken_subject("01"), tmp_path / "out"
    assert run(folder, out, "participant", "--recipe", quick, "--skip-bids-validation") == 1
    said = capsys.readouterr().err
    assert "sub-01 failed" in said
    assert "Failed: 01. Done: 02." in said
    assert list(out.glob("sub-01/func/*_image.png")) == []
    assert len(list(out.glob("sub-02/func/*_desc-recon_image.png"))) == 2
    assert "statmap.nii.gz" in (out / "sub-01.html").read_text()
    assert "statmap.nii.gz" in next(out.glob("logs/sub-01/*/run.log")).read_text()
    assert run(folder, out, "group") == 0
    assert read_tsv(out / "phenotype" / "reconmetrics.tsv")["participant_id"] == ["sub-02"]
    assert validate(out) == []


def test_stop_on_first_crash(with_a_broken_subject, tmp_path, quick):
    folder, out = with_a_broken_subject("01"), tmp_path / "out"
    words = (folder, out, "participant", "--recipe", quick, "--skip-bids-validation", "--stop-on-first-crash")
    assert run(*words) == 1
    assert not (out / "sub-02").exists()
    assert (out / "sub-01.html").is_file()


def test_missing_models_are_named_before_anything_is_computed(bids, tmp_path, capsys):
    recipe = recipe_file(tmp_path, models={"location": "models-dir"})
    words = (bids, tmp_path / "out", "participant", "--recipe", recipe, "--skip-bids-validation")
    assert run(*words, "--models-dir", tmp_path / "weights") == 75
    said = capsys.readouterr().err
    assert str(tmp_path / "weights" / "vdvae") in said
    assert "--models-dir" in said
    assert not (tmp_path / "out").exists()


def test_an_unknown_protocol_is_named_before_anything_is_computed(bids, tmp_path, capsys):
    recipe = recipe_file(tmp_path, metrics={"protocol": "moon"})
    words = (bids, tmp_path / "out", "participant", "--recipe", recipe, "--skip-bids-validation")
    assert run(*words) == 65
    assert "'moon'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def averaged_betas(bids: Path, subject: str, stimuli: list[str]) -> np.ndarray:
    """Mean response to each stimulus, (images, all voxels in Fortran order), in float64."""
    total, count = None, np.zeros(len(stimuli))
    for betas in sorted(bids.glob(f"sub-{subject}/ses-*/func/*desc-singletrial_statmap.nii.gz")):
        data = np.asarray(nib.load(betas).dataobj, dtype=np.float64) / 300
        flat = data.reshape(-1, data.shape[3], order="F").T
        shown = read_tsv(next(betas.parent.glob("*_trials.tsv")))["stim_id"]
        total = np.zeros((len(stimuli), flat.shape[1])) if total is None else total
        for row, stimulus in zip(flat, shown, strict=True):
            if stimulus.removeprefix("stim-") in stimuli:
                place = stimuli.index(stimulus.removeprefix("stim-"))
                total[place] += row
                count[place] += 1
    return total / count[:, None]


@pytest.mark.parametrize(("roi", "n_trials"), [("nsdgeneral", 12), ("V1d", 108)])
def test_the_model_file_alone_predicts_the_latents(roi, n_trials, tiny_dataset, tmp_path):
    """With fewer images than voxels, and with more."""
    bids, work = tiny_dataset(n_subjects=1, n_trials=n_trials), tmp_path / "work"
    recipe = recipe_file(tmp_path, diffusion={"steps": 2}, controls={"null": False, "oracle": False})
    words = (bids, tmp_path / "out", "participant", "--recipe", recipe, "--roi", roi, "-w", work)
    assert run(*words, "--skip-bids-validation", "--save-weights", "--keep-work") == 0
    x = averaged_betas(bids, "01", [f"pic{i:03d}" for i in range(n_trials // 3)])
    with load_model(next((tmp_path / "out").glob("sub-01/func/*_model.h5"))) as model:
        responses = x[:, model.voxel_index]
        predicted = model.predict(responses)
        assert model.targets == tuple(sorted(load_recipe("embedded").target_names))
        for name, targets in predicted.items():
            made = np.load(work / "sub-01" / "latents_brain" / f"{name}.npy")
            raw = np.load(work / "sub-01" / "latents_brain" / f"{name}_raw.npy")
            assert made.shape == targets.shape
            assert np.abs(made - targets).max() < 1e-3 * np.abs(made).max(), name
            assert model.error(name)[0] < 1e-3
            if name != "clip_text":  # these captions may all read the same to a small vocabulary
                assert np.ptp(made, axis=0).max() > 0
            by_weights = (x[:, model.voxel_index] - model._mean) / model._std @ model.weights(name).T
            by_weights += raw.mean(0) - by_weights.mean(0)
            assert np.abs(by_weights - raw).max() < 1e-3 * np.abs(raw).max()


def test_penalties_chosen_of_a_list_are_recorded(tiny_dataset, tmp_path):
    bids, out = tiny_dataset(n_subjects=1, n_trials=24), tmp_path / "out"
    lists = {"vdvae": [1.0, 100.0, 1e6], "clip_vision": [50.0, 5e4]}
    targets = {name: {"alpha": alphas, "stored": "float32"} for name, alphas in lists.items()}
    recipe = recipe_file(tmp_path, targets=targets, diffusion={"steps": 2}, controls={"oracle": False})
    assert run(bids, out, "participant", "--recipe", recipe, "--skip-bids-validation") == 0
    sidecar = json.loads(next(out.glob("sub-01/func/*_model.json")).read_text())
    chosen = sidecar["AlphaSelection"]
    assert chosen["Method"] == "leave-one-out"
    assert chosen["Tried"] == lists
    for name, errors in chosen["MeanSquaredErrors"].items():
        assert sidecar["Alphas"][name] == chosen["Tried"][name][int(np.argmin(errors))]
    assert sidecar["Alphas"]["clip_text"] == 2000.0
    with load_model(next(out.glob("sub-01/func/*_model.h5"))) as model:
        assert {name: model.alpha(name) for name in model.targets} == sidecar["Alphas"]
        kept = model._file["targets/vdvae"].attrs
        np.testing.assert_allclose(kept["held_out_errors"], chosen["MeanSquaredErrors"]["vdvae"])
    page = (out / "sub-01.html").read_text()
    assert "penalty chosen by leave-one-out from 1, 100, 1e+06" in page
    settings = tomllib.loads(next(out.glob("logs/sub-01/*/run.toml")).read_text())
    assert settings["recipe"]["targets"]["vdvae"]["alpha"] == [1.0, 100.0, 1e6]


def test_without_controls_only_the_brain_is_reported(tiny_dataset, tmp_path):
    bids = tiny_dataset(n_subjects=1, n_trials=6)
    recipe = recipe_file(tmp_path, diffusion={"steps": 2}, controls={"null": False, "oracle": False})
    assert run(bids, tmp_path / "out", "participant", "--recipe", recipe) == 0
    summary = read_tsv(next((tmp_path / "out").glob("sub-01/func/*_desc-summary_metrics.tsv")))
    assert set(summary["condition"]) == {"brain"}
    assert list((tmp_path / "out").glob("sub-01/func/*_desc-null_*")) == []


def test_the_demo(tmp_path, capsys, validate):
    folder = tmp_path / "demo"
    small = ("--n-subjects", 1, "--n-train", 24, "--n-test", 5)
    assert run("demo", folder, "--simulate-only", *small) == 0
    assert validate(folder / "bids") == []
    assert not (folder / "out").exists()
    simulated = hashes(folder / "bids", "*")
    capsys.readouterr()
    assert run("demo", folder, *small) == 0
    said = capsys.readouterr().out
    assert hashes(folder / "bids", "*") == simulated
    for metric in ("pixcorr", "ssim", "two_way_small_clip", "top1_small_clip"):
        assert metric in said
    assert str(folder / "out" / "sub-01.html") in said
    assert (folder / "out" / "group.html").is_file()
    assert validate(folder / "out") == []


def test_the_choice_of_sessions_and_voxels_is_recorded(tiny_dataset, tmp_path, quick, validate):
    bids, out = tiny_dataset(n_subjects=1, n_trials=12, n_sessions=3), tmp_path / "out"
    path = next(bids.rglob("*noiseceiling_statmap.nii.gz"))
    image = nib.load(path)
    ceiling = np.linspace(0, 80, np.prod(image.shape)).reshape(image.shape).astype(np.float32)
    nib.save(nib.Nifti1Image(ceiling, image.affine), path)
    words = ("participant", "--recipe", quick, "--max-sessions", 2, "--min-noise-ceiling", 35)
    assert run(bids, out, *words, "--roi", "V1d", "hV4") == 0
    labels = np.asarray(nib.load(next(bids.rglob("*_dseg.nii.gz"))).dataobj)
    region = (labels == 2) | (labels == 3)
    chosen = region & (ceiling >= 35)
    assert 0 < chosen.sum() < region.sum()
    mask = next((out / "sub-01" / "func").glob("*_mask.nii.gz"))
    assert np.array_equal(np.asarray(nib.load(mask).dataobj) > 0, chosen)
    sidecar = json.loads(mask.with_name(mask.name.replace(".nii.gz", ".json")).read_text())
    assert sidecar["RegionsOfInterest"] == ["V1d", "hV4"]
    assert (sidecar["RegionVoxels"], sidecar["Voxels"]) == (region.sum(), chosen.sum())
    assert sidecar["NoiseCeiling"]["Minimum"] == 35
    assert sidecar["NoiseCeiling"]["Source"].endswith(path.name)
    record = tomllib.loads(next(out.glob("logs/sub-01/*/run.toml")).read_text())
    counted = {"sessions": ["s1", "s2"], "trials": 24}
    counted |= {"region_voxels": region.sum(), "chosen_voxels": chosen.sum()}
    assert {name: record["data"][name] for name in counted} == counted
    settings = record["run"]
    assert (settings["max_sessions"], settings["min_noise_ceiling"]) == (2, 35.0)
    page = " ".join(re.sub("<[^>]*>", " ", (out / "sub-01.html").read_text()).split())
    for words in (
        "Sessions 2 Trials 24 Trials of training and test images 24 Training images 8 Test images 4",
        f"Voxels in the region of interest {region.sum()}",
        f"Voxels with a noise ceiling of 35% or more {chosen.sum()}",
        "Times shown Training images Test images 2 8 4",
    ):
        assert words in page
    assert validate(out) == []


def test_outputs_of_an_earlier_run_do_not_linger(bids, tmp_path):
    recipe, split, out = recipe_file(tmp_path), tmp_path / "split.tsv", tmp_path / "out"
    common = ("participant", "--participant-label", "01", "--recipe", recipe, "--skip-bids-validation")
    assert run(bids, out, *common) == 0
    func = out / "sub-01" / "func"
    before = {p.name for p in func.glob("*_desc-recon_image.png")}
    table = read_tsv(bids / "stimuli" / "stimuli.tsv")
    tests = [i for i, s in zip(table["stimulus_id"], table["split"], strict=True) if s == "test"]
    rows = [(i, s) for i, s in zip(table["stimulus_id"], table["split"], strict=True) if i != tests[0]]
    split.write_text("stimulus_id\tsplit\n" + "".join(f"{i}\t{s}\n" for i, s in rows))
    assert run(bids, out, *common, "--split", split) == 0
    after = {p.name for p in func.glob("*_desc-recon_image.png")}
    assert after < before
    scored = read_tsv(next(func.glob("*_desc-recon_metrics.tsv")))["stimulus_id"]
    assert len(after) == len(before) - 1 == len(scored)


def test_a_failed_rerun_removes_its_scores_and_the_groups(bids, tmp_path, validate, capsys):
    recipe, out, broken = recipe_file(tmp_path), tmp_path / "out", tmp_path / "broken"
    common = ("participant", "--recipe", recipe, "--skip-bids-validation")
    assert run(bids, out, *common) == 0
    assert run(bids, out, "group") == 0
    shutil.copytree(bids, broken)
    for path in (broken / "sub-01").glob("ses-*/func/*_statmap.nii.gz"):
        with_a_bad_last_trial(path)
    assert run(broken, out, *common, "--participant-label", "01") == 1
    assert not list((out / "sub-01" / "func").glob("*_metrics.*"))
    assert not (out / "group.html").exists()
    assert not (out / "phenotype" / "reconmetrics.tsv").exists()
    assert "The group's table and report had sub-01's scores" in capsys.readouterr().err
    assert run(bids, out, "group") == 0
    assert read_tsv(out / "phenotype" / "reconmetrics.tsv")["participant_id"] == ["sub-02"]
    assert validate(out) == []
    fresh = tmp_path / "fresh"
    assert run(broken, fresh, *common, "--participant-label", "01") == 1
    assert validate(fresh) == []


def test_the_group_says_where_settings_differ(bids, tmp_path, caplog):
    recipe, out = recipe_file(tmp_path), tmp_path / "out"
    common = ("participant", "--recipe", recipe, "--skip-bids-validation")
    assert run(bids, out, *common, "--participant-label", "01") == 0
    assert run(bids, out, *common, "--participant-label", "02", "--seed", "5") == 0
    assert run(bids, out, "group") == 0
    page = (out / "group.html").read_text()
    assert "Subjects differ in the seed" in page
    assert "Subjects differ in the split" not in page
