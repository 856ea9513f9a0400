"""The store of regression targets: each distinct stimulus is computed once, for all subjects.

The store is a folder of parts. A part is an HDF5 file with the targets of some stimuli; it is written
under a temporary name, renamed when complete, and never changed afterwards. So a killed run leaves complete
parts, and a later run computes what is missing. Jobs of several subjects can fill one store at the same
time: each claims the stimuli of the part that it computes, and skips those that another job has claimed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.atomic import atomic_path
from bidsapp.storage.claims import claim, claimed
from bidsapp.storage.files import sha256_array
from bidsapp.storage.hdf5 import write_hdf5
from bidsapp.storage.locks import locked
from bidsapp.system.logging import track

LOG = logging.getLogger("bidsapp")

#: How long to wait for other jobs while none of them finishes a part, and how often to check, in seconds.
_PATIENCE_S = 24 * 3600.0
_LOOK_S = 2.0
#: Dimensions per chunk. Reading some dimensions of all images then takes few long reads.
_CHUNK = 4096
#: Parts kept open at once; systems allow a process 256 or 1024 open files.
_OPEN_PARTS = 128

#: In a part: the dataset with its stimuli, and the attribute with an array's checksum.
_DIGEST, _SUM = "digest", "sha256"

#: Positions in the list of stimuli -> targets by name, each (k, dims).
ComputeTargets = Callable[[Sequence[int]], Mapping[str, np.ndarray]]


class StoredTargets:
    """Targets of chosen stimuli, read from the store's parts when sliced.

    Behaves like an array of shape (n, dims) and type float32 for ``rows[:, a:b]``, which is what the ridge
    reads. Fastest where a and b are multiples of 4096.
    """

    def __init__(self, parts: Parts, target: str, places: Sequence[tuple[str, int]]) -> None:
        # ``places``: for every row, the part and the row in it
        by_part: dict[str, tuple[list[int], list[int]]] = {}
        for row, (part, source) in enumerate(places):
            own, sources = by_part.setdefault(part, ([], []))
            own.append(row)
            sources.append(source)
        self._store, self._target = parts, target
        # for every part: its name, our rows that it holds, and their rows in it
        self._parts = [(name, np.array(own), np.array(rows)) for name, (own, rows) in by_part.items()]
        self.shape = (len(places), parts.width(places[0][0], target))
        self.ndim = 2
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        rows, columns = (range(n)[part] for n, part in zip(self.shape, key, strict=True))
        out = np.empty((len(rows), len(columns)), dtype=np.float32)
        if not out.size:
            return out
        place = np.full(self.shape[0], -1)
        place[list(rows)] = np.arange(len(rows))
        first, last = min(columns), max(columns) + 1
        for name, own, sources in self._parts:
            wanted = place[own] >= 0
            if not wanted.any():
                continue
            # one contiguous read, then the selection: HDF5 is slow at selecting rows
            low, high = sources[wanted].min(), sources[wanted].max() + 1
            block = self._store.read(name, self._target, slice(low, high), slice(first, last))
            out[place[own[wanted]]] = block[sources[wanted] - low, :: columns.step]
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = self[:, :]
        return whole if dtype is None else whole.astype(dtype)


class Parts:
    """The parts of a store, opened when read; the most recently read stay open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()  # a part must not be closed while another thread reads it

    def read(self, part: str, name: str, rows: slice, columns: slice | None = None) -> np.ndarray:
        """Read rows, or rows and columns, of an array, as stored.

        Raises
        ------
        AppError
            Exit code 65 if the part is damaged, 66 if it is missing.
        """
        with self._lock:
            try:
                array = self._file(part)[name]
                block: np.ndarray = array[rows] if columns is None else array[rows, columns]
            except FileNotFoundError as error:
                raise self._bad(part, "is missing", ExitCode.NO_INPUT) from error
            except (OSError, KeyError, ValueError, RuntimeError) as error:
                raise self._bad(part, f"is damaged ({error})", ExitCode.BAD_DATA) from error
        return block

    def width(self, part: str, name: str) -> int:
        """Dimensions of a target."""
        with self._lock:
            return int(self._file(part)[name].shape[1])

    def digests(self, part: str) -> list[str]:
        """Stimuli of a part, in row order; raises any of h5py's errors if it is damaged."""
        with self._lock:
            return list(self._file(part)[_DIGEST].asstr()[:])

    def find_damage(self, part: str) -> str:
        """Compare the targets of a part with their checksums; return what is wrong, "" if nothing is."""
        with self._lock:
            try:
                file = self._file(part)
                for name in file:
                    if name != _DIGEST and file[name].attrs.get(_SUM) != sha256_array(file[name][:]):
                        return f"{name} does not match its checksum"
            except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
                return str(error)
        return ""

    def close(self, part: str | None = None) -> None:
        """Close one part, or all."""
        with self._lock:
            for name in list(self._open) if part is None else [part]:
                if name in self._open:
                    self._open.pop(name).close()

    def _file(self, part: str) -> Any:
        import h5py

        if part not in self._open:
            while len(self._open) >= _OPEN_PARTS:
                self._open.popitem(last=False)[1].close()
            # No chunk cache: the system caches files, and one cache per open array adds up to gigabytes.
            self._open[part] = h5py.File(self._folder / part, "r", locking=False, rdcc_nbytes=0)
        self._open.move_to_end(part)
        return self._open[part]

    def _bad(self, part: str, what: str, code: ExitCode) -> AppError:
        fix = "Remove the file if it exists, and run again: the targets of its stimuli are recomputed."
        return AppError(f"{self._folder / part}: This part of the targets {what}. {fix}", exit_code=code)


class TargetStore:
    """Targets on disk, keyed by the content of each stimulus (its pixels and captions), not by its name.

    Parameters
    ----------
    folder : Path
        Work folder that all subjects share.
    model_key : str
        Identifies the models and settings that compute the targets; each key has its own store.
    stored : mapping of str to str, optional
        Number format on disk by target, "float32" (default) or "float16"; part of the key. Targets are read
        as float32 in any case.

    Attributes
    ----------
    key : str
        Hash of everything that the stored values depend on, apart from the stimuli.
    """

    def __init__(self, folder: Path, model_key: str, stored: Mapping[str, str] | None = None) -> None:
        self._stored = dict(stored or {})
        text = json.dumps([model_key, sorted(self._stored.items())])
        self.key = hashlib.sha256(text.encode()).hexdigest()
        self.folder = folder / f"targets-{self.key[:16]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._parts = Parts(self.folder)
        self._known: dict[str, list[str]] = {}
        self._places: dict[str, tuple[str, int]] = {}
        self._sound: set[str] = set()  # parts whose checksums were compared

    def ensure(self, digests: Sequence[str], compute: ComputeTargets, block: int = 100) -> int:
        """Compute the targets that are missing or damaged, in parallel with other jobs that do the same.

        Existing parts are read completely, to compare their checksums.
        Returns how many stimuli this call computed.

        Parameters
        ----------
        digests : sequence of str
            For each stimulus, the hash of its pixels and captions.
        compute : callable
            Takes positions in ``digests`` and returns the targets of those stimuli.
        block : int
            Stimuli per part; a killed job loses one part at most.

        Raises
        ------
        AppError
            Exit code 75 if other jobs claim the remaining stimuli but finish none within a day.
        """
        self._parts.close()
        self._known.clear()  # a part may have been damaged since
        self._sound.clear()
        position = {digest: i for i, digest in reversed(list(enumerate(digests)))}
        computed, bar, last_news = 0, None, (len(position), time.monotonic())
        while True:
            with ExitStack() as stack:
                with locked(self.folder / "lock"):
                    # Claims first: a job that ends in between has then written its part, which is indexed.
                    others = claimed(self.folder)
                    self._index()
                    missing = [d for d in position if d not in self._places]
                    mine = sorted((d for d in missing if d not in others), key=position.__getitem__)[:block]
                    if mine:
                        stack.enter_context(claim(self.folder, mine))
                if mine:
                    bar = bar or iter(track(range(-(-len(missing) // block)), "targets of stimuli (parts)"))
                    next(bar, None)
                    self._write_part(mine, compute([position[d] for d in mine]))
                    computed += len(mine)
                    continue
            if not missing:
                if self._remove_damaged({self._places[d][0] for d in position} - self._sound):
                    continue
                for _ in bar or ():
                    pass  # computed by other jobs
                return computed
            last_news = self._wait(len(missing), last_news)

    def rows(self, target: str, digests: Sequence[str]) -> StoredTargets:
        """Targets of stimuli, (n, dims), read when sliced; KeyError if a stimulus was not computed."""
        return StoredTargets(self._parts, target, [self._places[digest] for digest in digests])

    def close(self) -> None:
        """Close all parts; they are opened again when read."""
        self._parts.close()

    def _wait(self, missing: int, last_news: tuple[int, float]) -> tuple[int, float]:
        """Wait a little for other jobs; return how much is missing and since when."""
        now = time.monotonic()
        if missing < last_news[0]:
            LOG.info("waiting for other jobs to compute the targets of %d stimuli", missing)
            last_news = (missing, now)
        if now - last_news[1] > _PATIENCE_S:
            raise AppError(
                f"{self.folder}: Other jobs claim the targets of {missing} stimuli, but finished none within "
                f"{_PATIENCE_S / 3600:.0f} hours. If no such job is running, delete {self.folder}/claim-* "
                "and run again.",
                exit_code=ExitCode.TRY_AGAIN,
            )
        time.sleep(_LOOK_S)
        return last_news

    def _remove_damaged(self, parts: set[str]) -> bool:
        """Remove the damaged ones of some parts; return whether there were any."""
        found = False
        for name in sorted(parts):
            if self._parts.find_damage(name):
                # Checked again under the lock: another job may have removed or rewritten it.
                with locked(self.folder / "lock"):
                    self._parts.close(name)
                    if (self.folder / name).exists() and (wrong := self._parts.find_damage(name)):
                        self._remove(name, wrong)
                    self._known.pop(name, None)
                found = True
            else:
                self._sound.add(name)
        return found

    def _remove(self, name: str, wrong: object) -> None:
        path = self.folder / name
        LOG.warning("%s is damaged (%s); the targets of its stimuli are recomputed", path, wrong)
        # A part of the same name may be written next, so the damaged one must not stay open.
        self._parts.close(name)
        path.unlink()

    def _index(self) -> None:
        """Index which part holds which stimuli; parts never change, so only new ones are read."""
        existing = {path.name for path in self.folder.glob("part-*.h5")}
        for name in sorted(existing - set(self._known)):
            try:
                self._known[name] = self._parts.digests(name)
            except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
                self._remove(name, error)
        self._known = {name: self._known[name] for name in sorted(existing & set(self._known))}
        self._places = {d: (name, row) for name, own in self._known.items() for row, d in enumerate(own)}

    def _write_part(self, digests: Sequence[str], targets: Mapping[str, np.ndarray]) -> None:
        import h5py

        name = f"part-{hashlib.sha256(''.join(digests).encode()).hexdigest()[:16]}.h5"
        with atomic_path(self.folder / name) as temporary, write_hdf5(temporary) as (file, _):
            for target, values in targets.items():
                kind = np.dtype(self._stored.get(target, "float32"))
                with np.errstate(over="ignore"):
                    kept = values.astype(kind)
                if values.shape[0] != len(digests) or not np.isfinite(kept).all():
                    raise ValueError(
                        f"{target}: {values.shape} values for {len(digests)} stimuli, or not finite as {kind}"
                    )
                made = file.create_dataset(target, data=kept, chunks=(len(kept), min(_CHUNK, kept.shape[1])))
                made.attrs[_SUM] = sha256_array(kept)
            file.create_dataset(_DIGEST, data=list(digests), dtype=h5py.string_dtype())
        self._sound.add(name)
