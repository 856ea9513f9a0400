"""Ridge of many tokens: this package against scikit-learn fitted per token, and against himalaya.

    python benchmarks/ridge_peers.py [--n 2000] [--p 3500] [--tokens 24] [--dims 768] [--threads 2]

Every way reads the same float32 arrays, fits at one penalty and predicts the test rows; it runs in a
process of its own, and all of them in turn. Compared are time (fit and prediction, without loading), peak
memory and the largest difference from float64's predictions, relative to their spread. himalaya comes with
``pip install ".[bench]"``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _measure import measuring, megabytes, parser, report, run_ways, save, table

ALPHA = 5000.0


def ours(folder: Path, n_tokens: int) -> None:
    """One factorisation for all tokens, in blocks, as the pipeline does."""
    from bidsapp.decoding.decoder import RidgeDecoder
    from bidsapp.decoding.streaming import predict_blocks
    from bidsapp.storage.npy import ArrayOnDisk

    x, y, x_test = load(folder)
    out = ArrayOnDisk(folder / "bidsapp.npy", (len(x_test), y.shape[1]))
    with measuring() as measured:
        predict_blocks(RidgeDecoder(x).operator(x_test, ALPHA), y, out=out)
    report(measured)


def estimator(folder: Path, n_tokens: int) -> None:
    """Do the same by the estimator, with whole arrays in memory."""
    from bidsapp.decoding.ridge import Ridge

    x, y, x_test = load(folder)
    with measuring() as measured:
        predicted = Ridge(ALPHA).fit(x, np.asarray(y)).predict(x_test)
    np.save(folder / "bidsapp Ridge.npy", predicted)
    report(measured)


def per_token(folder: Path, n_tokens: int, dtype: Any = np.float64, name: str = "") -> None:
    """Fit scikit-learn's Ridge for each token, as the public Brain-Diffuser code does (float64)."""
    from sklearn.linear_model import Ridge

    x, y, x_test = load(folder)
    predicted = np.empty((len(x_test), y.shape[1]), dtype=np.float32)
    x, x_test = x.astype(dtype), x_test.astype(dtype)
    with measuring() as measured:
        for columns in np.array_split(np.arange(y.shape[1]), n_tokens):
            model = Ridge(alpha=ALPHA, max_iter=10000, fit_intercept=True)
            model.fit(x, y[:, columns].astype(dtype))
            predicted[:, columns] = model.predict(x_test)
    np.save(folder / f"{name or 'scikit-learn per token'}.npy", predicted)
    report(measured)


def per_token_float32(folder: Path, n_tokens: int) -> None:
    """Do the same in float32."""
    per_token(folder, n_tokens, np.float32, "scikit-learn per token, float32")


def one_fit(folder: Path, n_tokens: int) -> None:
    """Fit scikit-learn's Ridge once for all tokens, float32."""
    per_token(folder, 1, np.float32, "scikit-learn, one fit, float32")


def himalaya(folder: Path, n_tokens: int, name: str = "himalaya KernelRidge") -> None:
    """Fit the kernel ridge of himalaya, float32; x and y are centred first, in place of an intercept."""
    from himalaya.backend import set_backend
    from himalaya.kernel_ridge import KernelRidge
    from himalaya.ridge import Ridge

    x, y, x_test = load(folder)
    set_backend("torch" if "torch" in name else "numpy")
    with measuring() as measured:
        if "KernelRidge" in name:
            x_mean, y_mean = x.mean(0, dtype=np.float64), y.mean(0, dtype=np.float64)
            x, x_test = (x - x_mean).astype(np.float32), (x_test - x_mean).astype(np.float32)
            model = KernelRidge(alpha=ALPHA, kernel="linear").fit(x, (y - y_mean).astype(np.float32))
            predicted = np.asarray(model.predict(x_test)) + y_mean.astype(np.float32)
        else:
            options = {"warn": False}
            model = Ridge(alpha=ALPHA, fit_intercept=True, solver_params=options).fit(x, np.asarray(y))
            predicted = np.asarray(model.predict(x_test))
    np.save(folder / f"{name}.npy", predicted)
    report(measured)


def himalaya_torch(folder: Path, n_tokens: int) -> None:
    """Do the same on its torch backend."""
    himalaya(folder, n_tokens, "himalaya KernelRidge, torch")


def himalaya_svd(folder: Path, n_tokens: int) -> None:
    """Fit the Ridge of himalaya, which decomposes x by singular values."""
    himalaya(folder, n_tokens, "himalaya Ridge")


WAYS = {
    "bidsapp": ours,
    "bidsapp Ridge": estimator,
    "scikit-learn per token": per_token,
    "scikit-learn per token, float32": per_token_float32,
    "scikit-learn, one fit, float32": one_fit,
    "himalaya KernelRidge": himalaya,
    "himalaya KernelRidge, torch": himalaya_torch,
    "himalaya Ridge": himalaya_svd,
}


def load(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read x and the test rows, and map the targets."""
    return np.load(folder / "x.npy"), np.load(folder / "y.npy", mmap_mode="r"), np.load(folder / "x_test.npy")


def generate(folder: Path, n: int, p: int, d: int, m: int) -> None:
    """Write responses with a few strong directions, z-scored, and targets of which a part follows them."""
    rng = np.random.default_rng(0)
    source = rng.standard_normal((n + m, 40), dtype=np.float32)
    x = source @ rng.standard_normal((40, p), dtype=np.float32) / np.float32(12)
    x += rng.standard_normal(x.shape, dtype=np.float32)
    x = (x - x[:n].mean(0)) / x[:n].std(0)
    y = source[:n] @ rng.standard_normal((40, d), dtype=np.float32) / np.float32(6)
    y += rng.standard_normal(y.shape, dtype=np.float32) + 3
    for name, array in (("x", x[:n]), ("x_test", x[n:]), ("y", y)):
        np.save(folder / f"{name}.npy", array)


def reference(folder: Path) -> np.ndarray:
    """Predict every 97th target by the normal equations in float64."""
    x, y, x_test = load(folder)
    x, y, x_test = (a.astype(np.float64) for a in (x, y[:, ::97], x_test))
    mean = x.mean(0)
    centred = x - mean
    dual = np.linalg.solve(centred @ centred.T + ALPHA * np.eye(len(x)), y - y.mean(0))
    return (x_test - mean) @ centred.T @ dual + y.mean(0)


def main() -> None:
    """Run all ways, print a table, write JSON."""
    arguments = parser(__doc__, WAYS)
    for name, value in (("n", 2000), ("p", 3500), ("tokens", 24), ("dims", 768), ("test", 200)):
        arguments.add_argument(f"--{name}", type=int, default=value)
    arguments.add_argument("--threads", type=int, default=2, help="threads of every way")
    arguments.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="which to run")
    options = arguments.parse_args()
    if options.way:
        WAYS[options.way](options.folder, options.tokens)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        generate(folder, options.n, options.p, options.tokens * options.dims, options.test)
        passed = ["--folder", str(folder), "--tokens", str(options.tokens)]
        found = run_ways(__file__, options.ways, passed, options.repeats, options.threads)
        expected = reference(folder)
        scale = float(expected.std())
        first = found.get("bidsapp", next(iter(found.values())))
        rows = []
        for way, result in found.items():
            predicted = np.load(folder / f"{way}.npy", mmap_mode="r")[:, ::97]
            result["difference"] = float(np.abs(predicted - expected).max() / scale)
            cells = [
                f"{result['seconds']:.2f}",
                f"{result['seconds'] / first['seconds']:.1f}",
                f"{result['cpu_seconds']:.2f}",
                f"{result['cpu_seconds'] / first['cpu_seconds']:.1f}",
                megabytes(result["memory_peak"]),
                f"{result['difference']:.1e}",
            ]
            rows.append((way, *cells))
    header = ["", "seconds", "ratio", "processor s", "ratio", "peak MB", "difference"]
    print(table(header, rows))
    sizes = {k: getattr(options, k) for k in ("n", "p", "tokens", "dims", "test", "threads", "repeats")}
    print(", ".join(f"{k} {v}" for k, v in sizes.items()))
    packages = ["scikit-learn", "himalaya", "scipy", "torch"]
    path = save("ridge_peers", {"sizes": sizes, "ways": found}, packages)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
