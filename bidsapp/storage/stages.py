"""Stages: results cached under a hash of their inputs, so that a second run finds them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bidsapp import __version__
from bidsapp.storage.atomic import PARTIAL, clear_partials
from bidsapp.storage.files import sha256_file
from bidsapp.system.logging import ROUTINE
from bidsapp.system.processes import here, temporary
from bidsapp.system.write_errors import writing

LOG = logging.getLogger("bidsapp")


@dataclass(frozen=True)
class StageResult:
    """Arrays that a stage computed (memory-mapped, read-only), and a key that identifies them.

    The key is a hash of the stage's inputs and of the arrays, so later stages are recomputed whenever this
    one gives another result, for whatever reason. ``content`` is a hash of the arrays alone: unlike the key,
    which covers the paths and times of input files, it does not depend on where the dataset is.
    """

    key: str
    arrays: dict[str, np.ndarray]
    content: str = ""

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]


class Stages:
    """The stages of one subject, cached in a folder.

    A stage's folder appears under its final name only when the stage is complete: everything is written to
    a temporary folder that is then renamed. Its ``done.json`` holds the stage's inputs (including the keys
    of earlier stages), their hash together with the version of this package, and the SHA-256 of every
    array. A stage whose inputs differ, or whose files are damaged, is recomputed; all bytes are read to
    check that.

    Parameters
    ----------
    folder : Path
        Work folder of one subject; created if missing. One process at a time may use it.
    force : collection of str
        Kinds of stages (:data:`bidsapp.config.STAGES`) to recompute even if they are cached; ``all`` for
        every stage.
    """

    def __init__(self, folder: Path, force: Collection[str] = ()) -> None:
        self.folder = folder
        self.force = frozenset(force)
        folder.mkdir(parents=True, exist_ok=True)
        for path in clear_partials(folder):
            LOG.info("%s: removed, left unfinished by a killed run", path)

    def run(
        self, name: str, inputs: Mapping[str, Any], compute: Callable[[Path], Mapping[str, np.ndarray]]
    ) -> StageResult:
        """Run a stage, or load its cached result.

        Parameters
        ----------
        inputs : mapping
            Everything that the result depends on, as values that JSON can hold.
        compute : callable
            Gets a folder that it may write ``.npy`` files to, and returns the stage's arrays by name;
            arrays that it did not write there itself are written for it.

        Raises
        ------
        CannotWrite
            Exit code 74 if the disk is full; nothing is left of the stage then.
        """
        key = stage_key(name, inputs)
        if self.forced(name):
            LOG.info("%s: computing, because of --force", name)
        else:
            done = self._load(name, key, inputs)
            if done is not None:
                LOG.info("%s: found from an earlier run", name)
                return done
        start = time.monotonic()
        partial = self.folder / f"{name}{PARTIAL}{here()}-{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        # temporary() before it is created: a signal may come in between
        with writing(self.folder / name), temporary(partial):
            partial.mkdir()
            arrays = compute(partial)
            for array_name, array in arrays.items():
                path = partial / f"{array_name}.npy"
                if path.exists():
                    getattr(array, "flush", lambda: None)()
                else:
                    np.save(path, array, allow_pickle=False)
            records = {
                n: record_array(partial / f"{n}.npy", str(a.dtype), a.shape) for n, a in arrays.items()
            }
            del arrays
            record = {"key": key, "version": __version__, "inputs": flat_inputs(inputs), "arrays": records}
            (partial / "done.json").write_text(json.dumps(record), encoding="utf-8")
            final = self.folder / name
            self.drop(name)
            partial.replace(final)
        LOG.info("%s: done in %.1f s", name, time.monotonic() - start, extra=ROUTINE)
        try:
            return _open(final, key, record, read=False)
        except (OSError, ValueError) as error:
            raise OSError(f"{final}: written, but cannot be read back ({error}). Check the disk.") from error

    def forced(self, name: str) -> bool:
        """Whether a stage is recomputed even if it is cached."""
        return bool({"all", name, name.partition("_")[0]} & self.force)

    def drop(self, name: str) -> None:
        """Remove the cached result of an earlier run."""
        final = self.folder / name
        (final / "done.json").unlink(missing_ok=True)  # so that a half-removed stage never counts as complete
        shutil.rmtree(final, ignore_errors=True)

    def is_there(self, name: str, inputs: Mapping[str, Any]) -> bool:
        """Whether a stage is cached; compares the sizes of files, reads nothing large."""
        try:
            _open_recorded(self.folder / name, stage_key(name, inputs))
        except NotThere:
            return False
        return True

    def _load(self, name: str, key: str, inputs: Mapping[str, Any]) -> StageResult | None:
        """Load what is cached if it matches; otherwise None, and the log states why."""
        folder = self.folder / name
        if not (folder / "done.json").exists():
            LOG.info("%s: computing", name, extra=ROUTINE)
            return None
        try:
            record = json.loads((folder / "done.json").read_text(encoding="utf-8"))
            if record["key"] == key:
                return _open(folder, key, record, read=True)
            why = changes(record["inputs"], flat_inputs(inputs))
            why = why or f"version of this app ({record['version']}, now {__version__})"
            LOG.info("%s: recomputing, changed since an earlier run: %s", name, why)
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            LOG.warning("%s: the result of an earlier run is damaged (%s); recomputing", name, error)
        return None


def _open(folder: Path, key: str, record: Mapping[str, Any], *, read: bool) -> StageResult:
    """Map a stage's arrays into memory (ValueError if they are not as recorded)."""
    arrays = {}
    for name, saved in record["arrays"].items():
        path = folder / f"{name}.npy"
        check_file(path, saved, read=read)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if str(array.dtype) != saved["dtype"] or list(array.shape) != saved["shape"]:
            raise ValueError(f"{name} has another shape than recorded")
        arrays[name] = array
    saved = record["arrays"]
    return StageResult(content_key(key, saved), arrays, content_key("", saved))


class NotThere(Exception):
    """What a :class:`Survey` raises at the first stage that is not cached."""


class Survey(Stages):
    """Looks for the cached stages of a subject; computes and writes nothing.

    The sizes of files are compared, and with ``read`` their checksums; otherwise nothing large is read.

    Attributes
    ----------
    found : set of str
        Stages that are cached under the key that a run would have now.
    """

    def __init__(self, folder: Path, *, read: bool = False) -> None:
        self.folder, self._read = folder, read
        self.force = frozenset()
        self.found: set[str] = set()

    def run(
        self, name: str, inputs: Mapping[str, Any], compute: Callable[[Path], Mapping[str, np.ndarray]]
    ) -> StageResult:
        """Load a cached stage (NotThere if there is none)."""
        done = _open_recorded(self.folder / name, stage_key(name, inputs), read=self._read)
        self.found.add(name)
        return done


def _open_recorded(folder: Path, key: str, *, read: bool = False) -> StageResult:
    """Map the result of an earlier run into memory (NotThere if it is missing or differs)."""
    try:
        record = json.loads((folder / "done.json").read_text(encoding="utf-8"))
        if record["key"] != key:
            raise NotThere(folder.name)
        return _open(folder, key, record, read=read)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NotThere(folder.name) from error


def stage_key(name: str, inputs: Mapping[str, Any]) -> str:
    """Hash of a stage's name, its inputs and this package's version."""
    text = json.dumps([name, __version__, inputs], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


#: Values longer than this, as JSON, are stored as their hash: lists of thousands of stimuli.
_LONGEST = 200
#: Changes that a message names.
_NAMED = 4


def flat_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a stage's inputs for its record: nested names joined by dots, long values as hashes."""
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
    """List which inputs (from :func:`flat_inputs`) differ, with their values if these are short.

    For example ``seed (0, now 1), settings.steps (50, now 20)``; "" if none differs.
    """
    missing = object()
    found = []
    for name in dict.fromkeys([*old, *new]):
        before, now = old.get(name, missing), new.get(name, missing)
        if before == now:
            continue
        if name == "after":
            found.append("an earlier stage")
        elif before is missing or now is missing:
            found.append(f"{name} ({'new' if before is missing else 'no longer given'})")
        elif len(texts := f"{before}, now {now}") <= 60 and "sha256:" not in texts:
            found.append(f"{name} ({texts})")
        else:
            found.append(name)
    more = len(found) - _NAMED
    return ", ".join(found[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def record_array(path: Path, dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Record an array's file: type, shape, bytes and SHA-256."""
    size = path.stat().st_size
    return {"dtype": dtype, "shape": list(shape), "bytes": size, "sha256": sha256_file(path)}


def check_file(path: Path, record: Mapping[str, Any], *, read: bool) -> None:
    """Compare a file with its record from :func:`record_array` (ValueError if they differ).

    Without ``read`` only its size is compared, with it the checksum as well.
    """
    size = path.stat().st_size
    if size != record["bytes"]:
        raise ValueError(f"{path.name} has {size} bytes instead of {record['bytes']}")
    if read and sha256_file(path) != record["sha256"]:
        raise ValueError(f"{path.name} does not have the recorded checksum")


def content_key(key: str, arrays: Mapping[str, Mapping[str, Any]]) -> str:
    """Identify a result: the stage's key together with the contents of its arrays."""
    text = json.dumps([key, sorted((name, record["sha256"]) for name, record in arrays.items())])
    return hashlib.sha256(text.encode()).hexdigest()
