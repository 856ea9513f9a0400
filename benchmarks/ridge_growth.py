"""How the ridge's time and memory grow with training images, voxels, targets and test images.

    python benchmarks/ridge_growth.py [--threads 2] [--repeats 3] [--steps 4]

From a middle size one number at a time is doubled. Each run is a process of its own: it fits, and predicts
from a file of targets to a file, as the pipeline does. The exponent e of ``time ~ size^e`` is fitted to the
logarithms, for the whole, for the fit (Gram matrix, factor, operator) and for the prediction; and of memory.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from _measure import measuring, megabytes, parser, report, run_ways, save, table

#: Where the doubling starts.
START = {"n": 1000, "p": 8000, "d": 16000, "m": 200}
NAMES = {"n": "training images", "p": "voxels", "d": "targets", "m": "test images"}
ALPHA = 5000.0


def run(folder: Path, size: dict[str, int]) -> None:
    """Fit and predict at one size."""
    from bidsapp.decoding.decoder import RidgeDecoder
    from bidsapp.decoding.streaming import predict_blocks
    from bidsapp.storage.npy import ArrayOnDisk

    x, x_test = np.load(folder / "x.npy", mmap_mode="r"), np.load(folder / "x_test.npy")
    y = np.load(folder / "y.npy", mmap_mode="r")
    out = ArrayOnDisk(folder / "predicted.npy", (size["m"], size["d"]))
    with measuring() as measured:
        start = time.perf_counter()
        operator = RidgeDecoder(x).operator(x_test, ALPHA)
        fitted = time.perf_counter() - start
        predict_blocks(operator, y, out=out)
    report(measured, fit=fitted, predict=measured.seconds - fitted)


def generate(folder: Path, size: dict[str, int]) -> None:
    """Write noise of one size."""
    rng = np.random.default_rng(0)
    for name, shape in (
        ("x", (size["n"], size["p"])),
        ("x_test", (size["m"], size["p"])),
        ("y", (size["n"], size["d"])),
    ):
        np.save(folder / f"{name}.npy", rng.standard_normal(shape, dtype=np.float32))


def exponent(sizes: list[int], values: list[float]) -> float:
    """Slope of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])


def main() -> None:
    """Run all sizes, print a table, write JSON."""
    arguments = parser(__doc__, {"run": run})
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--steps", type=int, default=4, help="doublings of each number")
    for name in START:
        arguments.add_argument(f"--{name}", type=int, help=f"{NAMES[name]} of the start")
    options = arguments.parse_args()
    start = {name: getattr(options, name) or value for name, value in START.items()}
    if options.way:
        run(options.folder, start)
        return
    curves: dict[str, list[dict[str, float]]] = {}
    rows = []
    for name in START:
        sizes = [start[name] * 2**i for i in range(options.steps)]
        curves[name] = []
        for value in sizes:
            size = start | {name: value}
            with tempfile.TemporaryDirectory() as folder:
                generate(Path(folder), size)
                passed = ["--folder", folder, *(w for k, v in size.items() for w in (f"--{k}", str(v)))]
                found = run_ways(__file__, ["run"], passed, options.repeats, options.threads)["run"]
            curves[name].append({"size": value, **found})
            cells = [f"{found[k]:.2f}" for k in ("fit", "predict", "seconds")]
            rows.append((f"{NAMES[name]} {value}", *cells, megabytes(found["memory_peak"])))
        powers = {
            k: exponent(sizes, [c[k] for c in curves[name]])
            for k in ("fit", "predict", "seconds", "memory_peak")
        }
        rows.append((f"  exponent of {NAMES[name]}", *(f"{v:.2f}" for v in powers.values())))
        curves[name].append({"exponents": powers})  # type: ignore[dict-item]
    print(", ".join(f"{NAMES[k]} {v}" for k, v in start.items()) + ", one of them doubled at a time")
    print(table(["", "fit s", "predict s", "all s", "peak MB"], rows))
    print(f"written: {save('ridge_growth', {'start': start, 'curves': curves}, ['scipy'])}")


if __name__ == "__main__":
    main()
