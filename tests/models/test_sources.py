"""Weights of a recipe: their sources, where they are looked for, and the subcommand that fetches them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from helpers.published_models import write_models, write_recipe

from bidsapp import cli
from bidsapp.config import load_recipe
from bidsapp.errors import ExitCode
from bidsapp.metrics.protocols import published_protocols
from bidsapp.models.judges.protocol_networks import find_checkpoint
from bidsapp.models.weights import fetching
from bidsapp.models.weights import lock as weights_lock
from bidsapp.models.weights import registry as weights
from bidsapp.models.weights.registry import files_to_fetch, load_registry, missing_models, models_root
from bidsapp.models.weights.verification import record, verify
from bidsapp.planning.check import evaluation_networks

PUBLISHED = "imagenet64-iter-1600000-model-ema.th"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return write_models(tmp_path_factory.mktemp("sources") / "models")


def test_every_published_network_has_a_source():
    files = {f.names[-1]: f for p in load_registry() if p.name == "evaluation" for f in p.files}
    for protocol in published_protocols().values():
        for use in protocol.networks.values():
            if use.file:
                assert files[use.file].url.endswith(f"/{use.file}")
    for name, file in files.items():
        stem = name.removesuffix(".pth")
        if name.endswith(".pth"):  # torchvision's names end in the start of their SHA-256
            assert file.sha256_start == stem[-8:]
            int(file.sha256_start, 16)


def test_every_source_is_complete():
    for part in load_registry():
        assert part.title
        assert part.licence
        assert part.homepage.startswith("https://")
        assert bool(part.repository) == bool(re.fullmatch("[0-9a-f]{40}", part.revision))  # never a branch
        for file in part.files:
            assert sum(map(bool, (file.url, file.packaged, part.repository))) == 1
            assert not file.url or (
                file.url.startswith("https://") and file.url.endswith(f"/{file.names[-1]}")
            )
            assert not file.sha256 or len(file.sha256) == 64


def test_converted_checkpoints_are_found_where_they_are_looked_for(tmp_path):
    """Readers and registry agree on the name of an evaluation network that was converted."""
    for part in load_registry():
        for file in part.files if part.name == "evaluation" else ():
            converted = tmp_path / file.names[0]
            converted.touch()
            assert find_checkpoint(tmp_path, file.names[-1]) == converted
            converted.unlink()
            assert find_checkpoint(tmp_path, file.names[-1]) == tmp_path / file.names[-1]


def names_of(recipe: str) -> set[str]:
    loaded = load_recipe(recipe)
    return {f"{n.folder}/{n.file.names[-1]}" for n in files_to_fetch(loaded, evaluation_networks(loaded))}


def test_what_a_recipe_needs():
    assert names_of("embedded") == set()
    paper = names_of("brain-diffuser")
    assert f"vdvae-imagenet64/{PUBLISHED}" in paper
    assert "versatile-diffusion/image_unet/diffusion_pytorch_model.bin" in paper
    assert "evaluation/efficientnet_b1_rwightman-bac287d4.pth" in paper
    assert "evaluation/efficientnet_b1-c27df63c.pth" not in paper  # of the other protocol
    assert not [n for n in paper if "clip-vit" in n]  # Versatile Diffusion brings CLIP ViT-L/14
    other = names_of("sd15-ip-adapter")
    assert "sd15-ip-adapter/models/ip-adapter_sd15.safetensors" in other
    assert "evaluation/clip-vit-large-patch14/config.json" in other
    assert f"vdvae-imagenet64/{PUBLISHED}" in other


def test_where_weights_are_looked_for(monkeypatch, tmp_path):
    recipe = load_recipe("brain-diffuser")
    monkeypatch.delenv(weights.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models_root(recipe, None) == tmp_path / "bidsapp-recon" / "models"
    monkeypatch.setenv(weights.VARIABLE, str(tmp_path / "here"))
    assert models_root(recipe, None) == tmp_path / "here"
    assert models_root(recipe, tmp_path / "there") == tmp_path / "there"
    assert models_root(load_recipe("embedded"), tmp_path) == weights.EMBEDDED


def test_each_missing_folder_is_one_problem(tmp_path):
    recipe = load_recipe("brain-diffuser")
    problems = missing_models(recipe, tmp_path, evaluation_networks(recipe))
    assert [p.path for p in problems] == [
        str(tmp_path / folder) for folder in ("vdvae-imagenet64", "versatile-diffusion", "evaluation")
    ]
    for problem in problems:
        assert problem.code == ExitCode.TRY_AGAIN
        assert f"bidsapp-recon fetch-models --recipe brain-diffuser --models-dir {tmp_path}" in problem.fix


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging is set up for a whole process; leave that of the tests alone."""
    monkeypatch.setattr("bidsapp.system.logging.set_up_logging", lambda _: None)


@pytest.mark.usefixtures("quiet")
def test_the_subcommand_fetches_nothing_that_exists(models, tmp_path, capsys, monkeypatch):
    recipe = write_recipe(tmp_path, metrics={"networks": []})
    monkeypatch.setattr(fetching, "_list_repository", lambda *_: pytest.fail("the hub was asked"))
    assert cli.main(["fetch-models", "--recipe", str(recipe), "--models-dir", str(models)]) == 0
    said = capsys.readouterr().out
    assert f"vdvae-imagenet64/{PUBLISHED}: exists, not recorded yet" in said
    assert f"{models}: complete, 0 files downloaded" in said
    assert not (models / weights_lock.LOCK).exists()


@pytest.mark.usefixtures("quiet")
def test_the_subcommand_may_verify_only(models, tmp_path, capsys):
    copy = tmp_path / "models"
    shutil.copytree(models, copy)
    recipe = write_recipe(tmp_path, metrics={"networks": []})
    words = ["fetch-models", "--verify", "--recipe", str(recipe), "--models-dir", str(copy)]
    assert cli.main(words) == 0
    assert f"vdvae-imagenet64/{PUBLISHED}: not recorded yet" in capsys.readouterr().out
    files = files_to_fetch(load_recipe(str(recipe)))
    record(files, copy, verify(files, copy))  # as a run does
    assert len(json.loads((copy / weights_lock.LOCK).read_text())["files"]) >= 14
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert f"vdvae-imagenet64/{PUBLISHED}: verified" in said
    assert f"{copy}: complete, all files verified" in said
    unet = copy / "versatile-diffusion" / "image_unet" / "diffusion_pytorch_model.bin"
    content = unet.read_bytes()
    unet.unlink()
    assert cli.main(words) == 75
    said = capsys.readouterr().err
    assert f"bidsapp-recon fetch-models --recipe {recipe} --models-dir {copy}" in said
    assert not unet.exists()
    unet.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert cli.main(words) == 65
    assert f"{unet}: these are not the weights that were recorded" in capsys.readouterr().err


@pytest.mark.usefixtures("quiet")
def test_the_subcommand_refuses_unknown_recipes(capsys):
    assert cli.main(["fetch-models", "--recipe", "moon"]) == 64
    assert "brain-diffuser" in capsys.readouterr().err
