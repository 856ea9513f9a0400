"""Read checkpoints without running code from them, and load them strictly."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from bidsapp.errors import AppError, ExitCode
from bidsapp.models.weights.configurations import Limits, check_folder, read_configuration, tokenizer_kind
from bidsapp.storage.text import read_json

#: Weights in a component's folder, in the order in which the libraries look for them.
_WEIGHTS = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
)


#: Options of every ``from_pretrained``: nothing is fetched, and no code of a models folder is run.
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
#: What CLIP's configurations call their kind of model.
_CLIP = ("clip", "clip_vision_model", "clip_text_model")


@contextmanager
def readable(path: Path, what: str = "these weights") -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into an error that names it.

    Damaged files fail in many ways: zip, pickle, struct, JSON, safetensors, and the libraries' own.

    Raises
    ------
    AppError
        Exit code 65, with the path, the reason and how to fix it.
    """
    try:
        yield
    except (AppError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise _unreadable(path, _reason(error), what) from error
    except BaseException as error:  # how the tokenizers' and safetensors' compiled parts fail
        if type(error).__name__ != "PanicException":
            raise
        raise _unreadable(path, _reason(error), what) from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence remarks of diffusers and transformers that the user can do nothing about.

    They concern torchvision, which is not needed, formats, and the safety of torch files, which are read
    without running code.
    """
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    libraries: tuple[Any, Any] = (of_diffusers, of_transformers)
    before = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
        library.set_verbosity(50)  # not even errors: they come as exceptions too
    try:
        yield
    finally:
        for library, verbosity in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)


def read_checkpoint(path: Path, *, mapped: bool = False) -> dict[str, Tensor]:
    """Read a state dict: safetensors by the name's ending, else a torch file with ``weights_only``.

    ``mapped``: map a torch file into memory if its format allows that, so that only what is used is read.

    Raises
    ------
    AppError
        Exit code 75 if the file is missing, 65 if it cannot be read or is not a state dict.
    """
    if not path.is_file():
        raise AppError(
            f"{path}: these weights are missing. Fetch them, or give the folder that holds them with "
            "--models-dir.",
            exit_code=ExitCode.TRY_AGAIN,
        )
    with readable(path):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            _check_zip(path)
            mapped = mapped and zipfile.is_zipfile(path)
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise _unreadable(path, "it holds something other than named tensors")
    return dict(state)


def check_loadable(path: Path, name: str) -> None:
    """Check that a file can be loaded, by the ending of its final name.

    Raises
    ------
    AppError
        Exit code 65 if it is cut short or of another format.
    """
    if name.endswith(".json"):
        read_json(path)
    elif name.endswith(".safetensors"):
        from safetensors import safe_open

        with readable(path), safe_open(path, framework="pt"):
            pass  # the header has the file's length
    elif name.endswith((".bin", ".pth", ".th", ".tar")):
        with readable(path):
            _check_zip(path)
            torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _check_zip(path: Path) -> None:
    """Refuse a torch file that would inflate: its zip stores tensors as they are, each once."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    packed = next((e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise _unreadable(path, f"{packed!r} in it is compressed, which torch's own files never are")
    if sum(e.file_size for e in entries) > path.stat().st_size:
        raise _unreadable(path, "it declares more data than it holds")


def load_strictly(
    model: nn.Module, path: Path, *, unused: Sequence[str] = (), prefix: str = "", optional: str = ""
) -> None:
    """Load a checkpoint that must fill every tensor of a model, with nothing left over.

    Parameters
    ----------
    unused : sequence of str
        Beginnings of names (without ``prefix``) that the checkpoint may hold and the model does not use,
        such as a classifier.
    prefix : str
        Removed from the names that begin with it, e.g. ``module.`` of data-parallel training.
    optional : str
        Ending of names that old checkpoints lack; such tensors keep their initial value.

    Raises
    ------
    AppError
        Exit code 65 if names or shapes differ, naming them; otherwise as :func:`read_checkpoint`.
    """
    stored = {name.removeprefix(prefix): tensor for name, tensor in read_checkpoint(path).items()}
    stored = {name: tensor for name, tensor in stored.items() if not name.startswith(tuple(unused))}
    wanted = model.state_dict()
    missing = [n for n in wanted if n not in stored and not (optional and n.endswith(optional))]
    extra = [n for n in stored if n not in wanted]
    shapes = [
        f"{n} {tuple(stored[n].shape)} instead of {tuple(wanted[n].shape)}"
        for n in wanted
        if n in stored and stored[n].shape != wanted[n].shape
    ]
    faults = [
        f"{what}: {_some(names)}"
        for what, names in (("missing", missing), ("unknown", extra), ("of another shape", shapes))
        if names
    ]
    if faults:
        raise AppError(
            f"{path}: these are not the weights of {type(model).__name__} ({'; '.join(faults)}). "
            "Fetch the published file again, or check that files were not swapped.",
            exit_code=ExitCode.BAD_DATA,
        )
    model.load_state_dict({**wanted, **stored}, strict=True)


def load_component(kind: Any, folder: Path, limits: Limits, **options: Any) -> Any:
    """Load a diffusers or transformers model from a local folder, refusing one that lacks weights.

    The libraries only warn of weights that are not in the file, and leave them random.

    Parameters
    ----------
    kind : type
        Has ``from_pretrained``; takes the ``options``.
    folder : Path
        Holds config.json and weights, as safetensors or as a torch file (read with ``weights_only``).
    limits : mapping of str to number
        The published architecture (:mod:`bidsapp.models.weights.configurations`).

    Raises
    ------
    AppError
        Exit code 65 if a file is damaged or holds more than weights, if weights are missing from it or
        are of another shape; 66 if there is no config.json.
    """
    check_folder(folder)
    read_configuration(folder / "config.json", limits, {"_class_name": (kind.__name__,), "model_type": _CLIP})
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), folder)
    if index := next(iter(sorted(folder.glob("*.index.json"))), None):
        # Its entries are paths, which may lead anywhere; the models that recipes use are single files.
        raise _unreadable(index, "weights that an index splits into several files are not supported")
    with readable(weights), quiet_libraries():
        _check_zip(weights)
        model, report = kind.from_pretrained(
            folder,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **LOCAL,
            **options,
        )
    faults = [
        f"{what}: {_some(sorted(str(n[0] if isinstance(n, tuple) else n) for n in names))}"
        for what, names in (
            ("missing", report["missing_keys"]),
            ("of another shape", report["mismatched_keys"]),
        )
        if names
    ]
    if faults:
        raise AppError(
            f"{folder}: not the weights of a complete {kind.__name__} ({'; '.join(faults)}). The file is "
            "damaged or of another model: delete it and fetch it again.",
            exit_code=ExitCode.BAD_DATA,
        )
    return model


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a local folder.

    Raises
    ------
    AppError
        Exit code 65 if it is damaged or missing.
    """
    kind = tokenizer_kind(folder)
    with readable(folder, "this tokenizer"), quiet_libraries():
        import transformers

        return getattr(transformers, kind).from_pretrained(folder, **LOCAL)


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _reason(error: BaseException) -> str:
    """Give the reason in one line, without the libraries' advice to trust the file."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UnpicklingError):
            return "it holds something other than tensors, perhaps code; none of it was run"
        cause = cause.__cause__ or cause.__context__
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__


def _unreadable(path: Path, why: str, what: str = "these weights") -> AppError:
    return AppError(
        f"{path}: {what} cannot be read ({why}). The file may be damaged or incomplete: delete it "
        "and fetch it again.",
        exit_code=ExitCode.BAD_DATA,
    )
