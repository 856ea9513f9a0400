"""The pipeline's own decoding stages at the Natural Scenes Dataset's size, on synthetic data.

    python benchmarks/ridge_full_size.py [--folder DIR] [--threads 2] [--scale 1] [--no-model-file] [--check]

8859 training images x 15724 voxels to 347,680 targets at the penalties of the recipe brain-diffuser, 982
test images. The targets are made in blocks and lie in the pipeline's own store (6.2 GB in float16); the
latents (2.7 GB) and the model file (7.8 GB) are written as in a run. Measured are the seconds of each
stage, the useful arithmetic a second against that of a float32 matrix product of the same shape, measured
before and after in the same process (the faster counts), and the peak of resident memory. ``--scale 0.1``
is a tenth of all sizes. ``--check`` compares some predictions with float64's. DIR needs 20 GB; a temporary
folder is removed afterwards.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _measure import measuring, megabytes, peak_memory, report, run_ways, save, table

N_TRAIN, N_TEST, N_VOXELS = 8859, 982, 15724
DIMS = {"vdvae": 91168, "clip_vision": 257 * 768, "clip_text": 77 * 768}
CHECKED = 24


@dataclass
class Size:
    """Sizes of the run."""

    train: int
    test: int
    voxels: int
    dims: dict[str, int]


def size_of(scale: float) -> Size:
    """Scale all sizes."""
    dims = {name: max(8, round(d * scale)) for name, d in DIMS.items()}
    return Size(round(N_TRAIN * scale), round(N_TEST * scale), round(N_VOXELS * scale), dims)


def generate(folder: Path, size: Size) -> None:
    """Write z-scored responses, with some strong directions, and the targets' store."""
    from bidsapp.config import load_recipe
    from bidsapp.data.targets import TargetStore

    rng = np.random.default_rng(0)
    n = size.train + size.test
    rank = 32
    source = rng.standard_normal((n, rank), dtype=np.float32)
    strength = (0.32 / np.sqrt(np.arange(1, rank + 1))).astype(np.float32)
    directions = strength[:, None] * rng.standard_normal((rank, size.voxels), dtype=np.float32)
    mean, std = np.zeros(size.voxels), np.zeros(size.voxels)
    for name, rows in (("train", slice(0, size.train)), ("test", slice(size.train, n))):
        count = rows.stop - rows.start
        out = np.lib.format.open_memmap(
            folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=(count, size.voxels)
        )
        for start in range(0, count, 500):
            block = source[rows][start : start + 500]
            noise = rng.standard_normal((len(block), size.voxels), dtype=np.float32)
            out[start : start + 500] = block @ directions + noise
        if name == "train":
            mean, std = out.mean(0, dtype=np.float64), out.std(0, dtype=np.float64)
        for start in range(0, count, 500):
            out[start : start + 500] = (out[start : start + 500] - mean) / std
        out.flush()
    mixing = {name: rng.standard_normal((rank, d), dtype=np.float32) / 6 for name, d in size.dims.items()}

    def compute(rows: Any) -> dict[str, np.ndarray]:
        made = {}
        for name, d in size.dims.items():
            values = rng.standard_normal((len(rows), d), dtype=np.float32)
            values += source[list(rows)] @ mixing[name]
            made[name] = values
        return made

    stored = {name: t.stored for name, t in load_recipe("brain-diffuser").targets.items()}
    TargetStore(folder, "benchmark", stored).ensure([f"image{i}" for i in range(size.train)], compute)


def run(folder: Path, size: Size, threads: int, model_file: bool) -> None:
    """Run the pipeline's stages on what was generated, and report."""
    from bidsapp.config import RunConfig, load_recipe
    from bidsapp.data.targets import TargetStore
    from bidsapp.decoding.crossvalidation import Selection
    from bidsapp.decoding.decoder import RidgeDecoder
    from bidsapp.decoding.model_writer import FittedModel, FittedTarget, VoxelScaling, write_model
    from bidsapp.pipeline.decoding import fit_ridge, predict_and_calibrate
    from bidsapp.pipeline.records import Fit
    from bidsapp.records import Mask
    from bidsapp.storage.stages import StageResult, Stages

    recipe = load_recipe("brain-diffuser")
    config = RunConfig(folder, folder, folder, recipe, device="cpu", n_cpus=threads)
    penalties = {name: Selection(t.alphas) for name, t in recipe.targets.items()}
    x = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("train", "test")}
    responses = StageResult("responses", x)
    store = TargetStore(folder, "benchmark", {name: t.stored for name, t in recipe.targets.items()})
    digests = [f"image{i}" for i in range(size.train)]
    store.ensure(digests, lambda _: {})
    targets = {name: store.rows(name, digests) for name in size.dims}
    stages = Stages(folder / "sub-01")
    rows = min(size.train, recipe.calibration.max_rows)
    shape = (size.test + rows, size.train, min(4096, max(size.dims.values())))
    seconds: dict[str, float] = {}
    peaks: dict[str, int] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start
        peaks[name] = peak_memory()

    products = [gemm_seconds(*shape)]
    with measuring() as measured:
        with timed("fit"):
            ridge = fit_ridge(stages, responses, penalties, {}, "", config)
        fit = Fit(stages, penalties, ridge, targets, {}, "targets")
        with timed("predict and calibrate"):
            latents = predict_and_calibrate(fit, config, "brain")
        if model_file:
            with timed("model file"):
                count = size.voxels
                mask = Mask(np.ones((count, 1, 1), np.bool_), np.eye(4))
                voxels = VoxelScaling(mask, np.zeros(count), np.ones(count))
                fitted = {
                    name: FittedTarget(
                        penalties[name].alpha,
                        targets[name],
                        latents[f"{name}_raw"],
                        latents[f"{name}_scale"],
                        latents[f"{name}_shift"],
                    )
                    for name in recipe.target_names
                }
                model = FittedModel(RidgeDecoder(x["train"]), voxels, fitted, x["test"])
                write_model(folder / "model.h5", model)
    products.append(gemm_seconds(*shape))
    flops = useful(size, rows, len({s.alpha for s in penalties.values()}), model_file)
    more: dict[str, Any] = {"stages": seconds, "peaks": peaks, "flops": flops}
    more["product_rates"] = [2.0 * shape[0] * shape[1] * shape[2] / t for t in products]
    if model_file:
        import h5py

        with h5py.File(folder / "model.h5") as file:
            errors = {name: dict(file[f"targets/{name}"].attrs) for name in size.dims}
        more["model_bytes"] = (folder / "model.h5").stat().st_size
        more["model_errors"] = {
            name: [float(e["largest_error"]), float(e["typical_error"])] for name, e in errors.items()
        }
    report(measured, **more)


def gemm_seconds(m: int, n: int, b: int, repeats: int = 3) -> float:
    """Best time of a float32 matrix product of the shape that predictions have."""
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((m, n), dtype=np.float32), rng.standard_normal((n, b), dtype=np.float32)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        _ = left @ right
        times.append(time.perf_counter() - start)
    return min(times[1:])


def useful(size: Size, rows: int, penalties: int, model_file: bool) -> dict[str, float]:
    """Multiplications and additions that the result needs, by stage (a symmetric product counts half)."""
    n, m, p, d = size.train, size.test, size.voxels, sum(size.dims.values())
    side = min(n, p)
    fit = n * p * side + 2 * m * n * p + penalties * (side**3 / 3 + 2 * side**2 * (m + rows))
    flops = {"fit": fit, "predict and calibrate": 2.0 * (m + rows) * n * d}
    if model_file:
        gram = n * p * side + penalties * (side**3 / 3 + side**2 * p)
        flops["model file"] = gram + float(side) ** 2 * d + 2.0 * min(64, m) * n * d
    return flops


def check(folder: Path, size: Size) -> None:
    """Compare some predictions of each target with float64's, in a process of its own."""
    from bidsapp.config import load_recipe
    from bidsapp.data.targets import TargetStore

    recipe = load_recipe("brain-diffuser")
    store = TargetStore(folder, "benchmark", {name: t.stored for name, t in recipe.targets.items()})
    digests = [f"image{i}" for i in range(size.train)]
    store.ensure(digests, lambda _: {})
    x = np.load(folder / "train.npy").astype(np.float64)
    mean = x.mean(0)
    x -= mean
    gram = x @ x.T
    new = (np.load(folder / "test.npy").astype(np.float64) - mean) @ x.T
    del x
    worst = 0.0
    with measuring() as measured:
        for name, target in recipe.targets.items():
            rows = store.rows(name, digests)
            start = rows.shape[1] // 2
            y = rows[:, start : start + CHECKED].astype(np.float64)
            shifted = gram + target.alphas[0] * np.eye(size.train)
            expected = new @ np.linalg.solve(shifted, y - y.mean(0)) + y.mean(0)
            latents = folder / "sub-01" / "latents_brain" / f"{name}_raw.npy"
            got = np.load(latents, mmap_mode="r")[:, start : start + CHECKED]
            worst = max(worst, float((np.abs(got - expected) / expected.std(0)).max()))
    report(measured, difference=worst)


def main() -> None:
    """Generate, run, print a table, write JSON."""
    arguments = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    arguments.add_argument("--folder", type=Path, help="keep the generated data here, and use them again")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--scale", type=float, default=1.0, help="share of all sizes")
    arguments.add_argument("--no-model-file", action="store_true", help="leave the model file out")
    arguments.add_argument("--check", action="store_true", help="compare some predictions with float64's")
    arguments.add_argument("--way", choices=("generate", "run", "check"), help=argparse.SUPPRESS)
    options = arguments.parse_args()
    size = size_of(options.scale)
    if options.way == "run":
        run(options.folder, size, options.threads, not options.no_model_file)
        return
    if options.way == "check":
        check(options.folder, size)
        return
    if options.way == "generate":
        with measuring() as measured:
            generate(options.folder, size)
        report(measured)
        return
    folder = options.folder or Path(tempfile.mkdtemp(prefix="ridge-full-size-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        measure(folder, size, options)
    finally:
        shutil.rmtree(folder / "sub-01", ignore_errors=True)
        (folder / "model.h5").unlink(missing_ok=True)
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path, size: Size, options: argparse.Namespace) -> None:
    """Run each part in a process of its own and print what was measured."""
    passed = ["--folder", str(folder), "--scale", str(options.scale), "--threads", str(options.threads)]
    passed += ["--no-model-file"] if options.no_model_file else []

    def part(way: str) -> dict[str, Any]:
        return run_ways(__file__, [way], passed, 1, options.threads)[way]

    if not (folder / "test.npy").exists():
        print(f"generated in {part('generate')['seconds']:.0f} s", flush=True)
    print(f"load of the machine before: {os.getloadavg()[0]:.1f}", flush=True)
    found = part("run")
    if options.check:
        found["difference"] = part("check")["difference"]
    rate = max(found["product_rates"])
    found["flops"]["all"] = sum(found["flops"].values())
    found["stages"]["all"] = found["seconds"]
    found["peaks"]["all"] = found["memory_peak"]
    rows = [
        (
            name,
            f"{found['stages'][name]:.1f}",
            f"{flops / 1e12:.2f}",
            f"{flops / found['stages'][name] / 1e9:.0f}",
            f"{100 * flops / found['stages'][name] / rate:.0f} %",
            megabytes(found["peaks"][name]),
        )
        for name, flops in found["flops"].items()
    ]
    print(f"{size.train} x {size.voxels} -> {sum(size.dims.values())}, {size.test} test images")
    print(table(["", "seconds", "TFLOP", "GFLOP/s", "of product", "peak MB so far"], rows))
    print(
        "float32 product before, after: "
        + ", ".join(f"{r / 1e9:.0f}" for r in found["product_rates"])
        + " GFLOP/s"
    )
    if "model_bytes" in found:
        errors = {name: f"{largest:.1e}" for name, (largest, _) in found["model_errors"].items()}
        print(f"model file: {megabytes(found['model_bytes'])} MB; largest errors {errors}")
    if options.check:
        print(f"largest difference from float64, relative to the spread: {found['difference']:.1e}")
    sizes = {**asdict(size), "threads": options.threads}
    print(f"written: {save('ridge_full_size', {'sizes': sizes, 'found': found}, ['scipy', 'h5py'])}")


if __name__ == "__main__":
    main()
