"""Configuration files of models, checked before a library reads them.

Libraries look up the classes that a configuration names, may fetch and run code that it names, and build
whatever sizes it asks for. Files of a models folder are data from elsewhere, so each is checked first: it is
a regular file, names no code, only known classes, and no number beyond the published architecture.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.text import read_json

Limits = Mapping[str, float]
#: CLIP's vocabulary, whose highest number is that of the end-of-text token.
_TOKENS = {"vocab_size": 49408, "bos_token_id": 49407, "eos_token_id": 49407, "pad_token_id": 49407}
_CLIP = {**_TOKENS, "image_size": 224, "patch_size": 32, "num_channels": 3, "max_position_embeddings": 77}
#: Largest values in the published configurations, by the component's key.
TEXT_L14: Limits = {
    **_CLIP, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "projection_dim": 768,
}  # fmt: skip
VIT_L14: Limits = {
    **_CLIP, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "projection_dim": 768,
}  # fmt: skip
VIT_H14: Limits = {
    **_CLIP, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 16, "projection_dim": 1024,
}  # fmt: skip
AUTOKL: Limits = {
    "block_out_channels": 512, "layers_per_block": 2, "latent_channels": 4, "in_channels": 3,
    "out_channels": 3, "sample_size": 1024, "norm_num_groups": 32,
}  # fmt: skip
UNET: Limits = {
    "block_out_channels": 1280, "layers_per_block": 2, "cross_attention_dim": 768, "sample_size": 64,
    "attention_head_dim": 8, "num_attention_heads": 8, "in_channels": 4, "out_channels": 4,
    "norm_num_groups": 32, "conv_in_kernel": 3, "conv_out_kernel": 3, "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": 1,
}  # fmt: skip
SCHEDULE: Limits = {"num_train_timesteps": 1000}
TOKENIZER: Limits = {**_TOKENS, "id": 49407, "model_max_length": 77, "max_length": 77, "Fixed": 77}
#: Largest value of keys that a table does not name, and longest list of keys that :data:`_ITEMS` does not.
_OTHERS, _LIST = 1024, 16
_ITEMS = {"block_out_channels": 4, "down_block_types": 4, "up_block_types": 4, "trained_betas": 1000}
#: Keys that make a library fetch or import what their values name.
_CODE = ("auto_map", "quantization_config", "attn_implementation", "_attn_implementation", "custom_pipelines")
#: Regular expressions of CLIP's tokenizers; another one may take for ever.
_EXPRESSIONS = (
    r"\s+",
    r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FETCH = "The file may be damaged or of another model: delete it and fetch it again."


def read_configuration(
    file: Path, limits: Limits, classes: Mapping[str, Collection[str]] | None = None
) -> dict[str, Any]:
    """Read and check a configuration file.

    Parameters
    ----------
    limits : mapping of str to number
        Largest value by key, at any depth.
    classes : mapping of str to collection of str, optional
        Known values of the keys that name classes, where the file has them.

    Raises
    ------
    AppError
        Exit code 66 if it is missing; 65 if it is not a JSON file, names code or another class, or has a
        number beyond the limit.
    """
    content = read_json(file)
    with open(file, "rb") as stream:
        if stream.read(3) == _BYTE_ORDER_MARK:
            raise _refused(
                file, "begins with a byte order mark, which the libraries cannot read. Save it without"
            )
    for key, known in (classes or {}).items():
        if key in content and content[key] not in known:
            raise _refused(file, f"{key} is {content[key]!r}, but should be {' or '.join(known)}. {_FETCH}")
    check_values(file, content, limits)
    return content


def check_values(file: Path, content: Any, limits: Limits) -> None:
    """Check the values of a file's content at any depth; errors as :func:`read_configuration`."""
    for key, value in _values(content, ""):
        if key in _CODE and value not in (None, False, "", "eager", "sdpa"):
            raise _refused(
                file,
                f"names code to be run or fetched ({key}), which the app never does. If the weights are the "
                "ones you want, delete this key.",
            )
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            most = limits.get(key, _OTHERS)
            if not abs(value) <= most:
                raise _refused(
                    file, f"{key} is {value}, but at most {most} in the published architecture. {_FETCH}"
                )
        if isinstance(value, list) and len(value) > _ITEMS.get(key, _LIST):
            raise _refused(file, f"{key} has {len(value)} items, at most {_ITEMS.get(key, _LIST)}. {_FETCH}")
        if key == "Regex" and value not in _EXPRESSIONS:
            raise _refused(
                file,
                f"has the regular expression {str(value)[:80]!r}, which CLIP's tokenizer does not. {_FETCH}",
            )


def _values(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Give every value with its key; an item of a list has the list's key."""
    yield key, value
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _values(inner, name)
    elif isinstance(value, list):
        for inner in value[: _ITEMS["trained_betas"]]:
            yield from _values(inner, key)


def check_folder(folder: Path) -> None:
    """Refuse a component's folder in which a library would wait for a pipe, or load an adapter.

    Raises
    ------
    AppError
        Exit code 65, naming the file.
    """
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            if path.name == "adapter_config.json":
                raise _refused(
                    path,
                    "names an adapter to load, which the app never does. Delete it to use the weights alone.",
                )
            mode = path.stat().st_mode if path.exists() else stat.S_IFREG
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket or a device"
                raise _refused(path, f"is {kind}, not a file. Delete it and fetch it again.")


def tokenizer_kind(folder: Path) -> str:
    """Check the files of a tokenizer, and name its class: ``CLIPTokenizer`` or ``PreTrainedTokenizerFast``.

    Raises
    ------
    AppError
        Exit code 65 or 66, as :func:`read_configuration`.
    """
    check_folder(folder)
    own, general = ("CLIPTokenizer", "CLIPTokenizerFast"), ("PreTrainedTokenizerFast", "TokenizersBackend")
    file = folder / "tokenizer_config.json"
    content = read_configuration(file, TOKENIZER, {"tokenizer_class": (*own, *general)})
    if (whole := folder / "tokenizer.json").exists():
        parts = {k: v for k, v in read_json(whole).items() if k not in ("model", "added_tokens")}
        check_values(whole, parts, TOKENIZER)
    return general[0] if content.get("tokenizer_class") in general else own[0]


def _refused(file: Path, why: str) -> AppError:
    return AppError(f"{file}: {why}", exit_code=ExitCode.BAD_DATA)
