"""The subcommand ``slurm`` on a real one-node SLURM that the test starts: slow; skipped without SLURM."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.slurm_cluster import Cluster, NotStartable, cluster

from bidsapp.config import RECIPES
from bidsapp.outputs.provenance import write_settings
from bidsapp.storage.text import read_tsv

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[Cluster]:
    try:
        with cluster(tmp_path_factory.mktemp("slurm")) as running:
            print(running.run("sinfo", "--version"))
            yield running
    except NotStartable as why:
        banner = "#" * 72
        message = f"\n{banner}\n#### SKIPPED: the test on a real SLURM\n#### {why}\n{banner}"
        print(message)
        pytest.skip(message)


@pytest.fixture(scope="module")
def folder(tiny_dataset, tmp_path_factory) -> Path:
    """Dataset and quick recipe, under a name that bash and sbatch could trip over."""
    folder = tmp_path_factory.mktemp("on a 100% 'cluster'")
    content = tomllib.loads((RECIPES / "embedded.toml").read_text())
    content["diffusion"] |= {"steps": 4}
    content["metrics"] |= {"networks": ["small_clip"]}
    content["controls"] |= {"max_images": 2}
    write_settings(folder / "quick.toml", content)
    tiny_dataset(n_subjects=2, n_trials=12).rename(folder / "bids")
    return folder


def submit(
    slurm: Cluster, folder: Path, out: Path, *words: str, run: tuple[str, ...] = ()
) -> tuple[Path, dict[str, str]]:
    """Submit a run; give the folder of its scripts and the ids of its jobs."""
    command = [sys.executable, "-m", "bidsapp", "slurm", folder / "bids", out, "--submit", "--cpus", "1"]
    options = ["--", "--recipe", folder / "quick.toml", "--device", "cpu", "--skip-bids-validation", *run]
    words_of = list(map(str, [*command, *words, *options]))
    done = subprocess.run(words_of, env=slurm.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    scripts = sorted((out / "logs" / "slurm").iterdir())[-1]
    return scripts, dict(re.findall(r"^(\w+): job (\d+)$", done.stdout, re.MULTILINE))


def ended(slurm: Cluster, job: str) -> bool:
    return not {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"} & set(slurm.states(job).values())


def said(scripts: Path, name: str) -> str:
    return (scripts / name).read_text() if (scripts / name).is_file() else ""


def outputs(out: Path) -> dict[str, str]:
    """Content of all outputs but logs and reports, which tell times."""
    files = (p for p in out.rglob("*") if p.is_file() and not {".work", "logs"} & set(p.parts))
    kept = (p for p in files if p.suffix not in {".html", ".lock"})
    return {p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in kept}


@pytest.fixture(scope="module")
def first(slurm, folder) -> tuple[Path, Path, dict[str, str]]:
    """A run of two subjects, the second of which is cancelled while it computes."""
    out = folder / "out"
    scripts, jobs = submit(slurm, folder, out)
    second = f"participant-{jobs['participant']}_1.log"
    slurm.wait(lambda: "zscore: computing" in said(scripts, second), 180, "the second task to compute")
    slurm.run("scancel", f"{jobs['participant']}_1")
    slurm.wait(lambda: ended(slurm, jobs["group"]), 300, "the group job to end")
    return out, scripts, jobs


def test_a_cancelled_task_ends_cleanly_and_the_group_has_the_other(slurm, first):
    out, scripts, jobs = first
    assert slurm.states(jobs["participant"]) == {"0": "COMPLETED", "1": "CANCELLED"}
    assert slurm.states(jobs["group"]) == {"": "COMPLETED"}
    log = said(scripts, f"participant-{jobs['participant']}_1.log")
    assert "Stopped by SIGTERM. Run the same command again to resume." in log
    assert not [p for p in out.rglob("*") if "partial" in p.name or p.suffix == ".owner"]
    assert read_tsv(out / "phenotype" / "reconmetrics.tsv")["participant_id"] == ["sub-01"]


@pytest.fixture(scope="module")
def plain(folder, slurm) -> Path:
    """Both levels without SLURM."""
    plain = folder / "plain"
    command = [sys.executable, "-m", "bidsapp", str(folder / "bids"), str(plain)]
    run = [
        "--recipe",
        str(folder / "quick.toml"),
        "--device",
        "cpu",
        "--skip-bids-validation",
        "--n-cpus",
        "1",
    ]
    for words in (["participant", *run], ["group"]):
        subprocess.run([*command, *words], capture_output=True, check=True)
    return plain


def test_submitted_again_it_goes_on_to_the_same_bytes(slurm, first, plain, validate):
    out, scripts, _ = first
    again = subprocess.run(
        ["bash", str(scripts / "submit.sh")], env=slurm.environ, capture_output=True, text=True, check=True
    )
    jobs = dict(re.findall(r"^(\w+): job (\d+)$", again.stdout, re.MULTILINE))
    slurm.wait(lambda: ended(slurm, jobs["group"]), 300, "the group job to end")
    assert slurm.states(jobs["participant"]) == {"0": "COMPLETED", "1": "COMPLETED"}
    assert slurm.states(jobs["group"]) == {"": "COMPLETED"}
    assert "sub-01: already done" in said(scripts, f"participant-{jobs['participant']}_0.log")
    assert "betas: found from an earlier run" in said(scripts, f"participant-{jobs['participant']}_1.log")
    assert read_tsv(out / "phenotype" / "reconmetrics.tsv")["participant_id"] == ["sub-01", "sub-02"]
    assert validate(out) == []
    assert outputs(out) == outputs(plain)


def test_one_subject_over_shards(slurm, folder, plain):
    out = folder / "shards"
    scripts, jobs = submit(slurm, folder, out, "--shards", "2", run=("--participant-label", "01"))
    assert list(jobs) == ["prepare", "shard", "gather", "group"]
    slurm.wait(lambda: ended(slurm, jobs["group"]), 300, "the group job to end")
    logs = {path.name: path.read_text() for path in scripts.glob("*.log")}
    states = {name: slurm.states(job) for name, job in jobs.items()}
    assert set(states.pop("shard").values()) == {"COMPLETED"}, logs
    assert states == {
        "prepare": {"0": "COMPLETED"},
        "gather": {"0": "COMPLETED"},
        "group": {"": "COMPLETED"},
    }, logs
    made = outputs(out)
    of_subject = {name: digest for name, digest in outputs(plain).items() if name.startswith("sub-01/")}
    assert {name: digest for name, digest in made.items() if name.startswith("sub-01/")} == of_subject
    assert any("image" in name for name in of_subject)


def test_a_job_that_slurm_refuses_is_one_message(slurm, folder):
    command = [sys.executable, "-m", "bidsapp", "slurm", folder / "bids", folder / "refused", "--submit"]
    run = ["--partition", "nowhere", "--", "--recipe", folder / "quick.toml", "--skip-bids-validation"]
    done = subprocess.run(
        [*map(str, command), *map(str, run)], env=slurm.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 75
    assert "SLURM refused the jobs" in done.stderr
    assert "invalid partition" in done.stderr
    assert "Submitted before that: nothing" in done.stderr
