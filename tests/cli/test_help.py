"""Help in groups, suggestions for mistyped words, completion in a shell, and options that fMRIPrep has."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from bidsapp import cli
from bidsapp.cli import app
from bidsapp.cli.bids_app import SUBCOMMANDS
from bidsapp.cli.command import subcommand
from bidsapp.config import GROUPS, OPTIONS

IO = ("bids", "out", "participant")


def parse(*words: str) -> dict:
    return app.make_context("bidsapp-recon", list(words)).params


def test_help_has_subcommands_first_options_in_groups_and_examples_last(capsys):
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    headings = re.findall(r"^(\w[\w ]*):$", text, re.MULTILINE)
    assert headings == ["Subcommands", *GROUPS, "Examples"]
    for name in SUBCOMMANDS:
        assert re.search(rf"^  {name}  +\w", text, re.MULTILINE)
    for option in OPTIONS.values():
        assert not option.flag or option.flag in text
    assert cli.main(["--help"]) == 0
    assert capsys.readouterr().out == text


def test_every_option_of_every_command_has_a_help_text():
    for command in (app, *map(subcommand, SUBCOMMANDS)):
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, (command.name, option.name)


def test_help_is_quick():
    start = time.perf_counter()
    code = "from bidsapp.cli import main; main(['--help'])"
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
    assert time.perf_counter() - start < 5  # half a second on a quiet machine


@pytest.mark.parametrize(
    ("words", "code", "suggestion"),
    [
        (["dmo", "here"], 64, "'demo'"),
        (["nsd2bid", "a", "b"], 17, "'nsd2bids'"),
        (["fetch-model"], 64, "'fetch-models'"),
        (["slrum", "bids", "out"], 17, "'slurm'"),
        (["bids", "out", "particpant"], 17, "'participant'"),
        (["bids", "out", "Group"], 17, "'group'"),
        ([*IO, "--participant-lable", "01"], 64, "--participant-label"),
        ([*IO, "--recipe", "brain-difuser"], 64, "'brain-diffuser'"),
        (["demo", "here", "--n-subject", "2"], 64, "--n-subjects"),
    ],
)
def test_mistyped_words_get_a_suggestion(words, code, suggestion, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == code
    said = capsys.readouterr().err
    assert "Did you mean" in said
    assert suggestion in said
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_taken_for_a_subcommand(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demos").mkdir()
    assert cli.main(["demos", "out"]) == 64
    assert "Did you mean" not in capsys.readouterr().err


def complete(line: str, monkeypatch, capsys) -> list[str]:
    monkeypatch.setenv("_BIDSAPP_RECON_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    assert cli.main([]) == 0
    return [found.partition(",")[2] for found in capsys.readouterr().out.split()]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("bidsapp-recon de", ["demo"]),
        ("bidsapp-recon bids out par", ["participant"]),
        ("bidsapp-recon bids out participant --n-c", ["--n-cpus"]),
        ("bidsapp-recon bids out participant --n_c", ["--n-cpus"]),
        ("bidsapp-recon bids out participant --device cp", ["cpu"]),
        ("bidsapp-recon bids out participant --force ri", ["ridge"]),
        ("bidsapp-recon --participant-label 01 02 --roi V1 -v bids out gr", ["group"]),
        ("bidsapp-recon bids out participant --participant_label 01 02 --dr", ["--dry-run"]),
        ("bidsapp-recon bids out participant --recipe emb", ["embedded"]),
        ("bidsapp-recon demo here --simul", ["--simulate-only"]),
        ("bidsapp-recon nsd2bids a b --space func", ["func1pt8mm", "func1mm"]),
    ],
)
def test_completion(line, found, monkeypatch, capsys):
    assert complete(line, monkeypatch, capsys) == found


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_bash_reads_the_completion_script(tmp_path):
    script = subprocess.run(
        [sys.executable, "-m", "bidsapp"],
        env=os.environ | {"_BIDSAPP_RECON_COMPLETE": "bash_source"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "Couldn't detect Bash version" not in script.stderr:
        assert script.returncode == 0
    done = subprocess.run(["bash", "-n"], input=script.stdout, text=True, check=False)
    assert done.returncode == 0
    assert "complete -o nosort -F" in script.stdout


def test_options_as_users_of_fmriprep_know_them():
    assert parse(*IO, "--nthreads", "3", "--omp-nthreads", "2")["n_cpus"] == 3
    assert parse(*IO, "--omp_nthreads", "2")["omp_nthreads"] == 2
    assert parse(*IO, "--mem-mb", "8000")["mem"] == 8_000_000_000
    assert parse(*IO, "--mem_mb=8000")["mem"] == 8_000_000_000
    assert parse(*IO, "--mem-mb", "8GiB")["mem"] == 8 * 1024**3
    with pytest.raises(click.UsageError, match="no known unit"):
        parse(*IO, "--mem", "8000")
    plain = parse(*IO)
    assert parse(*IO, "--notrack", "--bids-database-dir", "somewhere") == plain


def test_the_methods_text_alone(tmp_path, capsys):
    words = [str(tmp_path / "bids"), str(tmp_path / "out"), "participant", "--recipe", "brain-diffuser"]
    assert cli.main([*words, "--boilerplate-only"]) == 0
    path = tmp_path / "out" / "logs" / "CITATION.md"
    assert capsys.readouterr().out == f"{path}\n"
    assert "Brain-Diffuser" in path.read_text()
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == [path]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--boilerplate-only", "--reports-only"), "are two steps"),
        (("--prepare", "--shard", "1/2"), "are two steps"),
        (("--reports-only", "--dry-run"), "does not go with --dry-run"),
        (("--boilerplate-only", "--dry-run"), "does not go with --dry-run"),
    ],
)
def test_parts_of_a_run_exclude_each_other(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*IO, *words]) == 64
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def with_file(tmp_path: Path, text: str, *words: str) -> dict:
    path = tmp_path / "options.toml"
    path.write_text(text)
    return parse(*IO, "--config-file", str(path), *words)


@pytest.mark.parametrize("line", ["mem_mb = 8000", "mem-mb = 8000", "mem_mb = '8000'", "mem_mb = '8GB'"])
def test_memory_in_a_file_as_in_fmriprep(line, tmp_path):
    assert with_file(tmp_path, line)["mem"] == 8_000_000_000


def test_options_from_a_file(tmp_path):
    text = """
        n_cpus = 3
        participant-label = ["01", "02"]
        min_noise_ceiling = 12.5
        mem = "8GB"
        cluster-holdout = true
        verbose = 2
        nthreads = 4
        derivatives = ["rois=/rois"]
        seed = 5
    """
    found = with_file(tmp_path, text, "--seed", "6", "--participant-label", "03")
    assert (found["seed"], found["participant_label"]) == (6, ("03",)), "the command line takes precedence"
    assert (found["min_noise_ceiling"], found["mem"], found["verbose"]) == (12.5, 8 * 10**9, 2)
    assert (found["cluster_holdout"], found["n_cpus"]) == (True, 4)
    assert found["derivatives"] == (("rois", Path("/rois")),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed = 1", "Did you mean 'seed'"),
        ("mem_m = 1", "Did you mean 'mem_mb'"),
        ("seed = true", "seed should be a text or a number"),
        ("seed = 1.5", "1.5"),
        ("roi = 'V1'", "roi should be a list"),
        ("roi = [[1]]", "roi should be a list"),
        ("dry_run = 'yes'", "dry_run should be true or false"),
        ("verbose = -1", "verbose should be a whole number"),
        ("device = 'abacus'", "abacus"),
        ("mem = 8000", "no known unit"),
    ],
)
def test_wrong_options_in_a_file(text, message, tmp_path, capsys):
    path = tmp_path / "options.toml"
    path.write_text(text)
    assert cli.main([*IO, "--config-file", str(path)]) == 64
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("content", "code"), [(b"seed =", 65), (b"\xff", 65), (None, 66)])
def test_files_that_cannot_be_read(content, code, tmp_path, capsys):
    path = tmp_path / "options.toml"
    if content is not None:
        path.write_bytes(content)
    assert cli.main([*IO, "--config-file", str(path)]) == code
    assert "options.toml" in capsys.readouterr().err


def test_the_record_of_a_run_is_a_file_of_options(tmp_path):
    from bidsapp.cli.bids_app import make_config
    from bidsapp.outputs.provenance import settings_of, write_settings

    words = ("--recipe", "embedded", "--roi", "V1", "hV4", "--mem", "8GB", "-d", "rois=/rois", "--seed", "4",
             "--max-sessions", "2", "--cluster-holdout", "--force", "ridge", "--n-cpus", "2")  # fmt: skip
    config = make_config(parse(*IO, *words))
    write_settings(tmp_path / "run.toml", {"command": "x", **settings_of(config), "versions": {"a": "1"}})
    again = make_config(parse(*IO, "--config-file", str(tmp_path / "run.toml")))
    assert again.recorded() == config.recorded()
    assert again.affecting_results() == config.affecting_results()


def test_mistyped_networks_get_a_suggestion():
    from bidsapp.config import load_recipe
    from bidsapp.planning.check import unknown_names

    recipe = load_recipe("brain-diffuser")
    networks = ("incepton", *recipe.metrics.networks[1:])
    metrics = recipe.metrics.model_copy(update={"networks": networks})
    problems = unknown_names(recipe.model_copy(update={"metrics": metrics}))
    assert "Did you mean 'inception'" in problems[0].what
