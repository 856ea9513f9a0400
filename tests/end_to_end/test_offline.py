"""Without a network: weights that are missing stop a run before it begins, with the very command to run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from helpers.published_models import write_recipe

from bidsapp import cli
from bidsapp.models.weights import fetching
from bidsapp.models.weights.registry import VARIABLE


@pytest.fixture(scope="module")
def bids(tiny_dataset) -> Path:
    return tiny_dataset(n_subjects=1, n_trials=6)


@pytest.fixture
def fetched(monkeypatch) -> list[tuple[set[str], Path]]:
    """What the subcommand was asked to fetch, and where to."""
    asked: list[tuple[set[str], Path]] = []

    def note(needed, root, **_) -> int:
        asked.append(({f"{item.folder}/{item.file.names[-1]}" for item in needed}, root))
        return 0

    monkeypatch.setattr(fetching, "fetch", note)
    return asked


def command_of(message: str) -> list[str]:
    (command,) = set(re.findall(r"run: (bidsapp-recon fetch-models .+) \(or give", message))
    return shlex.split(command)


@pytest.mark.parametrize("given", ["option", "variable", "nothing"])
def test_the_command_that_is_named_fetches_what_is_missing(
    given, bids, tmp_path, monkeypatch, capsys, fetched
):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a cache"))
    folder, out = tmp_path / "my $models' folder", tmp_path / "out"
    words = [str(bids), str(out), "participant", "--skip-bids-validation"]
    if given == "option":
        words += ["--models-dir", str(folder)]
    elif given == "variable":
        monkeypatch.setenv(VARIABLE, str(folder))
    else:
        folder = tmp_path / "a cache" / "bidsapp-recon" / "models"
    assert cli.main(words) == 75  # brain-diffuser, the default for a dataset that was not simulated
    assert sorted(path.name for path in tmp_path.iterdir()) == []
    program, *rest = command_of(capsys.readouterr().err)
    assert program == "bidsapp-recon"
    monkeypatch.delenv(VARIABLE, raising=False)  # it is all in the command
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    assert cli.main(rest) == 0
    ((files, root),) = fetched
    assert root == folder
    assert "vdvae-imagenet64/imagenet64-iter-1600000-model-ema.th" in files
    assert "versatile-diffusion/text_unet/diffusion_pytorch_model.bin" in files
    assert "evaluation/swav_800ep_pretrain.pth.tar" in files


def test_a_recipe_file_is_named_as_it_was_given(bids, tmp_path, monkeypatch, capsys, fetched):
    folder = tmp_path / "my recipes"
    folder.mkdir()
    write_recipe(folder)
    monkeypatch.chdir(tmp_path)
    words = [str(bids), "out", "participant", "--recipe", "my recipes/small.toml", "--models-dir", "models"]
    assert cli.main([*words, "--skip-bids-validation"]) == 75
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my recipes"]
    assert cli.main(command_of(capsys.readouterr().err)[1:]) == 0
    ((files, root),) = fetched
    assert root == Path("models")
    judges = [name for name in files if name.startswith("evaluation/")]
    assert judges == ["evaluation/alexnet-owt-7be5be79.pth"]


def test_a_dry_run_says_so_too(bids, tmp_path, capsys):
    words = [str(bids), str(tmp_path / "out"), "participant", "--dry-run", "--skip-bids-validation"]
    assert cli.main([*words, "--models-dir", str(tmp_path)]) == 75
    assert command_of(capsys.readouterr().err)[1:] == [
        "fetch-models",
        *("--recipe", "brain-diffuser"),
        *("--models-dir", str(tmp_path)),
    ]
