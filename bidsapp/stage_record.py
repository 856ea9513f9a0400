"""What a stage leaves about itself: what it was made of, and a checksum of every array."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bidsapp.io import sha256_file

#: Values longer than this, as JSON, are kept as their hash: lists of thousands of stimuli.
_LONGEST = 200
#: Changes that a message names.
_NAMED = 4


def flat_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Give a stage's inputs as they are kept: nested names joined by dots, long values as hashes."""
    kept = {}
    for name, value in _leaves(json.loads(json.dumps(inputs, default=str)), ""):
        text = json.dumps(value, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        kept[name] = value if len(text) <= _LONGEST else f"sha256:{digest}"
    return kept


def _leaves(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Say which inputs differ, with their values where these are short.

    Parameters
    ----------
    old, new : mapping
        From :func:`flat_inputs`.

    Returns
    -------
    str
        ``seed (0, now 1), settings.steps (50, now 20)``; "" where none differs.
    """
    missing = object()
    found = []
    for name in dict.fromkeys([*old, *new]):
        before, now = old.get(name, missing), new.get(name, missing)
        if before == now:
            continue
        if name == "after":
            found.append("what came before it")
        elif before is missing or now is missing:
            found.append(f"{name} ({'new' if before is missing else 'no longer given'})")
        elif len(texts := f"{before}, now {now}") <= 60 and "sha256:" not in texts:
            found.append(f"{name} ({texts})")
        else:
            found.append(name)
    more = len(found) - _NAMED
    return ", ".join(found[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def record_array(path: Path, dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Describe an array's file: type, shape, bytes and SHA-256."""
    size = path.stat().st_size
    return {"dtype": dtype, "shape": list(shape), "bytes": size, "sha256": sha256_file(path)}


def check_file(path: Path, record: Mapping[str, Any], *, read: bool) -> None:
    """Compare a file with its record.

    Parameters
    ----------
    path : Path
    record : mapping
        From :func:`record_array`.
    read : bool
        Whether to read it all and compare the checksum; otherwise its length alone is compared.

    Raises
    ------
    ValueError
        Where they differ.
    """
    size = path.stat().st_size
    if size != record["bytes"]:
        raise ValueError(f"{path.name} has {size} bytes in place of {record['bytes']}")
    if read and sha256_file(path) != record["sha256"]:
        raise ValueError(f"{path.name} does not have the checksum that it was written with")


def content_key(key: str, arrays: Mapping[str, Mapping[str, Any]]) -> str:
    """Name what a stage made: its key together with what the arrays hold."""
    text = json.dumps([key, sorted((name, record["sha256"]) for name, record in arrays.items())])
    return hashlib.sha256(text.encode()).hexdigest()
