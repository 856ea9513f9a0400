"""Exit codes and messages of the command, and what it imports."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

import bidsapp
from bidsapp import cli
from bidsapp.errors import AppError, ExitCode


@pytest.fixture(autouse=True)
def _own_process_state(monkeypatch):
    """The command sets thread counts and logging for its whole process; undo that."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    root, app = logging.getLogger(), logging.getLogger("bidsapp")
    before = root.handlers[:], root.level, app.level
    yield
    root.handlers[:], root.level, app.level = before


@pytest.fixture(scope="module")
def dataset(tiny_dataset) -> Path:
    return tiny_dataset(n_subjects=1, n_trials=6)


def run(*words: object) -> int:
    return cli.main([str(w) for w in words])


def test_unknown_level(tmp_path, capsys):
    assert run(tmp_path, tmp_path / "out", "session") == 17
    assert "participant or group" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["bids"],
        ["bids", "out"],
        ["bids", "out", "participant", "more"],
        ["bids", "out", "participant", "--nonsense"],
        ["bids", "out", "participant", "--mem", "8"],
        ["bids", "out", "participant", "--seed", "-1"],
        ["bids", "out", "participant", "--n-cpus", "0"],
        ["bids", "out", "participant", "--device", "abacus"],
        ["bids", "out", "participant", "--space"],
        ["bids", "out", "participant", "--recipe", "no-such-recipe"],
        ["demo"],
        ["demo", "here", "--n-train", "3"],
    ],
)
def test_wrong_usage(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 64
    assert capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_no_input(tmp_path, capsys):
    assert run(tmp_path / "nowhere", tmp_path / "out", "participant") == 66
    assert "nowhere" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run(empty, tmp_path / "out", "participant") == 66
    assert run(tmp_path, tmp_path / "nowhere", "group") == 66


def test_a_mistyped_folder_is_all_that_is_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("BIDSAPP_RECON_MODELS", str(tmp_path / "no-models"))
    assert run(tmp_path / "nowhere", tmp_path / "out", "participant", "--recipe", "brain-diffuser") == 66
    said = capsys.readouterr().err
    assert str(tmp_path / "nowhere") in said
    assert "no-models" not in said
    assert "fetch-models" not in said


def test_a_mistyped_roi_gets_a_suggestion(tmp_path, dataset, capsys):
    words = ("--roi", "nsdgenral", "--recipe", "embedded", "--skip-bids-validation")
    assert run(dataset, tmp_path / "out", "participant", *words) == 66
    assert "Did you mean 'nsdgeneral'" in capsys.readouterr().err


def test_the_group_names_subjects_that_were_only_prepared(tmp_path, capsys):
    (tmp_path / "logs" / "sub-01" / "20260101T000000-abcdef").mkdir(parents=True)
    assert run(tmp_path, tmp_path, "group") == 66
    said = capsys.readouterr().err
    assert "sub-01: it has logs but no results yet" in said
    assert "--prepare" in said


def test_not_bids(tmp_path, dataset, capsys):
    (tmp_path / "sub-01").mkdir()
    (tmp_path / "notes.txt").write_text("no dataset")
    assert run(tmp_path, tmp_path / "out", "participant") == 16
    assert "dataset_description.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("BIDS", "caf\udce9", "participant"),
        ("caf\udce9", "OUT", "participant"),
        ("BIDS", "OUT", "participant", "-w", "caf\udce9"),
        ("BIDS", "caf\udce9", "group"),
        ("demo", "caf\udce9", "--simulate-only"),
        ("slurm", "BIDS", "caf\udce9", "--", "--seed", "1"),
    ],
)
def test_arguments_that_are_not_utf_8_are_refused_at_once(words, tmp_path, dataset, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*(str(dataset) if word == "BIDS" else word for word in words)) == 64
    said = capsys.readouterr().err
    assert r"caf\udce9" in said
    assert "not UTF-8" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ("", "OUT", "participant"),
        ("BIDS", "", "participant", "--dry-run"),
        ("BIDS", "OUT", "participant", "--work-dir="),
        ("demo", "", "--simulate-only"),
    ],
)
def test_an_empty_argument_is_not_the_current_folder(words, tmp_path, dataset, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*(str(dataset) if word == "BIDS" else word for word in words)) == 64
    assert "is empty" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_working_folder_that_is_not_utf_8(tmp_path, dataset, monkeypatch, capsys):
    place = tmp_path / "caf\udce9"
    place.mkdir()
    monkeypatch.chdir(place)
    assert run(dataset, "out", "participant", "--skip-bids-validation") == 73
    assert "not UTF-8" in capsys.readouterr().err
    assert list(place.iterdir()) == []


def test_the_validator_runs_unless_told_not_to(tmp_path, tiny_dataset, validate, capsys):
    wrong = tiny_dataset(n_subjects=1, n_trials=6)
    (wrong / "sub-01" / "func" / "holiday.txt").write_text("not BIDS")
    assert validate(wrong)
    words = (wrong, tmp_path / "out", "participant", "--dry-run", "--task-label", "other")
    assert run(*words) == 16
    assert "holiday.txt" in capsys.readouterr().err
    assert run(*words, "--skip-bids-validation") == 18


@pytest.mark.parametrize(
    "option", [("--participant-label", "77"), ("--task-label", "x"), ("--space", "moon")]
)
def test_nothing_matches(option, tmp_path, dataset, capsys):
    code = run(dataset, tmp_path / "out", "participant", "--skip-bids-validation", *option)
    said = capsys.readouterr().err
    assert code == 18
    assert option[1] in said
    if option[0] == "--participant-label":
        assert "01" in said
    assert not (tmp_path / "out").exists()


def test_a_folder_named_as_a_subcommand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("./demo", "out", "participant") == 66
    assert "demo" in capsys.readouterr().err
    assert run("demo", "out", "participant") == 64


def test_version(capsys):
    assert run("--version") == 0
    assert bidsapp.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["demo", "--help"]])
def test_help(words, capsys):
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert "--seed" in said
    assert "--n-cpus" in said


def test_unforeseen_errors(monkeypatch, capsys):
    def fails(error):
        def main(**_):
            raise error

        return main

    cases = [
        (AppError("told", exit_code=ExitCode.BAD_DATA), 65, "Error: told"),
        (AppError("plain"), 1, "Error: plain"),
        (FileNotFoundError(2, "No such file", "gone.txt"), 74, "gone.txt"),
        (KeyError("secret"), 70, "report"),
    ]
    for error, code, said in cases:
        monkeypatch.setattr(cli.app, "main", fails(error))
        assert run("a", "b", "participant") == code
        text = capsys.readouterr().err
        assert said in text
        assert "Traceback" not in text
        assert run("a", "b", "participant", "-vv") == code, "more words change no exit code"
        assert "Traceback" in capsys.readouterr().err


def test_control_c(monkeypatch, capsys):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.app, "callback", interrupted)
    assert run("a", "b", "participant") == 130
    assert "to resume" in capsys.readouterr().err


def test_help_and_refusals_import_nothing_heavy():
    code = """
import json, sys
from bidsapp import cli
codes = [cli.main(["--help"]), cli.main(["demo", "-h"]), cli.main(["a", "b", "nonsense"]), cli.main([])]
print(json.dumps([codes, sorted({m.partition(".")[0] for m in sys.modules})]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    codes, modules = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0, 0, 17, 0]
    heavy = {"torch", "numpy", "pandas", "nibabel", "bids", "transformers", "diffusers", "sklearn", "nilearn"}
    heavy |= {"scipy", "h5py", "matplotlib", "PIL", "jinja2", "skimage"}
    assert heavy & set(modules) == set()


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "bidsapp", "a", "b", "no-level"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 17
    assert "Error" in done.stderr
