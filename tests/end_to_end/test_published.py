"""The paper's recipe from end to end: one command, models in the published layouts."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_ip_adapter
from helpers.published_models import write_models, write_recipe
from helpers.read_only import read_only
from PIL import Image

from bidsapp import cli
from bidsapp.models.weights.lock import LOCK, own_folder
from bidsapp.models.weights.registry import VARIABLE
from bidsapp.storage.files import sha256_file
from bidsapp.storage.text import read_tsv

METRICS = {"pixcorr", "ssim", "ssim_columnwise", "two_way_alexnet2", "two_way_alexnet5"}


def run(*words: object) -> int:
    return cli.main([*map(str, words), "--n-cpus", "1", "--device", "cpu"])


@pytest.fixture(autouse=True, scope="module")
def _no_models_folder() -> None:
    os.environ.pop(VARIABLE, None)


@pytest.fixture(scope="module")
def bids(tiny_dataset) -> Path:
    return tiny_dataset(n_subjects=1, n_trials=12)


@pytest.fixture(scope="module")
def few(tiny_dataset) -> Path:
    """Two test images, where their number does not matter."""
    return tiny_dataset(n_subjects=1, n_trials=6)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return write_models(tmp_path_factory.mktemp("published") / "models")


@pytest.fixture(scope="module")
def out(bids, models, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    recipe = write_recipe(folder)
    assert run(bids, folder / "out", "participant", "--recipe", recipe, "--models-dir", models) == 0
    return folder / "out"


def test_every_output_is_there(out, validate):
    func = out / "sub-01" / "func"
    for desc in ("recon", "vdvae"):
        assert len(list(func.glob(f"*_desc-{desc}_image.png"))) == 4
    image = Image.open(next(func.glob("*_desc-recon_image.png")))
    assert image.size == (16, 16)
    summary = read_tsv(next(func.glob("*_desc-summary_metrics.tsv")))
    assert set(summary["metric"]) == METRICS
    assert set(summary["condition"]) == {"brain", "null", "oracle"}
    assert all(np.isfinite(float(v)) for v in summary["mean"])
    assert "VDVAE; Child, 2021" in (out / "logs" / "CITATION.md").read_text()
    assert validate(out) == []


def test_the_same_images_are_scored_by_each_published_protocol(out):
    func = out / "sub-01" / "func"
    table = read_tsv(next(func.glob("*_desc-protocols_metrics.tsv")))
    rows = list(zip(table["protocol"], table["metric"], table["mean"], strict=True))
    own = {metric: mean for protocol, metric, mean in rows if protocol == "bd2023"}
    other = {metric: mean for protocol, metric, mean in rows if protocol == "mindeye"}
    summary = read_tsv(next(func.glob("*_desc-summary_metrics.tsv")))
    columns = (summary[k] for k in ("condition", "stage", "metric", "mean"))
    told = {m: v for c, s, m, v in zip(*columns, strict=True) if (c, s) == ("brain", "stage2")}
    assert own == told
    assert set(other) == METRICS - {"ssim_columnwise"}
    assert other["pixcorr"] != own["pixcorr"]  # of other sizes
    page = (out / "sub-01.html").read_text()
    assert "Comparison with published scores" in page
    assert "0.254" in page  # Brain-Diffuser's PixCorr


def test_the_models_answers_are_recorded(out, models):
    lock = json.loads((models / LOCK).read_text())
    names = {"evaluation#alexnet2", "evaluation#alexnet5"}
    names |= {f"vdvae-imagenet64#VDVAE {part} (3 layers)" for part in ("encoder", "image", "decoder")}
    names |= {f"versatile-diffusion#{w}" for w in ("image encoder", "text encoder", "diffusion")}
    assert set(lock["canaries"]) == names
    assert all(answer["device"] == "cpu" for answer in lock["canaries"].values())


def test_the_weights_are_recorded(out, models):
    lock = json.loads((models / LOCK).read_text())
    content = {"config.json", "model.safetensors", "pytorch_model.bin", "merges.txt", "vocab.json"}
    content |= {"diffusion_pytorch_model.bin", "scheduler_config.json", "tokenizer_config.json"}
    content |= {"alexnet-owt-7be5be79.pth", "imagenet64-iter-1600000-model-ema.th"}
    files = [path for path in models.rglob("*") if path.name in content]
    assert len(files) > 14
    found = {path.relative_to(models).as_posix(): sha256_file(path) for path in files}
    assert {name: entry["sha256"] for name, entry in lock["files"].items()} == found
    # AlexNet's published hash is known, and this is another
    report = (out / "sub-01.html").read_text()
    assert "alexnet-owt-7be5be79.pth in the models folder is not the published file" in report


def test_another_number_format_is_recorded_and_computed_anew(few, models, tmp_path):
    """Targets and images of another format are other results: an earlier run's are not taken for them."""
    changes = {"controls": {"null": False, "oracle": False}, "diffusion": {"steps": 2}}
    recipe = write_recipe(tmp_path, **changes | {"metrics": {"networks": ["alexnet2"]}})
    work = tmp_path / "work"
    words = (few, tmp_path / "out", "participant", "--recipe", recipe, "--skip-bids-validation", "-w", work)
    words = (*words, "--keep-work")
    keys, stores = {}, {}
    for dtype in ("auto", "bfloat16", "float32"):
        assert run(*words, "--models-dir", models, "--dtype", dtype) == 0
        stages = ("stage1_brain", "stage2_brain", "latents_brain")
        done = {s: json.loads((work / "sub-01" / s / "done.json").read_text())["key"] for s in stages}
        keys[dtype], stores[dtype] = done, {p.name for p in work.glob("targets-*")}
    assert keys["auto"] == keys["float32"]  # on the CPU
    assert all(keys["auto"][stage] != key for stage, key in keys["bfloat16"].items())
    assert len(stores["auto"]) == 1
    assert len(stores["bfloat16"]) == len(stores["float32"]) == 2
    runs = (tmp_path / "out" / "logs" / "sub-01").glob("*/run.toml")
    recorded = [tomllib.loads(p.read_text())["run"]["dtype"] for p in sorted(runs)]
    assert sorted(recorded) == ["bfloat16", "float32", "float32"]


def test_models_may_be_read_only(few, models, tmp_path, monkeypatch):
    copy = tmp_path / "models"
    shutil.copytree(models, copy, ignore=shutil.ignore_patterns("*lock*", "*seen*"))
    before = sorted(p for p in copy.rglob("*"))
    recipe = write_recipe(tmp_path, controls={"null": False, "oracle": False})
    monkeypatch.setenv(VARIABLE, str(copy))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = (few, tmp_path / "out", "participant", "--recipe", recipe, "--skip-bids-validation")
    with read_only(copy):
        assert run(*words) == 0
        assert sorted(p for p in copy.rglob("*")) == before
    record = json.loads((own_folder(copy) / LOCK).read_text())
    assert len(record["files"]) > 14
    assert "versatile-diffusion#diffusion" in record["canaries"]


def test_weights_that_are_missing_name_the_command(bids, models, tmp_path, capsys):
    copy = tmp_path / "models"
    shutil.copytree(models, copy)
    shutil.rmtree(copy / "evaluation")
    (copy / "versatile-diffusion" / "image_unet" / "diffusion_pytorch_model.bin").unlink()
    recipe = write_recipe(tmp_path)
    words = (bids, tmp_path / "out", "participant", "--recipe", recipe, "--skip-bids-validation")
    assert run(*words, "--models-dir", copy) == 75
    said = capsys.readouterr().err
    assert f"bidsapp-recon fetch-models --recipe {recipe} --models-dir {copy}" in said
    assert "image_unet/diffusion_pytorch_model.bin" in said
    assert "alexnet-owt-7be5be79.pth" in said
    assert not (tmp_path / "out").exists()


def test_weights_that_changed_stop_the_run_before_it_computes(out, bids, models, tmp_path, capsys):
    copy = tmp_path / "models"
    shutil.copytree(models, copy)
    target = copy / "evaluation" / "alexnet-owt-7be5be79.pth"
    lock = json.loads((copy / LOCK).read_text())
    lock["files"]["evaluation/alexnet-owt-7be5be79.pth"] = {"sha256": "0" * 64}
    (copy / LOCK).write_text(json.dumps(lock))
    words = (bids, tmp_path / "out", "participant", "--recipe", write_recipe(tmp_path))
    assert run(*words, "--skip-bids-validation", "--models-dir", copy) == 65
    assert str(target) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_network_of_another_protocol_is_named(bids, models, tmp_path, capsys):
    recipe = write_recipe(tmp_path, metrics={"networks": ["alexnet2", "small_clip"]})
    words = (bids, tmp_path / "out", "participant", "--recipe", recipe, "--skip-bids-validation")
    assert run(*words, "--models-dir", models) == 65
    assert "The protocol 'bd2023' has no network 'small_clip'" in capsys.readouterr().err


def test_a_clip_of_another_size_does_not_judge(models, tmp_path):
    from bidsapp.config import load_recipe
    from bidsapp.errors import AppError
    from bidsapp.models.suite import Models
    from bidsapp.planning.check import evaluation_networks

    recipe = load_recipe(str(write_recipe(tmp_path, metrics={"networks": ["clip"]})))
    suite = Models(recipe, models, "cpu", evaluation_networks(recipe))
    with pytest.raises(AppError, match=r"needs CLIP ViT-L/14.*not hidden_size 1024"):
        _ = suite.networks


def test_the_other_generator_runs_from_end_to_end(models, few, tmp_path, validate):
    folder = tmp_path / "models"
    for part in ("vdvae-imagenet64", "evaluation"):
        shutil.copytree(models / part, folder / part)
    tiny_ip_adapter.write_models(folder / "sd15-ip-adapter")
    recipe = write_recipe(tmp_path, "sd15-ip-adapter")
    words = (few, tmp_path / "out", "participant", "--recipe", recipe, "--models-dir", folder)
    assert run(*words) == 0
    assert len(list((tmp_path / "out" / "sub-01" / "func").glob("*_desc-recon_image.png"))) == 2
    assert "sd15-ip-adapter#diffusion" in json.loads((folder / LOCK).read_text())["canaries"]
    assert validate(tmp_path / "out") == []
