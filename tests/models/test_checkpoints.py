"""Files of weights that are damaged, of another model, or made to run code: refused by name, never run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_ip_adapter
from helpers.published_models import write_models
from helpers.tiny_diffusion import N_VISION
from safetensors.torch import load_file, save_file

from bidsapp.errors import AppError, ExitCode
from bidsapp.models.clip import ClipTokens
from bidsapp.models.generators.ip_adapter import ADAPTER, IPAdapterDiffusion
from bidsapp.models.generators.versatile_diffusion import VersatileDiffusion
from bidsapp.models.judges.protocol_networks import load_network
from bidsapp.models.vdvae import load_vdvae
from bidsapp.models.weights.checkpoints import read_checkpoint, readable

VD, NETWORKS = "versatile-diffusion", "evaluation"
#: every torch file of the published layouts, and what reads it
LOADERS: dict[str, Callable[[Path], Any]] = {
    f"{VD}/vae/diffusion_pytorch_model.bin": lambda m: VersatileDiffusion.load(m / VD, N_VISION),
    f"{VD}/image_unet/diffusion_pytorch_model.bin": lambda m: VersatileDiffusion.load(m / VD, N_VISION),
    f"{VD}/text_unet/diffusion_pytorch_model.bin": lambda m: VersatileDiffusion.load(m / VD, N_VISION),
    f"{VD}/image_encoder/pytorch_model.bin": lambda m: ClipTokens.load(m / VD),
    f"{VD}/text_encoder/pytorch_model.bin": lambda m: ClipTokens.load(m / VD),
    "vdvae-imagenet64/imagenet64-iter-1600000-model-ema.th": lambda m: load_vdvae(m / "vdvae-imagenet64"),
    f"{NETWORKS}/alexnet-owt-7be5be79.pth": lambda m: load_network(
        "alexnet", m / NETWORKS / "alexnet-owt-7be5be79.pth"
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("checkpoints") / "models")


@pytest.fixture
def put(models: Path) -> Any:
    """Put other content in a file's place, and the file back at the end."""
    kept: dict[Path, bytes] = {}

    def replace(file: str, content: bytes | None) -> Path:
        path = models / file
        kept[path] = path.read_bytes()
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        return path

    yield replace
    for path, content in kept.items():
        path.write_bytes(content)


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def refused(load: Callable[[], Any], path: Path, match: str) -> None:
    with pytest.raises(AppError, match=match) as caught:
        load()
    assert caught.value.exit_code == ExitCode.BAD_DATA
    said = str(caught.value)
    assert str(path) in said
    assert "fetch it again" in said
    assert "trust" not in said  # the libraries' advice to read such a file all the same


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("file", LOADERS)
def test_a_malicious_pickle_is_named_and_not_run(file, zipped, models, put, tmp_path, capfd):
    mark = tmp_path / "ran"
    evil = tmp_path / "evil.bin"
    torch.save({"conv_in.weight": Trap(mark)}, evil, _use_new_zipfile_serialization=zipped)
    path = put(file, evil.read_bytes())
    refused(lambda: LOADERS[file](models), path, "perhaps code; none of it was run")
    assert not mark.exists()
    assert "unsafe" not in "".join(capfd.readouterr())
    # the trap is a trap: read carelessly, it runs
    torch.load(evil, weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("keep", [0, 1, 400])
@pytest.mark.parametrize("file", LOADERS)
def test_a_cut_file_is_named(file, keep, models, put):
    path = put(file, (models / file).read_bytes()[:keep])
    refused(lambda: LOADERS[file](models), path, "these weights cannot be read")


@pytest.mark.parametrize("content", [b"{", b"[]", None], ids=str)
@pytest.mark.parametrize(
    "file",
    [
        *(f"{VD}/{part}/config.json" for part in ("vae", "image_unet", "image_encoder", "text_encoder")),
        f"{VD}/scheduler/scheduler_config.json",
        f"{VD}/tokenizer/vocab.json",
        f"{VD}/tokenizer/tokenizer_config.json",
    ],
)
def test_a_damaged_configuration_is_named(file, content, models, put):
    path = put(file, content)
    load = ClipTokens.load if "encoder" in file or "tokenizer" in file else None
    with pytest.raises(AppError) as caught:
        load(models / VD) if load else VersatileDiffusion.load(models / VD, N_VISION)
    assert caught.value.exit_code in (ExitCode.BAD_DATA, ExitCode.NO_INPUT)
    assert str(path.parent) in str(caught.value)


@pytest.mark.parametrize(
    ("part", "key", "other"),
    [("image_encoder", "hidden_size", 32), ("vae", "block_out_channels", [8, 8, 16])],
)
def test_weights_of_another_shape_are_named(part, key, other, models, put, capfd):
    config = json.loads((models / VD / part / "config.json").read_text())
    put(f"{VD}/{part}/config.json", json.dumps(config | {key: other}).encode())
    load = ClipTokens.load if part == "image_encoder" else lambda f: VersatileDiffusion.load(f, N_VISION)
    refused(
        lambda: load(models / VD),
        models / VD / part,
        r"not the weights of a complete .*of another shape: \w+\.",
    )
    assert "".join(capfd.readouterr()) == ""


def test_a_text_unet_that_lacks_a_block_is_named(models, put):
    file = f"{VD}/text_unet/diffusion_pytorch_model.bin"
    state = torch.load(models / file, weights_only=True)
    path = put(file, None)
    torch.save({k: v for k, v in state.items() if not k.startswith("mid_block.attentions.0.")}, path)
    refused(lambda: LOADERS[file](models), path, r"the text UNet lacks mid_block\.attentions\.0\.")


@pytest.mark.parametrize("file", [ADAPTER, "unet/diffusion_pytorch_model.safetensors"])
def test_the_other_generators_files(file, tmp_path):
    root = tiny_ip_adapter.write_models(tmp_path / "sd")
    path = root / file
    path.write_bytes(path.read_bytes()[:500])
    refused(lambda: IPAdapterDiffusion.load(root), path, "these weights cannot be read")


def test_an_adapter_that_misses_a_layer(tmp_path):
    root = tiny_ip_adapter.write_models(tmp_path / "sd")
    state = load_file(root / ADAPTER)
    save_file({k: v for k, v in state.items() if not k.startswith("ip_adapter.3.")}, root / ADAPTER)
    refused(lambda: IPAdapterDiffusion.load(root), root / ADAPTER, "these weights cannot be read")


def test_loading_says_nothing(models, capfd):
    """The libraries' remarks on torch files (unsafe, fetching failed) are not the user's business."""
    ClipTokens.load(models / VD)
    VersatileDiffusion.load(models / VD, N_VISION)
    assert "".join(capfd.readouterr()) == ""


def test_what_is_no_state_dict(tmp_path):
    path = tmp_path / "w.pth"
    for content in ([torch.ones(2)], {"a": 1}, torch.ones(3)):
        torch.save(content, path)
        refused(lambda: read_checkpoint(path), path, "something other than named tensors")


def test_mapped_and_read_are_the_same(models, tmp_path):
    file = models / VD / "text_unet" / "diffusion_pytorch_model.bin"
    legacy = tmp_path / "legacy.bin"
    torch.save(torch.load(file, weights_only=True), legacy, _use_new_zipfile_serialization=False)
    expected = read_checkpoint(file)
    for path in (file, legacy):
        found = read_checkpoint(path, mapped=True)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[k], v) for k, v in expected.items())


@pytest.mark.parametrize("error", [MemoryError("no"), torch.OutOfMemoryError("no"), AppError("mine")])
def test_errors_that_are_no_fault_of_the_file_pass(error, tmp_path):
    with pytest.raises(type(error), match=str(error)), readable(tmp_path):
        raise error
