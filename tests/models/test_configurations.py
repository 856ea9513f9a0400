"""Configuration files of models are checked before a library reads them: code, classes, sizes."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_diffusion, tiny_ip_adapter
from helpers.published_models import write_models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bidsapp.errors import AppError, ExitCode
from bidsapp.models.clip import ClipTokens, token_shapes
from bidsapp.models.generators.ip_adapter import IPAdapterDiffusion
from bidsapp.models.generators.versatile_diffusion import VersatileDiffusion
from bidsapp.models.vdvae import load_vdvae
from bidsapp.models.weights.checkpoints import load_tokenizer

VD, IP = "versatile-diffusion", "sd15-ip-adapter"
CODE = """open({marker!r}, 'w').close()
from transformers import CLIPTokenizer
class Mine(CLIPTokenizer):
    pass
"""


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_models(tmp_path_factory.mktemp("configurations") / "models")
    tiny_ip_adapter.write_models(root / IP)
    return root


@pytest.fixture
def models(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals, tmp_path / "models"))


@pytest.fixture(autouse=True)
def _no_hanging() -> Iterator[None]:
    """Fail where a file is waited for."""

    def waited(*_: object) -> None:
        raise TimeoutError("waited for a file")

    before = signal.signal(signal.SIGALRM, waited)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def load(models: Path, file: str) -> object:
    """Load the model that a configuration file belongs to."""
    folder = models / file.partition("/")[0]
    if folder.name == IP:
        return IPAdapterDiffusion.load(folder)
    if folder.name == VD:
        clip = "encoder" in file or "tokenizer" in file
        return ClipTokens.load(folder) if clip else VersatileDiffusion.load(folder, tiny_diffusion.N_VISION)
    return load_vdvae(folder)


def change(models: Path, file: str, **values: Any) -> Path:
    path = models / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return path


def refused(call: Callable[[], object], path: Path, *words: str) -> None:
    with pytest.raises(AppError) as caught:
        call()
    assert caught.value.exit_code in (ExitCode.BAD_DATA, ExitCode.NO_INPUT)
    for word in (str(path), *words):
        assert word in str(caught.value), str(caught.value)


CONFIGS = [
    f"{VD}/image_encoder/config.json",
    f"{VD}/text_encoder/config.json",
    f"{VD}/image_unet/config.json",
    f"{VD}/vae/config.json",
    f"{VD}/scheduler/scheduler_config.json",
    f"{VD}/tokenizer/tokenizer_config.json",
    f"{IP}/unet/config.json",
    f"{IP}/models/image_encoder/config.json",
    f"{IP}/tokenizer/tokenizer_config.json",
]


@pytest.mark.parametrize("file", CONFIGS)
def test_a_configuration_with_code_is_refused_and_runs_nothing(file, models, tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    path = change(models, file, auto_map={"AutoTokenizer": [None, "code.Mine"], "AutoModel": "code.Mine"})
    (path.parent / "code.py").write_text(CODE.format(marker=str(marker)))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    refused(lambda: load(models, file), path, "auto_map")
    assert not marker.exists()


def test_the_code_would_run_if_it_were_trusted(models, tmp_path, monkeypatch):
    """The trap of the test above is a working one."""
    from transformers import AutoTokenizer

    marker, folder = tmp_path / "ran", models / VD / "tokenizer"
    change(models, f"{VD}/tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": [None, "code.Mine"]})
    (folder / "code.py").write_text(CODE.format(marker=str(marker)))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert marker.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attn_implementation", "someone/kernel"),
        ("_attn_implementation", "someone/kernel"),
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    ],
)
def test_other_ways_to_name_code_are_refused(key, value, models):
    """A kernel of the hub, a quantiser: libraries fetch or import what is named."""
    for file in (CONFIGS[0], CONFIGS[2]):
        path = change(models, file, **{key: value})
        refused(lambda file=file: load(models, file), path, key)


def test_an_adapter_next_to_the_weights_is_refused(models):
    """With the peft package transformers would load what it names, from anywhere."""
    path = models / VD / "text_encoder" / "adapter_config.json"
    path.write_text(json.dumps({"base_model_name_or_path": "someone/model", "peft_type": "LORA"}))
    refused(lambda: ClipTokens.load(models / VD), path, "adapter")


@pytest.mark.parametrize("file", [*CONFIGS, "vdvae-imagenet64/config.json", f"{VD}/tokenizer/vocab.json"])
def test_a_pipe_is_not_waited_for(file, models):
    path = models / file
    path.unlink()
    os.mkfifo(path)
    refused(lambda: load(models, file), path, "pipe")


@pytest.mark.parametrize("part", ["image_encoder", "text_encoder"])
def test_shapes_are_not_read_from_a_pipe_either(part, models):
    path = models / VD / part / "config.json"
    path.unlink()
    os.mkfifo(path)
    refused(lambda: token_shapes(models / VD), path, "pipe")


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        (CONFIGS[0], "num_hidden_layers", 100_000),
        (CONFIGS[0], "hidden_size", 1_000_000),
        (CONFIGS[0], "image_size", 10**6),
        (CONFIGS[0], "patch_size", 1000),
        (CONFIGS[0], "num_channels", 10**9),
        (CONFIGS[1], "vocab_size", 10**9),
        (CONFIGS[1], "max_position_embeddings", 2_000_000_000),
        (CONFIGS[2], "block_out_channels", [2**20, 2**20]),
        (CONFIGS[2], "block_out_channels", [8] * 1000),
        (CONFIGS[2], "layers_per_block", 100_000),
        (CONFIGS[2], "layers_per_block", float("inf")),
        (CONFIGS[2], "time_embedding_dim", 10**6),
        (CONFIGS[2], "conv_in_kernel", 1001),
        (CONFIGS[3], "latent_channels", 10**7),
        (CONFIGS[4], "num_train_timesteps", 10**12),
        (CONFIGS[4], "trained_betas", [0.1] * 10**5),
        (CONFIGS[5], "model_max_length", 2_000_000_000),
        (CONFIGS[7], "intermediate_size", 10**9),
        (CONFIGS[8], "model_max_length", 2_000_000_000),
        ("vdvae-imagenet64/config.json", "width", None),
        ("vdvae-imagenet64/config.json", "zdim", True),
        ("vdvae-imagenet64/config.json", "n_mixtures", 2.5),
        ("vdvae-imagenet64/config.json", "scale", 0),
        ("vdvae-imagenet64/config.json", "width", 10**6),
        ("vdvae-imagenet64/config.json", "zdim", 10**9),
        ("vdvae-imagenet64/config.json", "enc_blocks", "16x1000000000000,1x1"),
        ("vdvae-imagenet64/config.json", "dec_blocks", "1x1,4m1,100000m4"),
    ],
)
def test_sizes_that_no_published_model_has_are_refused_before_anything_is_built(file, key, value, models):
    refused(lambda: load(models, file), change(models, file, **{key: value}), key)


def test_sizes_of_a_part_of_a_configuration_are_checked_too(models):
    """As in CLIP's whole configuration, which has one for images and one for text."""
    path = change(models, CONFIGS[0], vision_config={"hidden_size": 1_000_000})
    refused(lambda: load(models, CONFIGS[0]), path, "hidden_size")


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        (CONFIGS[2], "_class_name", "FluxTransformer2DModel"),
        (CONFIGS[3], "_class_name", "os"),
        (CONFIGS[4], "_class_name", "DiffusionPipeline"),
        (CONFIGS[0], "model_type", "llama"),
        (CONFIGS[5], "tokenizer_class", "BertTokenizer"),
    ],
)
def test_only_known_classes(file, key, value, models):
    refused(lambda: load(models, file), change(models, file, **{key: value}), key, value)


def tokenizer_json(folder: Path) -> dict[str, Any]:
    """Write tokenizer.json, as newer repositories have it."""
    load_tokenizer(folder).save_pretrained(folder)
    content: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text())
    return content


def test_a_saved_tokenizer_loads_as_before(models):
    folder = models / VD / "tokenizer"
    captions = ["a photograph of 2 dogs", "x" * 300]
    before = load_tokenizer(folder)(captions)["input_ids"]
    tokenizer_json(folder)
    assert load_tokenizer(folder)(captions)["input_ids"] == before


@pytest.mark.parametrize(
    ("part", "value", "word"),
    [
        ("padding", {"strategy": {"Fixed": 2 * 10**9}, "pad_id": 0, "pad_token": "!"}, "Fixed"),
        ("truncation", {"max_length": 10**12, "strategy": "LongestFirst", "stride": 0}, "max_length"),
        (
            "pre_tokenizer",
            {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
            "(a+)+$",
        ),
        ("normalizer", {"type": "Replace", "pattern": {"Regex": "(.*)*b"}, "content": ""}, "(.*)*b"),
    ],
)
def test_a_tokenizer_that_pads_for_ever_or_has_a_regular_expression_of_its_own(part, value, word, models):
    folder = models / VD / "tokenizer"
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json(folder) | {part: value}))
    refused(lambda: ClipTokens.load(models / VD), path, word)


@pytest.mark.parametrize("file", [*CONFIGS[:6], "vdvae-imagenet64/config.json"])
def test_a_byte_order_mark_is_named(file, models):
    path = models / file
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    refused(lambda: load(models, file), path, "byte order mark")


# ------------------------------------------------- any value anywhere

_ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 80)
    | st.sampled_from([10**5, 10**12, -(10**9), 2**63, 10**400])
    | st.floats()
    | st.sampled_from(["", "gelu", "x", "../../etc/passwd", "code.Model", "float64", "eager", "\x00"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "auto_map"]), inner),
    max_leaves=6,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.sampled_from([*CONFIGS, "vdvae-imagenet64/config.json"]), st.data())
def test_any_value_is_taken_or_refused_by_name(originals, tmp_path_factory, file, data):
    """Nothing but the app's own errors, no hang, no gigabytes."""
    content = json.loads((originals / file).read_text())
    key = data.draw(st.sampled_from([*content, "quantization_config", "num_class_embeds", "vision_config"]))
    folder = tmp_path_factory.mktemp("fuzz")
    root = originals / file.partition("/")[0]
    copy = folder / root.name
    shutil.copytree(root, copy, copy_function=os.link)
    target = copy / (originals / file).relative_to(root)
    target.unlink()
    target.write_text(json.dumps(content | {key: data.draw(_ANY)}))
    signal.alarm(60)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = f"{copy} loaded"
    try:
        load(folder, file)
    except AppError as error:
        message = str(error)
    assert str(copy) in message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1_000_000  # kB
    shutil.rmtree(folder)
