"""Before a run every model is loaded once, by itself, and asked; what passed is not asked again."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_ip_adapter
from helpers.published_models import write_models, write_recipe
from torch import nn

from bidsapp import cli
from bidsapp.config import load_recipe
from bidsapp.errors import AppError, ExitCode
from bidsapp.models import canaries, startup
from bidsapp.models.clip import CLIP_MEAN, CLIP_STD, ClipTokens
from bidsapp.models.generators.ip_adapter import IPAdapterDiffusion
from bidsapp.models.generators.versatile_diffusion import VersatileDiffusion
from bidsapp.models.preprocessing import Preprocessing
from bidsapp.models.startup import check_models, trials
from bidsapp.models.suite import EMBEDDED, Models
from bidsapp.models.weights.lock import LOCK
from bidsapp.participant.level import evaluation_networks

needs_weights = pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded weights are not there")
ALL = ["VDVAE", "CLIP", "diffusion", "alexnet2, alexnet5"]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_models(tmp_path_factory.mktemp("startup") / "models")
    tiny_ip_adapter.write_models(root / "sd15-ip-adapter")
    return root


@pytest.fixture
def models(originals: Path, tmp_path: Path) -> Path:
    """Models that a test may damage."""
    return Path(shutil.copytree(originals, tmp_path / "models"))


@pytest.fixture(scope="module")
def answered(originals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models whose answers are recorded, not to be changed."""
    folder = tmp_path_factory.mktemp("answered")
    shutil.copytree(originals, folder / "models")
    check_models(suite(folder / "models", folder), folder)
    return folder / "models"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked, in order."""
    names: list[str] = []
    real = canaries.check

    def noting(canary: canaries.Canary, *rest: Any) -> np.ndarray:
        names.append(canary.name)
        return real(canary, *rest)

    monkeypatch.setattr(canaries, "check", noting)
    return names


def suite(
    models: Path, folder: Path, base: str = "brain-diffuser", dtype: str = "auto", **changes: Any
) -> Models:
    recipe = load_recipe(str(write_recipe(folder, base, **changes)))
    return Models(recipe, models, "cpu", evaluation_networks(recipe), dtype)


# ------------------------------------------------- what is asked


@needs_weights
def test_the_embedded_models_pass_and_nothing_is_written_beside_them(asked, tmp_path):
    before = sorted(EMBEDDED.rglob("*"))
    said = check_models(Models(load_recipe("embedded"), None, "cpu"), tmp_path)
    layers = "(11 layers)"
    expected = [f"vdvae#VDVAE {part} {layers}" for part in ("encoder", "image", "decoder")]
    expected += [f"versatile_diffusion#{part}" for part in ("image encoder", "text encoder", "small_clip")]
    assert asked[:7] == [*expected, "versatile_diffusion#diffusion"]
    assert [name.partition("#")[2] for name in asked[7:]] in (["efficientnet_lite0"], [])
    assert said.startswith("canaries: VDVAE, CLIP, diffusion")
    assert sorted(EMBEDDED.rglob("*")) == before


def test_every_model_of_the_papers_recipe_is_asked(models, asked, tmp_path):
    check_models(suite(models, tmp_path), tmp_path)
    expected = [f"vdvae-imagenet64#VDVAE {part} (3 layers)" for part in ("encoder", "image", "decoder")]
    expected += [f"versatile-diffusion#{part}" for part in ("image encoder", "text encoder", "diffusion")]
    assert asked == [*expected, "evaluation#alexnet2", "evaluation#alexnet5"]
    assert set(json.loads((models / LOCK).read_text())["canaries"]) == set(asked)


def test_every_model_of_the_other_generator_is_asked(models, asked, tmp_path):
    check_models(suite(models, tmp_path, "sd15-ip-adapter"), tmp_path)
    assert [name for name in asked if name.startswith("sd15")] == [
        "sd15-ip-adapter#image encoder",
        "sd15-ip-adapter#diffusion",
    ]


def test_the_vdvaes_answers_are_all_layers_of_the_recipe_and_a_picture(models, tmp_path, monkeypatch):
    found: dict[str, np.ndarray] = {}
    real = canaries.check
    monkeypatch.setattr(canaries, "check", lambda c, *rest: found.setdefault(c.name, real(c, *rest)))
    model = suite(models, tmp_path)
    check_models(model, tmp_path)
    latents, pixels, raw = list(found.values())[:3]
    assert latents.shape == (1, sum(model.vdvae.layer_sizes(3)))
    assert pixels.shape == (1, 16, 16, 3)
    assert pixels.dtype == np.uint8
    assert raw.shape == (1, 30, 16, 16)


# ------------------------------------------------- one at a time, before anything else


def modules_of(loaded: Any) -> list[nn.Module]:
    parts = loaded if isinstance(loaded, nn.Module) else [*vars(loaded).values()]
    return [parts] if isinstance(parts, nn.Module) else [p for p in parts if isinstance(p, nn.Module)]


@pytest.mark.parametrize("kind", ["brain-diffuser", "sd15-ip-adapter"])
def test_no_two_models_are_held_at_once(kind, models, tmp_path, monkeypatch):
    from bidsapp.models.judges import protocol_networks

    alive: dict[str, list[weakref.ref[nn.Module]]] = {}

    def watched(name: str, load: Callable[..., Any]) -> Callable[..., Any]:
        def loading(*args: Any) -> Any:
            gc.collect()
            for other, refs in alive.items():
                assert all(ref() is None for ref in refs), f"{other} is still there when {name} is loaded"
            loaded = load(*args)
            alive[name] = [weakref.ref(module) for module in modules_of(loaded)]
            assert alive[name]
            return loaded

        return loading

    monkeypatch.setattr(Models, "load_vdvae", watched("VDVAE", Models.load_vdvae))
    for loader in (ClipTokens, VersatileDiffusion, IPAdapterDiffusion):
        load = watched(loader.__name__, loader.load)
        monkeypatch.setattr(loader, "load", lambda *args, load=load: load(*args))
    load_network = watched("load_network", protocol_networks.load_network)
    monkeypatch.setattr(protocol_networks, "load_network", load_network)
    check_models(suite(models, tmp_path, kind), tmp_path)
    brings = {"ClipTokens", "VersatileDiffusion"} if kind == "brain-diffuser" else {"IPAdapterDiffusion"}
    assert set(alive) == {"VDVAE", "load_network"} | brings
    gc.collect()
    assert all(ref() is None for refs in alive.values() for ref in refs)


def test_a_model_that_fails_stops_the_run_before_it_computes(
    models, tiny_dataset, tmp_path, capsys, monkeypatch
):
    """The last of them: what it judges would be hours away."""
    monkeypatch.setattr("bidsapp.system.logging.set_up_logging", lambda _: None)
    path = models / "evaluation" / "alexnet-owt-7be5be79.pth"
    state = torch.load(path, weights_only=True)
    state["features.3.bias"][0] = torch.nan
    torch.save(state, path)
    out, work = tmp_path / "out", tmp_path / "work"
    words = (tiny_dataset(n_subjects=1, n_trials=9), out, "participant", "--recipe", write_recipe(tmp_path))
    options = ("--models-dir", models, "-w", work, "--skip-bids-validation", "--device", "cpu", "--n-cpus", 1)
    assert cli.main([*map(str, (*words, *options))]) == ExitCode.BAD_DATA
    said = capsys.readouterr().err
    assert f"{path}: alexnet2 answers with values that are not finite on cpu" in said
    assert not out.exists()
    assert sorted(p.name for p in work.iterdir()) == ["canaries"]
    assert len(list((work / "canaries").iterdir())) == 3  # the others need not be asked again


# ------------------------------------------------- what passed is not asked again


def test_a_second_run_loads_and_asks_nothing(models, asked, tmp_path, monkeypatch, caplog):
    with caplog.at_level(logging.INFO, "bidsapp"):
        said = check_models(suite(models, tmp_path), tmp_path)
    assert said == f"canaries: {', '.join(ALL)} passed now"
    assert [m.split(" passed in ")[0] for m in caplog.messages if " passed in " in m] == [
        f"canaries: {name}" for name in ALL
    ]
    asked.clear()
    for owner, name in ((Models, "load_vdvae"), (Models, "protocol_clip"), (ClipTokens, "load")):
        monkeypatch.setattr(owner, name, lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr(VersatileDiffusion, "load", lambda *_: pytest.fail("loaded"))
    assert (
        check_models(suite(models, tmp_path), tmp_path)
        == f"canaries: {', '.join(ALL)} passed in an earlier run"
    )
    assert asked == []


def names_asked(models: Models, folder: Path, asked: list[str]) -> set[str]:
    asked.clear()
    check_models(models, folder)
    return {name.partition("#")[2].partition(" (")[0] for name in asked}


def test_what_an_answer_depends_on_is_asked_again(models, asked, tmp_path, monkeypatch):
    vdvae = {"VDVAE encoder", "VDVAE image", "VDVAE decoder"}
    everything = names_asked(suite(models, tmp_path), tmp_path, asked)
    assert names_asked(suite(models, tmp_path, vdvae={"layers": 4}), tmp_path, asked) == vdvae
    assert names_asked(suite(models, tmp_path, dtype="bfloat16"), tmp_path, asked) == everything
    assert names_asked(suite(models, tmp_path), tmp_path, asked) == set()
    fewer = suite(models, tmp_path, metrics={"networks": ["alexnet2"]})
    assert names_asked(fewer, tmp_path, asked) == {"alexnet2"}
    path = models / "evaluation" / "alexnet-owt-7be5be79.pth"
    torch.save({k: v * 1.5 for k, v in torch.load(path, weights_only=True).items()}, path)
    (models / LOCK).unlink()
    assert names_asked(suite(models, tmp_path), tmp_path, asked) == {"alexnet2", "alexnet5"}
    with monkeypatch.context() as patch:
        patch.setattr(startup, "device_name", lambda _: "cuda (Tesla T4)")
        assert names_asked(suite(models, tmp_path), tmp_path, asked) == everything
    monkeypatch.setattr(startup.metadata, "version", lambda _: "99")
    assert names_asked(suite(models, tmp_path), tmp_path, asked) == everything


def test_damaged_records_say_nothing(models, asked, tmp_path):
    everything = names_asked(suite(models, tmp_path), tmp_path, asked)
    records = sorted((tmp_path / startup.FOLDER).iterdir())
    contents = [json.loads(record.read_text()) for record in records]
    damages = ["{", "[]", json.dumps(contents[2] | {"passed": []})]
    damages.append(json.dumps(contents[3] | {"weights": "0" * 64}))
    for record, damage in zip(records, damages, strict=True):
        record.write_text(damage)
    assert names_asked(suite(models, tmp_path), tmp_path, asked) == everything


def test_what_failed_is_not_recorded(models, tmp_path, monkeypatch):
    def fail(*_: Any) -> None:
        raise AppError("no")

    monkeypatch.setattr(ClipTokens, "load", fail)
    with pytest.raises(AppError):
        check_models(suite(models, tmp_path), tmp_path)
    assert [p.name.partition("-")[0] for p in (tmp_path / startup.FOLDER).iterdir()] == ["vdvae"]


# ------------------------------------------------- damage that is found


def damaged(monkeypatch: pytest.MonkeyPatch, owner: type, load: str, change: Callable[[Any], None]) -> None:
    """Change a model in memory after it is loaded."""
    real = getattr(owner, load)

    def loading(*args: Any) -> Any:
        model = real(*args)
        with torch.no_grad():
            change(model)
        return model

    monkeypatch.setattr(owner, load, loading)


def scale(module: nn.Module, by: float) -> None:
    for p in module.parameters():
        p *= by


VDVAE_DAMAGE: dict[str, tuple[str, Callable[[Any], None]]] = {
    "a block of the encoder": ("encoder", lambda m: scale(m.encoder.enc_blocks[2], 2)),
    "the last layer of the recipe": ("encoder", lambda m: scale(m.decoder.blocks[2].enc, 1.05)),
    "the first block's way into the stream": ("decoder", lambda m: scale(m.decoder.blocks[0].z_proj, 1.05)),
    "the last layer's way into the stream": ("decoder", lambda m: scale(m.decoder.blocks[2].z_proj, 1.05)),
    "a later layer": ("decoder", lambda m: scale(m.decoder.blocks[4].resnet, 1.05)),
    "a later layer's prior": ("decoder", lambda m: scale(m.decoder.blocks[3].prior, 1.05)),
    "the gain": ("decoder", lambda m: m.decoder.gain.mul_(1.02)),
    "one value of the gain": ("decoder", lambda m: m.decoder.gain[0, 3].mul_(1.5)),
    "the output": ("decoder", lambda m: scale(m.decoder.out_net, 1.02)),
}


@pytest.mark.parametrize("place", VDVAE_DAMAGE)
def test_drift_anywhere_in_the_vdvae_is_found(place, answered, tmp_path, monkeypatch):
    part, change = VDVAE_DAMAGE[place]
    recorded = (answered / LOCK).read_bytes()
    damaged(monkeypatch, Models, "load_vdvae", change)
    with pytest.raises(AppError, match=r"VDVAE (encoder|image|decoder) .*answers differently") as caught:
        check_models(suite(answered, tmp_path), tmp_path / "another")  # where nothing passed before
    assert (answered / LOCK).read_bytes() == recorded
    assert ("VDVAE encoder" in str(caught.value)) == (part == "encoder")
    assert caught.value.exit_code == ExitCode.BAD_DATA


def test_damage_is_found_without_a_record_where_it_shows(models, tmp_path, monkeypatch):
    """Nothing was recorded yet: values that are not finite, or an image of one colour."""
    for change, said in (
        (lambda m: m.decoder.blocks[4].resnet.c4.bias.fill_(torch.nan), "pixels that are not finite"),
        (lambda m: m.decoder.gain.fill_(torch.inf), "pixels that are not finite"),
        (lambda m: m.encoder.in_conv.weight.fill_(torch.nan), "latents that are not finite"),
        (lambda m: m.decoder.gain.zero_(), "VDVAE image .* answers with an image of one colour"),
    ):
        with monkeypatch.context() as patch:
            damaged(patch, Models, "load_vdvae", change)
            with pytest.raises(AppError, match=rf"vdvae-imagenet64: .*{said}"):
                check_models(suite(models, tmp_path), tmp_path)
    assert not (models / LOCK).exists() or "VDVAE decoder" not in (models / LOCK).read_text()


def test_a_generator_of_black_pictures(models, tmp_path, monkeypatch):
    def black(model: Any) -> None:
        model.vae.decoder.conv_out.weight.zero_()
        model.vae.decoder.conv_out.bias.fill_(-1)

    for kind, owner in (("brain-diffuser", VersatileDiffusion), ("sd15-ip-adapter", IPAdapterDiffusion)):
        with monkeypatch.context() as patch:
            damaged(patch, owner, "load", black)
            with pytest.raises(AppError, match="diffusion answers with an image of one colour"):
                check_models(suite(models, tmp_path, kind), tmp_path)


# ------------------------------------------------- the double-rescale trap


@pytest.mark.parametrize(("factor", "spans"), [(1 / 255, r"0\.003[89]"), (255.0, r"25\d")])
@pytest.mark.parametrize("kind", ["brain-diffuser", "sd15-ip-adapter"])
def test_a_rescaled_picture_is_found_without_any_record(kind, factor, spans, models, tmp_path, monkeypatch):
    """Answers to an almost black picture are finite, not constant, and of the right shape."""
    real = ClipTokens.pixels

    def rescaled(self: ClipTokens, images: np.ndarray) -> torch.Tensor:
        mean, std = (torch.tensor(t).view(1, 3, 1, 1) for t in (CLIP_MEAN, CLIP_STD))
        return ((real(self, images) * std + mean) * factor - mean) / std

    monkeypatch.setattr(ClipTokens, "pixels", rescaled)
    said = rf"the image given to .*image encoder spans {spans}.*rescaled twice before it gets there"
    with pytest.raises(AppError, match=said):
        check_models(suite(models, tmp_path, kind), tmp_path)


def test_a_rescaled_picture_of_a_judge(models, tmp_path, monkeypatch):
    real = Preprocessing._by_pillow
    monkeypatch.setattr(Preprocessing, "_by_pillow", lambda self, images: real(self, images) / 255)
    with pytest.raises(AppError, match=r"the image given to alexnet2 spans 0\.0039"):
        check_models(suite(models, tmp_path), tmp_path)


# ------------------------------------------------- what else can be wrong


def test_more_layers_than_the_vdvae_has(models, tmp_path):
    with pytest.raises(AppError, match=r"has 5 blocks, but the recipe predicts the latents of 31") as caught:
        check_models(suite(models, tmp_path, vdvae={"layers": 31}), tmp_path)
    assert caught.value.exit_code == ExitCode.BAD_DATA


def test_a_model_that_does_not_fit(models, tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("bidsapp.models.suite.load_vdvae", full)
        with pytest.raises(AppError, match="The weights of the VDVAE do not fit into the memory") as caught:
            check_models(suite(models, tmp_path), tmp_path)
        assert caught.value.exit_code == ExitCode.TRY_AGAIN
    monkeypatch.setattr("bidsapp.models.vdvae.VDVAE.encode_latents", full)
    with pytest.raises(AppError, match=r"VDVAE encoder .*not even one image fits") as caught:
        check_models(suite(models, tmp_path), tmp_path)
    assert caught.value.exit_code == ExitCode.TRY_AGAIN


def test_nothing_is_loaded_to_list_what_there_is_to_ask(models, tmp_path, monkeypatch):
    monkeypatch.setattr(Models, "load_vdvae", lambda _: pytest.fail("loaded"))
    assert [trial.name for trial in trials(suite(models, tmp_path))] == ALL


# ------------------------------------------------- what is recorded of the weights


def files_recorded(models: Path) -> set[str]:
    return set(json.loads((models / LOCK).read_text())["files"]) if (models / LOCK).exists() else set()


def test_weights_are_recorded_once_all_models_passed(models, tmp_path, monkeypatch):
    suite(models, tmp_path).verify()
    assert files_recorded(models) == set()
    with monkeypatch.context() as patch:
        patch.setattr(VersatileDiffusion, "load", lambda *_: pytest.fail("loaded"))
        with pytest.raises(pytest.fail.Exception):
            check_models(suite(models, tmp_path), tmp_path)
    assert files_recorded(models) == set()
    check_models(suite(models, tmp_path), tmp_path)
    recorded = files_recorded(models)
    assert "evaluation/alexnet-owt-7be5be79.pth" in recorded
    assert "versatile-diffusion/tokenizer/merges.txt" in recorded
    before = (models / LOCK).read_bytes()
    check_models(suite(models, tmp_path), tmp_path / "another")
    assert (models / LOCK).read_bytes() == before


BAD = {
    "a Git LFS pointer": lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n",
    "cut": lambda content: content[:3000],
    "a web page": lambda _: b"<html>Sign in</html>",
    "not finite": None,
}


@pytest.mark.parametrize("damage", BAD)
def test_the_right_weights_are_taken_after_bad_ones(damage, models, tmp_path):
    path = models / "versatile-diffusion" / "vae" / "diffusion_pytorch_model.bin"
    right = path.read_bytes()
    if (change := BAD[damage]) is not None:
        path.write_bytes(change(right))
    else:
        torch.save({k: v * torch.nan for k, v in torch.load(path, weights_only=True).items()}, path)

    def run() -> None:
        models_of_run = suite(models, tmp_path)
        models_of_run.verify()
        check_models(models_of_run, tmp_path)

    for _ in range(2):
        with pytest.raises(AppError):
            run()
    assert files_recorded(models) == set()
    path.write_bytes(right)
    run()
    assert "versatile-diffusion/vae/diffusion_pytorch_model.bin" in files_recorded(models)
    path.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    with pytest.raises(AppError, match="not the weights that were recorded"):
        run()
