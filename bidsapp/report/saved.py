"""A subject's report as a file of data, from which its page can be written again."""

from __future__ import annotations

import json
import types
import typing
import zipfile
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bidsapp.errors import AppError, ExitCode
from bidsapp.report.records import SubjectReport
from bidsapp.storage.atomic import atomic_path

#: The array of the file that holds everything else, as JSON in UTF-8.
_RECORD = "record"


def save_report(path: Path, report: SubjectReport) -> None:
    """Write a report's content as ``.npz``, without its images, which are files of their own."""
    arrays: dict[str, np.ndarray] = {}
    text = json.dumps(_encode(report, arrays))
    arrays[_RECORD] = np.frombuffer(text.encode(), dtype=np.uint8)
    with atomic_path(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_report(path: Path) -> SubjectReport:
    """Read a report's content; its figures count as drawn.

    Raises
    ------
    AppError
        Exit code 65 if the file is damaged or of another version of this app, 66 if it is missing.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        content = json.loads(arrays.pop(_RECORD).tobytes())
        report: SubjectReport = _decode(SubjectReport, content, arrays)
    except FileNotFoundError as error:
        what = f"{path}: missing. Run the participant level for this subject again, with --force all."
        raise AppError(what, exit_code=ExitCode.NO_INPUT, path=path) from error
    except (
        OSError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
    ) as error:
        what = (
            f"{path}: damaged, or of another version of this app ({error}). Run the participant level again"
        )
        raise AppError(f"{what} with --force all.", exit_code=ExitCode.BAD_DATA, path=path) from error
    return replace(report, drawn=True)


def _encode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Write a value as JSON takes it; arrays by name, images (uint8) as null."""
    if is_dataclass(value):
        return {f.name: _encode(getattr(value, f.name), arrays) for f in fields(value)}
    if isinstance(value, np.ndarray):
        if value.dtype == np.uint8:
            return None
        arrays[name := f"array{len(arrays)}"] = value
        return name
    if isinstance(value, Mapping):
        return {"items": [[_encode(key, arrays), _encode(each, arrays)] for key, each in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_encode(each, arrays) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def _decode(hint: Any, value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Make a value of the annotated type from what :func:`_encode` wrote."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if value is None:
        return None
    if origin in (typing.Union, types.UnionType):
        return _decode(next(each for each in inner if each is not type(None)), value, arrays)
    if is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return typing.cast(Any, hint)(**{n: _decode(hints[n], each, arrays) for n, each in value.items()})
    if origin is np.ndarray:
        return arrays[value]
    if origin is Mapping or (hint is object and isinstance(value, dict)):
        of_key, of_value = inner or (object, object)
        return {_decode(of_key, key, arrays): _decode(of_value, v, arrays) for key, v in value["items"]}
    if origin is tuple:
        each_hint = [inner[0]] * len(value) if inner[-1] is ... else inner
        return tuple(_decode(h, each, arrays) for h, each in zip(each_hint, value, strict=True))
    return value
