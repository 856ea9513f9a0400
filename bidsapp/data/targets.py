"""The store of regression targets: each distinct stimulus computed once, for all subjects.

The store is a folder of parts. A part is an HDF5 file with the targets of some stimuli; it is written
under a temporary name and renamed when complete, and never changed after. So a killed run leaves whole
parts, a later run computes what is missing, and several subjects' runs can share one store.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.io import atomic_path, locked
from bidsapp.progress import track

if TYPE_CHECKING:
    import h5py

LOG = logging.getLogger("bidsapp")

#: how long to wait for another subject's run that computes targets, in seconds
_PATIENCE_S = 24 * 3600.0

#: positions in the list of stimuli -> targets by name, each (k, dims)
ComputeTargets = Callable[[Sequence[int]], Mapping[str, np.ndarray]]


class TargetRows:
    """Targets of chosen stimuli, read from the store's parts when sliced.

    Behaves as an array of shape (n, dims) for ``rows[:, a:b]``, which is what the ridge reads.

    Parameters
    ----------
    places : sequence of (dataset, int)
        For every row, the part's dataset and the row in it.
    """

    def __init__(self, places: Sequence[tuple[Any, int]]) -> None:
        by_part: dict[int, tuple[Any, list[int], list[int]]] = {}
        for row, (dataset, source) in enumerate(places):
            part = by_part.setdefault(id(dataset), (dataset, [], []))
            part[1].append(row)
            part[2].append(source)
        #: of every part: the dataset, our rows that lie in it, and where in it
        self._parts = [(d, np.array(own), np.array(sources)) for d, own, sources in by_part.values()]
        self.shape = (len(places), int(places[0][0].shape[1]))
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
        for dataset, own, sources in self._parts:
            wanted = place[own] >= 0
            if not wanted.any():
                continue
            # one contiguous read, then the choice: HDF5 is slow at picking rows itself
            low, high = sources[wanted].min(), sources[wanted].max() + 1
            block = dataset[low:high, first:last]
            out[place[own[wanted]]] = block[sources[wanted] - low, :: columns.step]
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = self[:, :]
        return whole if dtype is None else whole.astype(dtype)


class TargetStore:
    """Targets on disk, keyed by what each stimulus is (its pixels and captions), not by its name.

    Parameters
    ----------
    folder : Path
        Work folder that all subjects share.
    model_key : str
        Says which models and settings made the targets; another key is another store.
    """

    def __init__(self, folder: Path, model_key: str) -> None:
        self.folder = folder / f"targets-{hashlib.sha256(model_key.encode()).hexdigest()[:16]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._open: dict[str, h5py.File] = {}
        self._places: dict[str, tuple[str, int]] = {}

    def ensure(self, digests: Sequence[str], compute: ComputeTargets, block: int = 100) -> int:
        """Compute the targets that are missing.

        Parameters
        ----------
        digests : sequence of str
            One a stimulus: the hash of its pixels and captions.
        compute : callable
            Gets positions in ``digests`` and returns the targets of those stimuli.
        block : int
            Stimuli in a part.

        Returns
        -------
        int
            How many stimuli were computed now.
        """
        # Other subjects' runs wait here, and then find what they need.
        with locked(self.folder / "lock", timeout=_PATIENCE_S):
            self._index()
            missing = [i for i, d in enumerate(digests) if d not in self._places]
            seen: set[str] = set()
            missing = [i for i in missing if not (digests[i] in seen or seen.add(digests[i]))]  # type: ignore[func-returns-value]
            if not missing:
                return 0
            for start in track(range(0, len(missing), block), "targets of stimuli (parts)"):
                rows = missing[start : start + block]
                self._write_part([digests[i] for i in rows], compute(rows))
            self._index()
            return len(missing)

    def rows(self, target: str, digests: Sequence[str]) -> TargetRows:
        """Targets of stimuli, (n, dims), read when sliced.

        Raises
        ------
        KeyError
            If a stimulus was not computed.
        """
        datasets: dict[str, Any] = {}
        places = []
        for digest in digests:
            part, row = self._places[digest]
            if part not in datasets:
                datasets[part] = self._file(part)[target]
            places.append((datasets[part], row))
        return TargetRows(places)

    def close(self) -> None:
        """Close the parts that were opened."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def _file(self, part: str) -> h5py.File:
        import h5py

        if part not in self._open:
            self._open[part] = h5py.File(self.folder / part, "r", locking=False)
        return self._open[part]

    def _index(self) -> None:
        self._places = {}
        for path in sorted(self.folder.glob("part-*.h5")):
            try:
                digests = self._file(path.name)["digest"].asstr()[:]
            except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
                LOG.warning("%s is damaged (%s); its stimuli are computed again", path, error)
                # A part of the same name may be written now, so the damaged one must not stay open.
                if path.name in self._open:
                    self._open.pop(path.name).close()
                path.unlink()
                continue
            self._places |= {digest: (path.name, row) for row, digest in enumerate(digests)}

    def _write_part(self, digests: Sequence[str], targets: Mapping[str, np.ndarray]) -> None:
        import h5py

        name = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
        with atomic_path(self.folder / f"part-{name}.h5") as temporary, h5py.File(temporary, "w") as file:
            for target, values in targets.items():
                if values.shape[0] != len(digests) or not np.isfinite(values).all():
                    raise ValueError(
                        f"{target}: {values.shape} values for {len(digests)} stimuli, or not finite"
                    )
                file.create_dataset(target, data=values.astype(np.float32))
            file.create_dataset("digest", data=list(digests), dtype=h5py.string_dtype())
