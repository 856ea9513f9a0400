"""The plan that --dry-run prints, and which stages earlier runs have already finished."""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.damage import snapshot

from bidsapp import cli
from bidsapp.config import RECIPES, RunConfig, load_recipe
from bidsapp.models.suite import EMBEDDED
from bidsapp.outputs.provenance import write_settings
from bidsapp.planning.check import check_run
from bidsapp.planning.describe import describe_run
from bidsapp.planning.estimate import estimate_resources
from bidsapp.storage.stages import NotThere, Stages, Survey

pytestmark = pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded weights are not there")
PARTS = ["betas", "targets", "ridge", "latents", "stage 1", "stage 2", "scores", "outputs"]


@pytest.fixture(scope="module")
def bids(tiny_dataset: Callable[..., Path]) -> Path:
    return tiny_dataset(n_subjects=2, n_trials=6)


@pytest.fixture(scope="module")
def done(bids: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the work folder of a run of the first subject, and its quick recipe."""
    folder = tmp_path_factory.mktemp("done")
    content = tomllib.loads((RECIPES / "embedded.toml").read_text())
    content["diffusion"] |= {"steps": 2}
    content["metrics"] |= {"networks": ["small_clip"]}
    write_settings(folder / "quick.toml", content)
    assert run(bids, folder, "--participant-label", "01", "--keep-work") == 0
    return folder


def run(bids: Path, folder: Path, *words: object) -> int:
    quick = folder / "quick.toml"
    recipe = quick if quick.exists() else "embedded"
    common = ("--recipe", recipe, "--skip-bids-validation", "--device", "cpu", "--n-cpus", "1")
    given = [bids, folder / "out", "participant", "-w", folder / "work", *common, *words]
    return cli.main([str(w) for w in given])


def plan(bids: Path, folder: Path, capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, str]:
    """Lines of the plan for each subject, below its first."""
    capsys.readouterr()
    before = snapshot(folder)
    assert run(bids, folder, "--dry-run", *words) == 0
    assert snapshot(folder) == before
    head, *subjects = re.split(r"^sub-(\d+): ", capsys.readouterr().out, flags=re.MULTILINE)
    assert str(folder / "work") in head
    return dict(zip(subjects[::2], subjects[1::2], strict=True))


def test_the_plan_names_stages_sizes_and_needs(bids, tmp_path, capsys):
    for text in plan(bids, tmp_path, capsys).values():
        lines = text.split("\n")
        assert lines[0].startswith(
            "2 sessions, 12 trials, 4 training and 2 test images of stimuli.tsv, 210 voxels"
        )
        assert "of memory" in lines[1]
        assert "in the work folder" in lines[1]
        assert "in the output folder" in lines[1]
        assert lines[2].startswith("  time: roughly ")
        assert [line[4:12].strip() for line in lines[3:11]] == PARTS
        assert "11 images of 64 x 64, 37 steps" in text
        assert "found" not in text


def test_the_plan_names_what_options_add(bids, tmp_path, capsys):
    words = ("--generator-seeds", "3", "--cluster-holdout", "--roi-analysis")
    for text in plan(bids, tmp_path, capsys, *words).values():
        lines = {line[4:12].strip(): line for line in text.split("\n")[3:12]}
        assert list(lines) == [*PARTS[:-1], "options", "outputs"]
        # Two further seeds of the ladder's two images, and regions V1 and hV4.
        assert "17 images of 64 x 64, 37 steps (6 of them for options)" in lines["stage 2"]
        assert "30 images" in lines["scores"]
        assert "too few test images for clusters; 2 regions, each compared with 200" in lines["options"]


def test_stages_of_an_earlier_run_are_listed(bids, done, capsys):
    said = plan(bids, done, capsys)
    told = {line[4:12].strip(): line.partition("; ")[2] for line in said["01"].split("\n")[3:11]}
    assert told["betas"] == told["ridge"] == "found, will be used"
    for name in ("targets", "latents", "stage 1", "stage 2"):
        assert told[name].endswith("if its models and settings are the same")
    assert told["scores"] == told["outputs"] == ""
    assert "found, will be used\n" not in said["02"]


@pytest.mark.parametrize(
    ("words", "betas", "ridge"),
    [
        (("--roi", "V1"), False, False),
        (("--max-sessions", "1"), False, False),
        (("--min-noise-ceiling", "40"), True, True),  # the same voxels, as all have 40 %
        (("--seed", "3"), True, False),
    ],
)
def test_stages_that_other_options_invalidate_are_not_listed(bids, done, capsys, words, betas, ridge):
    text = plan(bids, done, capsys, "--participant-label", "01", *words)["01"]
    lines = {line[4:12].strip(): line for line in text.split("\n")[3:11]}
    assert lines["betas"].endswith("found, will be used") == betas
    assert lines["ridge"].endswith("found, will be used") == ridge


def test_the_plan_and_the_run_agree(bids, done, tmp_path, capsys):
    """What the plan says is found is what a run finds."""
    shutil.copytree(done / "work", tmp_path / "work")
    shutil.copy(done / "quick.toml", tmp_path)
    capsys.readouterr()
    assert run(bids, tmp_path, "--participant-label", "01", "--seed", "3") == 0
    said = capsys.readouterr().err
    for stage in ("betas", "responses", "zscore"):
        assert f"{stage}: found from an earlier run" in said
    assert "ridge: recomputing" in said


def test_memory_of_an_accelerator(bids, tmp_path):
    config = RunConfig(
        bids_dir=bids,
        output_dir=tmp_path / "out",
        work_dir=tmp_path / "work",
        recipe=load_recipe("embedded"),
        device="cpu",
        skip_bids_validation=True,
    )
    made = check_run(config)
    paper = replace(config, recipe=load_recipe("brain-diffuser"), device="cuda")
    subjects = {}
    for label, subject in made.subjects.items():
        sizes = replace(subject.sizes, image_cost=537_000_000)
        subjects[label] = replace(subject, sizes=sizes, estimate=estimate_resources(paper, sizes))
    text = describe_run(replace(made, device="cuda", subjects=subjects), paper)
    assert "Device: cuda" in text
    assert text.count("cuda: about 3.5 GB of its memory for the models, 537.0 MB per image of a batch") == 2
    assert text.count("time: not known") == 2


def test_a_survey_computes_nothing(tmp_path):
    survey = Survey(tmp_path / "work")
    with pytest.raises(NotThere):
        survey.run("a", {}, lambda _: pytest.fail("computed"))
    assert survey.found == set()
    assert list(tmp_path.iterdir()) == []
    made = Stages(tmp_path / "work").run("a", {"x": 1}, lambda _: {})
    assert survey.run("a", {"x": 1}, lambda _: pytest.fail("computed")).key == made.key
    assert survey.found == {"a"}
