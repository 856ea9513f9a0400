"""The store of targets: rates of writing, and of reading some targets of all images, by format and layout.

    python benchmarks/targets_store.py [--images 2000] [--targets 24576] [--block 4096] [--repeats 3]

NSD has 8,859 training images and 347,680 targets a subject. Ways: the store in both number formats; parts
without chunks, as HDF5 stores arrays by default; and one float32 array (images, targets) in a memory map.
Every way is read by blocks of columns, as the ridge reads, from the system's cache (the files have just been
written) and from the disk (dropped from the cache before, where the system can). One processor each.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from _measure import measuring, megabytes, parser, report, run_ways, save, table, use_processors

PART = 100
#: Of the names of the stimuli.
DIGESTS = "{:064d}"


@cache
def values(n: int, d: int) -> np.ndarray:
    """Targets of a part's images, noise about a mean; the same in all parts, so that making them is free."""
    return np.random.default_rng(0).standard_normal((n, d), dtype=np.float32) + np.float32(0.5)


def store(folder: Path, n: int, d: int, kind: str) -> Any:
    """Fill a store, or open one that is filled."""
    from bidsapp.data.targets import TargetStore

    made = TargetStore(folder / kind, "benchmark", {"t": kind})

    def compute(rows: Sequence[int]) -> dict[str, np.ndarray]:
        return {"t": values(PART, d)[: len(rows)]}

    digests = [DIGESTS.format(i) for i in range(n)]
    made.ensure(digests, compute, PART)
    return made.rows("t", digests)


class PlainParts:
    """The same parts without chunks."""

    def __init__(self, folder: Path, n: int, d: int) -> None:
        import h5py

        folder.mkdir(exist_ok=True)
        self.shape, self._parts = (n, d), []
        for start in range(0, n, PART):
            path = folder / f"{start}.h5"
            if not path.exists():
                with h5py.File(path, "w") as file:
                    file["t"] = values(PART, d)[: n - start]
            self._parts.append(h5py.File(path, "r")["t"])

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        return np.concatenate([part[:, key[1]] for part in self._parts])


def memory_map(folder: Path, n: int, d: int) -> Any:
    """One array of all images."""
    path = folder / "whole.npy"
    if not path.exists():
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, d))
        for start in range(0, n, PART):
            array[start : start + PART] = values(PART, d)[: n - start]
        array.flush()
    return np.load(path, mmap_mode="r")


WAYS = {
    "store, float16": lambda f, n, d: store(f, n, d, "float16"),
    "store, float32": lambda f, n, d: store(f, n, d, "float32"),
    "parts without chunks": lambda f, n, d: PlainParts(f / "plain", n, d),
    "one memory map": memory_map,
}


def read(rows: Any, block: int) -> float:
    """Read all by blocks of columns; give the sum of the first of each, so that it is read indeed."""
    d = rows.shape[1]
    return float(sum(np.ascontiguousarray(rows[:, a : a + block])[:, 0].sum() for a in range(0, d, block)))


def drop_from_cache(folder: Path) -> bool:
    """Have the system forget what it has of the files; False where it cannot."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def main() -> None:
    """Measure, print a table, write JSON."""
    options = parser(__doc__, WAYS)
    options.add_argument("--images", type=int, default=2000)
    options.add_argument("--targets", type=int, default=24576)
    options.add_argument("--block", type=int, default=4096, help="targets read at once")
    given = options.parse_args()
    n, d = given.images, given.targets
    if given.way:
        use_processors(1)
        values(PART, d)
        with measuring() as writing:
            rows = WAYS[given.way](given.folder, n, d)
        read(rows, given.block)
        with measuring() as cached:
            total = read(rows, given.block)
        cold = float("nan")
        del rows  # what is mapped cannot be dropped
        if drop_from_cache(given.folder):
            rows = WAYS[given.way](given.folder, n, d)
            with measuring() as uncached:
                read(rows, given.block)
            cold = uncached.seconds
        report(cached, uncached_seconds=cold, writing_seconds=writing.seconds, total=total)
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        arguments = [
            "--folder",
            temporary,
            "--images",
            str(n),
            "--targets",
            str(d),
            "--block",
            str(given.block),
        ]
        first = run_ways(__file__, list(WAYS), arguments, 1)
        found = run_ways(__file__, list(WAYS), arguments, given.repeats)
        sizes = {way: _size(Path(temporary) / name) for way, name in zip(WAYS, _NAMES, strict=True)}
    for way, measured in found.items():
        measured["writing_seconds"] = first[way]["writing_seconds"]
    million = n * d / 1e6
    rows = [
        [
            way,
            megabytes(sizes[way]),
            f"{million / r['writing_seconds']:.0f}",
            f"{million / r['seconds']:.0f}",
            f"{million / r['cpu_seconds']:.0f}",
            f"{million / r['uncached_seconds']:.0f}",
            megabytes(r["memory_peak"]),
        ]
        for way, r in found.items()
    ]
    print(
        f"{n} images x {d} targets, read {given.block} targets at a time; rates in million values a second\n"
    )
    print(table(["", "MB", "written", "read", "read, CPU", "read from disk", "peak MB"], rows))
    exact, half = found["one memory map"]["total"], found["store, float16"]["total"]
    print(f"\nsums differ by {abs(half - exact) / abs(exact):.1g} in half precision, relative")
    results = {"images": n, "targets": d, "block": given.block, "bytes": sizes, "ways": found}
    print(save("targets_store", results, ("h5py",)))


_NAMES = ("float16", "float32", "plain", "whole.npy")


def _size(path: Path) -> int:
    files = [path] if path.is_file() else list(path.rglob("*"))
    return sum(f.stat().st_size for f in files if f.is_file())


if __name__ == "__main__":
    main()
