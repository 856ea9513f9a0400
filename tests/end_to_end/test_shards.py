"""Shards: however many there are, and whoever is killed, the outputs have the same bytes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from helpers.output_tree import outputs

from bidsapp import cli
from bidsapp.config import RECIPES
from bidsapp.models.suite import EMBEDDED
from bidsapp.outputs.provenance import write_settings
from bidsapp.participant.lock import subject_lock

pytestmark = pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded weights are not there")


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> list[str]:
    """Two images at once: three blocks of the brain's five, and more of the ladder's."""
    folder = tmp_path_factory.mktemp("sharded")
    content = tomllib.loads((RECIPES / "embedded.toml").read_text())
    content["diffusion"] |= {"steps": 2, "batch": 2}
    content["metrics"] |= {"networks": ["small_clip"]}
    content["controls"] |= {"max_images": 3}
    write_settings(folder / "quick.toml", content)
    words = ("--recipe", folder / "quick.toml", "--device", "cpu", "--n-cpus", 1, "--generator-seeds", 2)
    return [*map(str, words), "--roi-analysis", "--skip-bids-validation"]


@pytest.fixture(scope="module")
def bids(tiny_dataset) -> Path:
    return tiny_dataset(n_subjects=1, n_trials=15)


@pytest.fixture(scope="module")
def plain(bids, options, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "out"
    assert cli.main([str(bids), str(out), "participant", *options]) == 0
    return out


def made(out: Path) -> dict[str, bytes]:
    return {f"{p.parent.name}/{p.name}": p.read_bytes() for p in (out / ".work").rglob("*.safetensors")}


def test_three_shards_and_one_give_the_bytes_of_a_plain_run(bids, options, plain, tmp_path, capsys):
    out, one = tmp_path / "out", tmp_path / "one"
    for folder in (out, one):  # what subjects share: the models' check, and targets
        shutil.copytree(plain / ".work", folder / ".work", ignore=shutil.ignore_patterns(".*"))

    def run(*words: str, to: Path = out) -> str:
        capsys.readouterr()
        assert cli.main([str(bids), str(to), "participant", *options, *words]) == 0
        return capsys.readouterr().err

    said = run("--prepare")
    assert "stage1_regions: computing" in said
    assert "ready for stage 2:" in said
    assert "stage2_" not in said
    assert "has 5 of 15 blocks; 5 blocks of 9 images are left to make" in run("--shard", "1/3")
    first = made(out)
    assert len(first) == 5
    for k in (2, 3):
        assert "computing" not in run("--shard", f"{k}/3")
    blocks = made(out)
    assert len(blocks) == 15
    assert len({name.split("/")[0] for name in blocks}) == 8  # brain, ladder, a further seed, regions
    assert blocks.items() >= first.items()
    assert "; 0 blocks of 0 images are left to make" in run("--shard", "2/3")
    assert "stage2_brain" not in [p.name for p in (out / ".work" / "sub-01").iterdir()]
    assert not (out / "sub-01").exists()  # shards write nothing but logs
    assert [p.name for p in out.iterdir() if p.name != ".work"] == ["logs"]
    capsys.readouterr()
    assert cli.main([str(bids), str(out), "participant", *options, "--dry-run"]) == 0
    assert "3 of 3 blocks found, will be used if" in capsys.readouterr().out
    damaged = out / ".work" / "sub-01" / "stage2_brain.blocks" / "00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    said = run("--keep-work")
    assert "stage2_brain: resumed; 3 of 3 blocks are from an earlier run" in said
    assert "stage2_brain: block 1 is damaged" in said
    assert outputs(out) == outputs(plain)
    assert not made(out)
    assert "already done by run" in run("--shard", "1/3")

    assert "computing first what stage 2 needs" in run("--shard", "1/1", to=one)
    assert made(one) == blocks  # nothing of a block tells who made it
    run(to=one)
    assert outputs(one) == outputs(plain)


@pytest.mark.slow
def test_shards_at_once_share_and_a_killed_one_costs_its_block(bids, options, plain, tmp_path):
    """Three start together and nothing is prepared; one is killed, the plain command does its work."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "bidsapp", str(bids), str(out), "participant", *options]
    shards = [
        subprocess.Popen([*command, "--shard", f"{k}/3"], stderr=subprocess.PIPE, text=True)
        for k in (1, 2, 3)
    ]
    deadline = time.monotonic() + 300
    while not made(out) and time.monotonic() < deadline:
        time.sleep(0.02)
    shards[0].kill()
    said = [process.communicate()[1] for process in shards]
    assert [process.returncode for process in shards[1:]] == [0, 0], said
    assert sum("computing first what stage 2 needs" in text for text in said) == 1
    gathered = subprocess.run(command, capture_output=True, text=True, check=False)
    assert gathered.returncode == 0, gathered.stderr
    assert "blocks are from an earlier run" in gathered.stderr
    assert outputs(out) == outputs(plain)
    assert not list(out.rglob("*partial*"))


def test_a_plain_run_beside_shards_and_a_shard_beside_a_plain_run_exit_75(bids, options, tmp_path, capsys):
    out = tmp_path / "out"
    words = [str(bids), str(out), "participant", *options]
    with subject_lock("01", out, out / ".work", together=True):
        assert cli.main(words) == 75
        assert cli.main([*words, "--prepare"]) == 75
    with subject_lock("01", out, out / ".work"):
        assert cli.main([*words, "--shard", "1/2"]) == 75
    assert "another job works on this subject" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        *(
            ["--shard", value]
            for value in ("0/3", "4/3", "1/0", "1", "1/3/3", "a/b", "-1/3", "1.0/2", "１/２", "")
        ),
        ["--shard", "1/2", "--prepare"],
        ["--shard", "1/2", "--force", "stage2"],
    ],
    ids=" ".join,
)
def test_what_is_no_shard_is_refused(words, tmp_path, capsys):
    assert cli.main([str(tmp_path), str(tmp_path / "out"), "participant", *words]) == 64
    assert cli.main([str(tmp_path), str(tmp_path / "out"), "group", "--shard", "1/2"]) == 64
    assert "Error: " in capsys.readouterr().err
