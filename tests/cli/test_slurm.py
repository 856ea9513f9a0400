"""The subcommand ``slurm``: what its scripts request and run, and that they quote everything."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bidsapp import cli
from bidsapp.errors import AppError
from bidsapp.planning.estimate import ResourceEstimate
from bidsapp.slurm.binds import Bind, binds, linked_to
from bidsapp.slurm.resources import Resources, asks_for_gpu, is_time, memory_limit, most_shards, time_limit
from bidsapp.slurm.scripts import Expression, Job, Site, batch_script

ODD = """it's "odd" $(touch pwned) `x` \\ {subject} *"""


@pytest.fixture(scope="module")
def dataset(tiny_dataset) -> Path:
    return tiny_dataset(n_subjects=2, n_trials=6)


@pytest.fixture
def slurm(dataset, tmp_path, capsys):
    """Run the subcommand on the dataset; gives its output and the folder of its scripts."""

    def run(*words: object, code: int = 0) -> tuple[str, Path | None]:
        before = ["slurm", str(dataset), str(tmp_path / "out")]
        at = words.index("--") if "--" in words else len(words)
        after = ["--", "--recipe", "embedded", "--skip-bids-validation", *words[at + 1 :]]
        assert cli.main([*before, *map(str, words[:at]), *map(str, after)]) == code, capsys.readouterr().err
        said = capsys.readouterr()
        folders = sorted((tmp_path / "out" / "logs" / "slurm").glob("*"))
        return said.out + said.err, folders[-1] if folders else None

    return run


def command_of(script: Path) -> list[str]:
    """Words of a script's last command, as bash splits them."""
    text = script.read_text()
    return shlex.split(text[text.index("\nexec ") :].replace("\\\n", ""))[1:]


def header(script: Path) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script.read_text(), re.MULTILINE))


def test_scripts_of_a_plain_installation(slurm, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said, folder = slurm(
        "--partition", "gpu", "--account", "lab", "--qos", "long", "--time", "1-12", "--mem", "3GiB",
        "--cpus", "2", "--max-concurrent", "5", "--sbatch", "--constraint=a100&ib",
        "--setup", "module load x",
        "--", "--roi", "V1v", "hV4", "-w", "work", "--derivatives", f"rois={dataset}", "-vv", "--dry-run",
    )  # fmt: skip
    assert {p.name for p in folder.iterdir()} == {"participant.sh", "group.sh", "submit.sh"}
    asked = header(folder / "participant.sh")
    assert asked == {
        "job-name": "bidsapp-recon-participant",
        "array": "0-1%5",
        "partition": "gpu",
        "account": "lab",
        "qos": "long",
        "nodes": "1",
        "ntasks": "1",
        "cpus-per-task": "2",
        "mem": "3072M",
        "time": "1-12",
        "output": f"{folder}/participant-%A_%a.log",
        "open-mode": "append",
        "requeue": "",
        "signal": "B:TERM@60",
        "constraint": "a100&ib",
    }
    text = (folder / "participant.sh").read_text()
    assert text.index("set +u") < text.index("module load x") < text.index("set -u") < text.index("exec")
    words = command_of(folder / "participant.sh")
    place = [sys.executable, "-m", "bidsapp", str(dataset), str(tmp_path / "out"), "participant"]
    assert words[: len(place)] == place
    rest = " ".join(words[len(place) :])
    for part in (
        "--participant-label $subject --n-cpus $SLURM_CPUS_PER_TASK --mem ${SLURM_MEM_PER_NODE}MiB",
        "--roi V1v --roi hV4",
        f"--work-dir {tmp_path / 'work'}", f"--derivatives rois={dataset}", "--verbose",
        "--recipe embedded", "--dry-run",
    ):  # fmt: skip
        assert part in rest
    assert rest.count("--verbose") == 2
    assert command_of(folder / "group.sh")[-3:] == [str(dataset), str(tmp_path / "out"), "group"]
    assert "array" not in header(folder / "group.sh")
    submit = (folder / "submit.sh").read_text()
    assert 'group=$(sbatch --parsable --dependency=afterany:"${participant%%;*}" group.sh)' in submit
    assert f"bash {folder / 'submit.sh'}" in said
    # What SLURM would do, without it: the second task, as far as its plan.
    task = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_CPUS_PER_TASK": "1", "SLURM_MEM_PER_NODE": "3072"}
    text = text.replace("module load x", "true")
    done = subprocess.run(
        ["bash", "-c", text], env=os.environ | task, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "sub-02: 2 sessions" in done.stdout
    assert "sub-01" not in done.stdout


def test_shards_and_a_gpu_in_a_container(slurm, dataset, tmp_path):
    sif, extra, work = tmp_path / "app.sif", tmp_path / "extra", tmp_path / "work"
    sif.write_bytes(b"")
    extra.mkdir()
    split = tmp_path / "splits" / "split.tsv"
    split.parent.mkdir()
    shutil.copy(dataset / "stimuli" / "stimuli.tsv", split)
    said, folder = slurm(
        "--sif", sif, "--gpus", "a100:1", "--time", "60", "--shards", "3", "--group-partition", "cpu",
        "--bind", extra, "--", "-w", work, "--split", split, "--participant-label", "02",
        "--force", "stage2",
    )  # fmt: skip
    names = ["prepare", "shard", "gather", "group"]
    assert {p.stem for p in folder.iterdir()} == {*names, "submit"}
    assert [header(folder / f"{n}.sh").get("array") for n in names] == ["0-0", "0-2", "0-0", None]
    assert [header(folder / f"{n}.sh").get("gres") for n in names] == ["gpu:a100:1"] * 3 + [None]
    assert header(folder / "group.sh")["partition"] == "cpu"
    order = re.findall(r"^(\w+)=\$\(sbatch.*?(?:afterany:\"\$\{(\w+))?[^$]* \w+\.sh\)$",
                       (folder / "submit.sh").read_text(), re.MULTILINE)  # fmt: skip
    assert order == [("prepare", ""), ("shard", "prepare"), ("gather", "shard"), ("group", "gather")]
    words = command_of(folder / "shard.sh")
    assert words[:5] == ["apptainer", "run", "--containall", "--no-home", "--nv"]
    bound = {words[i + 1] for i, w in enumerate(words) if w == "--bind"}
    out = tmp_path / "out"
    here = [f"{p}:{p}" for p in (out, work)] + [f"{p}:{p}:ro" for p in (dataset, split.parent, extra)]
    assert bound == set(here)
    assert words[words.index("--shard") + 1] == "$shard"
    assert words[-2:] == ["--device", "cuda"]
    assert "--prepare" in command_of(folder / "prepare.sh")
    assert ["--force" in command_of(folder / f"{n}.sh") for n in names] == [True, False, False, False]
    assert not {"--prepare", "--shard"} & set(command_of(folder / "gather.sh"))
    group = command_of(folder / "group.sh")
    assert "--nv" not in group
    assert "3 tasks" in said


def test_shares_of_the_array_are_each_subject_s_shards():
    job = Job("shard", "x", Resources("60", 1, 1), [["echo", Expression("$subject"), Expression("$shard")]],
              ("01", "02"), 3)  # fmt: skip
    script = batch_script(job, Site(), "p", Path("/logs"))
    said = [
        subprocess.run(
            ["bash", "-c", script], env={"SLURM_ARRAY_TASK_ID": str(i)}, capture_output=True, text=True
        ).stdout.strip()
        for i in range(job.n_tasks)
    ]
    assert said == ["01 1/3", "01 2/3", "01 3/3", "02 1/3", "02 2/3", "02 3/3"]


def test_nothing_of_the_user_s_is_bash(tmp_path):
    words = [ODD, "a b", "", "*", "~", "$HOME", "!!", "-n", "é"]
    job = Job("x", "x", Resources("60", 1, 1), [["printf", "%s\\n", *words]], folders=(tmp_path / ODD,))
    script = batch_script(job, Site(), "p", Path("/logs"))
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == words
    assert (tmp_path / ODD).is_dir()
    assert not list(tmp_path.glob("**/pwned"))


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck(slurm):
    _, folder = slurm("--shards", "2", "--setup", "true")
    scripts = [str(p) for p in folder.glob("*.sh")]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--partition", "a b"], "single word"),
        (["--time", "soon"], "not a time limit"),
        (["--sbatch", "constraint"], "not an option of sbatch's"),
        (["--setup", "a\nb"], "not one line"),
        (["--gpus", "1", "--gres", "gpu:1"], "give one"),
        (["--gpus", "0"], "[TYPE:]N"),
        (["--gpus", "two"], "[TYPE:]N"),
        (["--sbatch", "--array=0-9"], "correspond to subjects"),
        (["--sbatch=--gpus-per-node=1"], "--gpus or --gres"),
        (["--sbatch", "-t 60"], "give --time instead"),
        (["--roi", "V1v"], "write it after --"),
        (["--", "--n-cpus", "3"], "--cpus before the --"),
        (["--", "--mem", "3GB"], "--mem before the --"),
        (["--", "--shard", "1/2"], "--shards before the --"),
        (["--", "--prepare"], "--shards before the --"),
        (["--", "--device", "cuda"], "--gpus 1"),
        (["--", "group"], "'group' is not one"),
        (["--", "--nonsense"], "--nonsense"),
    ],
)
def test_refused(slurm, words, message):
    said, folder = slurm(*words, code=64)
    assert message in said
    assert folder is None


def test_options_from_a_file_are_written_into_the_scripts(slurm, tmp_path):
    path = tmp_path / "options.toml"
    path.write_text('roi = ["V1v"]\nn_cpus = 7\nmem = "9GB"\nseed = 3\n')
    _, folder = slurm("--cpus", "2", "--time", "60", "--", "--config-file", path)
    words = " ".join(command_of(folder / "participant.sh"))
    assert "--roi V1v" in words
    assert "--seed 3" in words
    assert words.count("--n-cpus") == words.count("--mem") == 1
    assert "--config-file" not in words
    path.write_text("prepare = true\n")
    assert "--shards before the --" in slurm("--", "--config-file", path, code=64)[0]


def test_other_refusals(slurm, tmp_path, monkeypatch):
    assert "does not exist" in slurm("--sif", tmp_path / "none.sif", code=66)[0]
    assert "--mem 10.0 MB is too little" in slurm("--mem", "10MB", code=75)[0]
    assert "Give a generous --time" in slurm("--gpus", "1", code=64)[0]  # no rate was measured there
    assert "No betas" in slurm("--", "--participant-label", "77", code=18)[0]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "sbatch was not found" in slurm("--submit", code=64)[0]
    monkeypatch.setenv("BIDSAPP_RECON_CONTAINER", "x")
    assert "give --sif" in slurm(code=64)[0]


def test_time_and_memory_have_the_stated_margin():
    def needs(memory: int, **seconds: float | None) -> ResourceEstimate:
        names = ("betas", "targets", "ridge", "latents", "stage 1", "stage 2", "scores", "options")
        return ResourceEstimate(memory, 0, seconds={n: seconds.get(n.replace(" ", ""), 0.0) for n in names})

    few, many = needs(10**9, stage2=600.0), needs(8 * 1024**3, stage2=36_000.0, targets=3600.0, options=60.0)
    assert time_limit([few]) == "0-00:45:00"  # 3 x 10 min + 15 min
    assert time_limit([few, many]) == "1-09:30:00"  # 3 x (11 h + 1 min) + 15 min
    assert time_limit([many], "prepare", 4) == "0-03:15:00"
    assert time_limit([many], "shard", 4) == "0-07:45:00"
    assert time_limit([many], "gather", 4) == "0-00:30:00"
    assert memory_limit([few, many]) == 10 * 1024
    assert memory_limit([few]) == 2 * 1024
    assert all(map(is_time, ("90", "01:30:00", "1-0", "1-00:30", "2-00:00:00", "30:00")))
    assert not any(map(is_time, ("", "1h", "1:2", "-1", "1 2", "\N{ARABIC-INDIC DIGIT THREE}0")))


def test_a_shard_has_time_for_a_block():
    need = ResourceEstimate(1, 0, seconds={"stage 2": 36_000.0}, images=100, at_once=10)
    assert time_limit([need], "shard", 4) == "0-09:15:00"  # 3 of 10 blocks: 3 x 3 h + 15 min
    assert time_limit([need], "shard", 50) == "0-03:15:00"  # a block is not split
    assert most_shards([need, replace(need, images=105)]) == 11
    assert most_shards([replace(need, at_once=0)]) == 100  # a block's size is not known: an image at least


def test_more_shards_than_blocks_are_named(slurm):
    assert "--shards 5000: stage 2 has at most" in slurm("--shards", "5000", "--time", "60")[0]
    assert "nothing to do" not in slurm("--shards", "2", "--time", "60")[0]


def test_a_gpu_among_other_generic_resources(slurm):
    _, folder = slurm("--gres", "scratch:10,gpu:1", "--time", "60")
    assert command_of(folder / "participant.sh")[-2:] == ["--device", "cuda"]
    found = [
        asks_for_gpu(g) for g in (None, "scratch:10", "gpu", "gpu:a100:1", "gres:gpu:2", "tmp:1,gres/gpu:1")
    ]
    assert found == [False, False, True, True, True, True]


def test_what_chooses_nodes_stays_off_a_partition_of_the_group_s_own():
    site = Site(partition="gpu", directives=("--constraint=a100", "-C ib", "--mail-type=END", "--exclusive"))
    job = Job("group", "x", Resources("60", 1, 1), [["true"]])
    there = batch_script(replace(job, partition="cpu"), site, "p", Path("/logs"))
    assert re.findall("a100|ib$|END|exclusive", there, re.MULTILINE) == ["END"]
    assert "a100" in batch_script(job, site, "p", Path("/logs"))


def test_binds_are_few_and_reach_what_links_lead_to(tmp_path):
    far, deep = tmp_path / "far" / "betas", tmp_path / "deep"
    for folder in (far, deep, tmp_path / "bids" / ".git"):
        folder.mkdir(parents=True)
    (deep / "real.nii").write_bytes(b"x")
    (far / "a.nii").symlink_to(deep / "real.nii")
    bids = tmp_path / "bids"
    (bids / "a.nii").symlink_to("../far/betas/a.nii")
    (bids / "inside").symlink_to("a.nii")
    (bids / "nowhere").symlink_to("/no/such/file")
    (bids / ".git" / "x").symlink_to(tmp_path)
    assert linked_to(bids) == sorted([far, deep])
    (tmp_path / "alias").symlink_to(bids)
    assert bids in linked_to(tmp_path / "alias")
    out = tmp_path / "out"
    found = binds([bids, bids / "sub", deep / "real.nii", out / ".work"], [out, out / ".work"])
    assert found == [Bind(bids), Bind(deep), Bind(out, True)]
    with pytest.raises(AppError, match="cannot be bound"):
        binds([tmp_path / "a:b"], [])
