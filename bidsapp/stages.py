"""Run a stage once: its inputs' hash names what it made, and a second run finds it there."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bidsapp import __version__

LOG = logging.getLogger("bidsapp")


@dataclass(frozen=True)
class StageResult:
    """Arrays that a stage made (memory-mapped, read-only) and the key they were made under."""

    key: str
    arrays: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]


class Stages:
    """The stages of one subject, kept in a folder.

    A stage's folder appears under its final name only when the stage is complete: everything is
    written to a neighbour folder that is then renamed. Its ``done.json`` holds the key: a hash of
    the stage's inputs (which name the keys of the stages before), its settings and the version of
    this package. A stage whose key differs, or whose files are damaged, is computed again.

    Parameters
    ----------
    folder : Path
        Work folder of one subject; made where missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}
        folder.mkdir(parents=True, exist_ok=True)

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
        """
        key = stage_key(name, inputs)
        done = self._load(name, key)
        if done is not None:
            LOG.info("%s: found from an earlier run", name)
            return done
        start = time.monotonic()
        LOG.info("%s: computing", name)
        partial = self.folder / f"{name}.partial-{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            arrays = compute(partial)
            for array_name, array in arrays.items():
                path = partial / f"{array_name}.npy"
                if path.exists():
                    getattr(array, "flush", lambda: None)()
                else:
                    np.save(path, array, allow_pickle=False)
            shapes = {n: [str(a.dtype), list(a.shape)] for n, a in arrays.items()}
            del arrays
            (partial / "done.json").write_text(json.dumps({"key": key, "arrays": shapes}), encoding="utf-8")
            final = self.folder / name
            shutil.rmtree(final, ignore_errors=True)
            partial.replace(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self.seconds[name] = time.monotonic() - start
        LOG.info("%s: done in %.1f s", name, self.seconds[name])
        result = self._load(name, key)
        if result is None:
            raise OSError(f"{self.folder / name}: written, but can't be read back; is the disk sound?")
        return result

    def _load(self, name: str, key: str) -> StageResult | None:
        folder = self.folder / name
        if not (folder / "done.json").exists():
            return None
        try:
            done = json.loads((folder / "done.json").read_text(encoding="utf-8"))
            if done["key"] != key:
                return None
            arrays = {}
            for array_name, (dtype, shape) in done["arrays"].items():
                array = np.load(folder / f"{array_name}.npy", mmap_mode="r", allow_pickle=False)
                if str(array.dtype) != dtype or list(array.shape) != shape:
                    raise ValueError(f"{array_name} has another shape than was written")
                arrays[array_name] = array
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
            LOG.warning("%s: what an earlier run left is damaged (%s); computing again", name, error)
            return None
        return StageResult(key, arrays)


class NotThere(Exception):
    """What a :class:`Survey` raises at the first stage that an earlier run did not leave."""


class Survey(Stages):
    """Looks for what an earlier run left of a subject; computes nothing and writes nothing.

    Attributes
    ----------
    found : set of str
        Stages that are there under the key that a run would have now.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
        done = self._load(name, stage_key(name, inputs))
        if done is None:
            raise NotThere(name)
        self.found.add(name)
        return done


def stage_key(name: str, inputs: Mapping[str, Any]) -> str:
    """Hash of a stage's name, its inputs and this package's version."""
    text = json.dumps([name, __version__, inputs], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
