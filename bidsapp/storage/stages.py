"""Run a stage once: its inputs' hash names what it made, and a second run finds it there."""

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
from bidsapp.storage.atomic import PARTIAL
from bidsapp.storage.files import sha256_file
from bidsapp.system.processes import here, is_gone, temporary
from bidsapp.system.write_errors import writing

LOG = logging.getLogger("bidsapp")


#: After this many seconds a temporary folder of another machine counts as left behind.
_DAY = 24 * 3600.0


@dataclass(frozen=True)
class StageResult:
    """Arrays that a stage made (memory-mapped, read-only), and a key that names them.

    The key is a hash of all that the stage was made of and of what the arrays hold, so stages that
    come after are computed again wherever a stage came out differently, for whatever reason. ``content``
    is a hash of the arrays alone: unlike the key, which knows the input files' paths and times, it is the
    same wherever the dataset lies.
    """

    key: str
    arrays: dict[str, np.ndarray]
    content: str = ""

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]


class Stages:
    """The stages of one subject, kept in a folder.

    A stage's folder appears under its final name only when the stage is complete: everything is
    written to a neighbour folder that is then renamed. Its ``done.json`` holds the stage's inputs
    (which name the keys of the stages before), their hash together with the version of this package,
    and the SHA-256 of every array. A stage whose inputs differ, or whose files are damaged, is computed
    again; all bytes are read to know that.

    Parameters
    ----------
    folder : Path
        Work folder of one subject; made where missing. One process at a time may use it.
    force : collection of str
        Kinds of stages (:data:`bidsapp.config.STAGES`) to compute again though they are there; ``all``
        for every one.
    """

    def __init__(self, folder: Path, force: Collection[str] = ()) -> None:
        self.folder = folder
        self.force = frozenset(force)
        self.seconds: dict[str, float] = {}
        folder.mkdir(parents=True, exist_ok=True)
        clear_folders(folder)

    def run(
        self, name: str, inputs: Mapping[str, Any], compute: Callable[[Path], Mapping[str, np.ndarray]]
    ) -> StageResult:
        """Run a stage, or find what it made before.

        Parameters
        ----------
        name : str
        inputs : mapping
            Everything the result depends on, as JSON-able values.
        compute : callable
            Gets a folder it may write ``.npy`` files to and returns the stage's arrays by name;
            arrays that it did not write there itself are written for it.

        Returns
        -------
        StageResult

        Raises
        ------
        CannotWrite
            Exit code 74 where the disk is full; nothing is left of the stage then.
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
        # temporary() before it is made: a signal may come in between
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
        self.seconds[name] = time.monotonic() - start
        LOG.info("%s: done in %.1f s", name, self.seconds[name])
        try:
            return _open(final, key, record, read=False)
        except (OSError, ValueError) as error:
            raise OSError(
                f"{final}: written, but can't be read back ({error}); is the disk sound?"
            ) from error

    def forced(self, name: str) -> bool:
        """Say whether a stage is to be computed though it is there."""
        return bool({"all", name, name.partition("_")[0]} & self.force)

    def drop(self, name: str) -> None:
        """Remove what an earlier run made."""
        final = self.folder / name
        (final / "done.json").unlink(missing_ok=True)  # half removed is never taken for complete
        shutil.rmtree(final, ignore_errors=True)

    def is_there(self, name: str, inputs: Mapping[str, Any]) -> bool:
        """Say whether an earlier run made this; compares files' lengths, reads nothing large."""
        try:
            _open_recorded(self.folder / name, stage_key(name, inputs))
        except NotThere:
            return False
        return True

    def _load(self, name: str, key: str, inputs: Mapping[str, Any]) -> StageResult | None:
        """Give what is there if it is right; otherwise None, and the log says why it is not used."""
        folder = self.folder / name
        if not (folder / "done.json").exists():
            LOG.info("%s: computing", name)
            return None
        try:
            record = json.loads((folder / "done.json").read_text(encoding="utf-8"))
            if record["key"] == key:
                return _open(folder, key, record, read=True)
            why = changes(record["inputs"], flat_inputs(inputs))
            why = why or f"version of this app ({record['version']}, now {__version__})"
            LOG.info("%s: computing again, changed since an earlier run: %s", name, why)
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            LOG.warning("%s: what an earlier run left is damaged (%s); computing again", name, error)
        return None


def _open(folder: Path, key: str, record: Mapping[str, Any], *, read: bool) -> StageResult:
    """Map a stage's arrays into memory (ValueError where they are not as recorded)."""
    arrays = {}
    for name, saved in record["arrays"].items():
        path = folder / f"{name}.npy"
        check_file(path, saved, read=read)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if str(array.dtype) != saved["dtype"] or list(array.shape) != saved["shape"]:
            raise ValueError(f"{name} has another shape than was written")
        arrays[name] = array
    saved = record["arrays"]
    return StageResult(content_key(key, saved), arrays, content_key("", saved))


def clear_folders(folder: Path) -> list[Path]:
    """Remove the half-made stages that killed processes left in a subject's work folder.

    One of a process that may live on is left alone: of this machine's processes the system is asked, of
    others everything younger than a day is kept.

    Returns
    -------
    list of Path
        What was removed, sorted.
    """
    removed = []
    for path in sorted(folder.glob(f"*{PARTIAL}*")):
        where, _, pid = path.name.rpartition(PARTIAL)[2].rpartition("-")
        try:
            old = time.time() - path.stat().st_mtime > _DAY
        except FileNotFoundError:
            continue
        if path.is_dir() and (old or (pid.isdecimal() and is_gone(where, int(pid)))):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
            LOG.info("%s: removed, a killed run left it half made", path)
    return removed


class NotThere(Exception):
    """What a :class:`Survey` raises at the first stage that an earlier run did not leave."""


class Survey(Stages):
    """Looks for what an earlier run left of a subject; computes nothing and writes nothing.

    Files' lengths are compared, and their checksums where that is asked for; without, nothing large is read.

    Parameters
    ----------
    folder : Path
    read : bool
        Whether to compare checksums.

    Attributes
    ----------
    found : set of str
        Stages that are there under the key that a run would have now.
    """

    def __init__(self, folder: Path, *, read: bool = False) -> None:
        self.folder, self._read = folder, read
        self.force = frozenset()
        self.seconds = {}
        self.found: set[str] = set()

    def run(
        self, name: str, inputs: Mapping[str, Any], compute: Callable[[Path], Mapping[str, np.ndarray]]
    ) -> StageResult:
        """Give a stage that is there.

        Raises
        ------
        NotThere
        """
        done = _open_recorded(self.folder / name, stage_key(name, inputs), read=self._read)
        self.found.add(name)
        return done


def _open_recorded(folder: Path, key: str, *, read: bool = False) -> StageResult:
    """Map what an earlier run made into memory (NotThere where it is not there, or something else)."""
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
