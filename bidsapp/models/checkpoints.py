"""Read checkpoints without running code from them, and load them strictly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bidsapp.errors import AppError, ExitCode


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a state dict: safetensors by the name's ending, else a torch file with ``weights_only``.

    Parameters
    ----------
    path : Path

    Returns
    -------
    dict of Tensor
        On the CPU, names as stored.

    Raises
    ------
    AppError
        Exit code 75 if the file is not there, 65 if it cannot be read or holds no state dict.
    """
    if not path.is_file():
        raise AppError(
            f"{path}: these weights are not there. Fetch them, or give the folder that holds them with "
            "--models-dir.",
            exit_code=ExitCode.TRY_AGAIN,
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files fail in many ways: zip, pickle, struct, safetensors
        raise _unreadable(path, str(error).partition("\n")[0]) from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise _unreadable(path, "it holds something else than named tensors")
    return dict(state)


def load_strictly(
    model: nn.Module, path: Path, *, unused: Sequence[str] = (), prefix: str = "", optional: str = ""
) -> None:
    """Load a checkpoint into a model whose every tensor it must fill, and nothing else be left over.

    Parameters
    ----------
    model : nn.Module
    path : Path
    unused : sequence of str
        Beginnings of names (after ``prefix`` is taken off) that the checkpoint may hold and the model
        has no use for, such as a classifier.
    prefix : str
        Taken off the names that begin with it, e.g. ``module.`` of data-parallel training.
    optional : str
        Ending of names that old checkpoints lack; such tensors keep their initial value.

    Raises
    ------
    AppError
        Exit code 65 where names or shapes do not agree, naming them; as :func:`read_checkpoint` else.
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
            "Fetch the published file again, or check that files were not exchanged.",
            exit_code=ExitCode.BAD_DATA,
        )
    model.load_state_dict({**wanted, **stored}, strict=True)


def load_component(kind: Any, folder: Path, **options: Any) -> Any:
    """Load a diffusers or transformers model from a local folder, refusing one that lacks weights.

    The libraries only warn of weights that are not in the file, and leave them random.

    Parameters
    ----------
    kind : type
        Has ``from_pretrained``.
    folder : Path
        Holds config.json and weights, as safetensors or as a torch file (read with ``weights_only``).

    Raises
    ------
    AppError
        Exit code 65 if weights are missing from the file.
    """
    model, report = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **options)
    if missing := sorted(report["missing_keys"]):
        raise AppError(
            f"{folder}: not the weights of a whole {kind.__name__} (missing: {_some(missing)}). The file is "
            "damaged or of another model: delete it and fetch it again.",
            exit_code=ExitCode.BAD_DATA,
        )
    return model


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _unreadable(path: Path, why: str) -> AppError:
    return AppError(
        f"{path}: these weights cannot be read ({why}). The file may be damaged or incomplete: delete it "
        "and fetch it again.",
        exit_code=ExitCode.BAD_DATA,
    )
