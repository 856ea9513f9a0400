"""Blocks of a stage: complete parts of it, so that a stage can be resumed and shared among jobs.

A stage whose images are independent is split by image. The block size is chosen once, when the first process
begins, and stored with the blocks. So the bytes depend neither on which job computes which block nor on how
often the work was interrupted.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bidsapp import __version__
from bidsapp.storage.atomic import atomic_path
from bidsapp.storage.files import sha256_array
from bidsapp.storage.npy import row_writer
from bidsapp.storage.stages import changes, flat_inputs
from bidsapp.storage.text import write_text

LOG = logging.getLogger("bidsapp")

#: What follows a stage's name in the name of its blocks' folder.
SUFFIX = ".blocks"
_PLAN, _BLOCK = "plan.json", ".safetensors"
_ARRAY, _ABOUT = "images", "about"


class Blocks:
    """Blocks of one stage in a subject's work folder: ``<stage>.blocks/00000.safetensors`` ...

    ``plan.json`` next to them holds the stage's key and the block size. A block holds its array, the stage's
    key, and the SHA-256 of the array's bytes.

    Parameters
    ----------
    folder : Path
        Work folder of the subject.
    name, key : str
        Of the stage; see :func:`bidsapp.storage.stages.stage_key`.
    inputs : mapping
        What the key was computed from, for the log.
    n : int
        Number of images of the stage.

    Attributes
    ----------
    size : int
        Images per block (the last may have fewer); 0 until :meth:`begin` or :meth:`begun`.
    """

    def __init__(self, folder: Path, name: str, key: str, inputs: Mapping[str, Any], n: int) -> None:
        self.folder = folder / f"{name}{SUFFIX}"
        self.name, self.key, self.n = name, key, n
        self._inputs = flat_inputs(inputs)
        self.size = 0

    def __len__(self) -> int:
        return -(-self.n // self.size) if self.size else 0

    def rows(self, index: int) -> slice:
        """Positions of a block's images among those of the stage."""
        return slice(index * self.size, min((index + 1) * self.size, self.n))

    def begun(self) -> bool:
        """Resume blocks that were begun for the same stage; False if there are none."""
        record = _read_plan(self.folder)
        if record.get("key") != self.key:
            return False
        self.size = record["size"]
        return True

    def begin(self, choose: Callable[[], int]) -> None:
        """Resume blocks that were begun for the same stage, or begin them; one process at a time may.

        ``choose`` gives the number of images per block; it is called only if there is no block yet.
        """
        if self.begun() and self._files():
            LOG.info(
                "%s: resumed; %d of %d blocks are from an earlier run", self.name, self.there(), len(self)
            )
            return
        if self.folder.exists():
            old = _read_plan(self.folder)
            if self._files():
                why = changes(old.get("inputs", {}), self._inputs) or "the version of this app"
                LOG.info("%s: removed the blocks of an earlier run; changed since: %s", self.name, why)
            self.remove()
        self.size = choose()
        record = {"key": self.key, "version": __version__, "size": self.size, "n": self.n}
        write_text(self.folder / _PLAN, json.dumps(record | {"inputs": self._inputs}) + "\n")

    def there(self) -> int:
        """Count the blocks on disk, without reading them."""
        return len({path.name for path in self._files()} & {self._file(i).name for i in range(len(self))})

    def has(self, index: int) -> bool:
        """Whether a block is on disk; it is not read."""
        return self._file(index).is_file()

    def find(self, index: int) -> np.ndarray | None:
        """Load a block; None if it is missing or damaged (which is logged)."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        path, rows = self._file(index), self.rows(index)
        if not path.is_file():
            return None
        try:
            content = load(path.read_bytes())
            array, about = content[_ARRAY], json.loads(content[_ABOUT].tobytes())
            if about["key"] != self.key or about["rows"] != [rows.start, rows.stop]:
                raise ValueError("it belongs to another stage, or to other images")
            if about["sha256"] != sha256_array(array):
                raise ValueError("its checksum differs from the recorded one")
            if len(array) != rows.stop - rows.start:
                raise ValueError("its number of images differs from the recorded one")
        except (SafetensorError, OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            LOG.warning("%s: block %d is damaged (%s); recomputing it", self.name, index, error)
            return None
        return array

    def write(self, index: int, array: np.ndarray) -> None:
        """Write a block atomically."""
        from safetensors.numpy import save

        array, rows = np.ascontiguousarray(array), self.rows(index)
        about = json.dumps({"key": self.key, "rows": [rows.start, rows.stop], "sha256": sha256_array(array)})
        # As an array: the format's own metadata have no fixed order.
        content = {_ARRAY: array, _ABOUT: np.frombuffer(about.encode(), dtype=np.uint8)}
        with atomic_path(self._file(index)) as path:
            path.write_bytes(save(content))

    def gather(self, path: Path, make: Callable[[int], np.ndarray]) -> np.ndarray:
        """Join all blocks in one ``.npy`` file, which is returned memory-mapped, shape (n, ...).

        ``make`` computes (and writes) a block that is missing.
        """
        if not self.n:
            raise ValueError(f"{self.name}: no images")
        first = self._find_or_make(0, make)
        with row_writer(path, (self.n, *first.shape[1:]), first.dtype) as write:
            write(first)
            for index in range(1, len(self)):
                write(self._find_or_make(index, make))
        whole: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return whole

    def _find_or_make(self, index: int, make: Callable[[int], np.ndarray]) -> np.ndarray:
        found = self.find(index)
        return make(index) if found is None else found

    def remove(self) -> None:
        """Remove all blocks; the plan first, so that a half-removed folder never counts as begun."""
        (self.folder / _PLAN).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:05d}{_BLOCK}"

    def _files(self) -> list[Path]:
        return _block_files(self.folder)


def count_blocks(folder: Path, name: str) -> tuple[int, int] | None:
    """Count a stage's blocks on disk, and all that it needs; None if none was begun. Reads no block."""
    record = _read_plan(folder / f"{name}{SUFFIX}")
    if not record:
        return None
    return len(_block_files(folder / f"{name}{SUFFIX}")), -(-record["n"] // record["size"])


def _block_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob(f"*{_BLOCK}") if not p.name.startswith("."))


def _read_plan(folder: Path) -> dict[str, Any]:
    """Read which stage the blocks belong to; empty if unknown."""
    try:
        record: dict[str, Any] = json.loads((folder / _PLAN).read_text(encoding="utf-8"))
        sound = all(type(record[name]) is int and record[name] > 0 for name in ("size", "n"))
        return record if sound and isinstance(record["inputs"], dict) else {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}
