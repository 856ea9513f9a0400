"""What the benchmarks share: ways run in processes of their own, peak memory, tables, results as JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_PREFIX = "measured: "
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass
class Measured:
    """One run of one way: wall and processor seconds, resident bytes before (libraries) and at the peak."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory_before: int = 0
    memory_peak: int = 0


@contextlib.contextmanager
def measuring() -> Iterator[Measured]:
    """Measure the body in this process, which should do nothing else that needs memory."""
    result = Measured(memory_before=peak_memory())
    wall, cpu = time.perf_counter(), time.process_time()
    yield result
    result.seconds, result.cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    result.memory_peak = peak_memory()


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        # Not getrusage there: a new process starts with its parent's peak.
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run_ways(
    script: str, ways: Sequence[str], arguments: Sequence[str], repeats: int, threads: int = 1
) -> dict[str, dict[str, float]]:
    """Run each way in a process of its own, all of them in turn, ``repeats`` times; the best counts.

    In turn, so that a busy machine slows all. The process gets ``--way NAME`` and ``arguments``, as many
    processors as ``threads``, and reports by :func:`report`.
    """
    environment = {
        **os.environ,
        **dict.fromkeys(_THREADS, str(threads)),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way in ways:
            command = [sys.executable, script, "--way", way, *arguments]
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            lines = [line for line in done.stdout.splitlines() if line.startswith(_PREFIX)]
            if done.returncode or not lines:
                sys.exit(f"{way} failed:\n{done.stdout}{done.stderr}")
            runs[way].append(json.loads(lines[-1].removeprefix(_PREFIX)))
    return {way: min(results, key=lambda r: r["seconds"]) for way, results in runs.items()}


def report(measured: Measured, **more: float) -> None:
    """Give what was measured to the process that runs the ways."""
    print(_PREFIX + json.dumps({**asdict(measured), **more}))


def use_processors(n: int) -> None:
    """Keep this process to ``n`` of the processors it may use, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:n])


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Format a table in columns."""
    cells = [[str(c) for c in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def megabytes(n: float) -> str:
    """Bytes as whole MB."""
    return f"{n / 1e6:.0f}"


def save(name: str | Path, results: Mapping[str, Any], packages: Sequence[str] = ()) -> Path:
    """Write results as JSON, with the machine and the packages' versions.

    To ``benchmarks/results``, under a name, or to a path of one's own.
    """
    versions = {}
    for package in ("bidsapp-recon", "numpy", *packages):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    machine = {
        "system": platform.platform(),
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": load,
        "python": platform.python_version(),
        "versions": versions,
    }
    path = name if isinstance(name, Path) else RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, **results}, indent=2) + "\n", encoding="utf-8")
    return path


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as lines:
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def parser(doc: str, ways: Mapping[str, Callable[..., Any]]) -> argparse.ArgumentParser:
    """Make a parser with the options that all benchmarks of ways have."""
    made = argparse.ArgumentParser(
        description=doc.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument("--repeats", type=int, default=3, help="runs of each way; the best counts")
    made.add_argument("--folder", type=Path, help="keep the generated data here, and use them again")
    made.add_argument("--way", choices=ways, help=argparse.SUPPRESS)
    return made


def synchronise(device: str) -> None:
    """Wait until a device has finished its queue; the CPU has none."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device.startswith("mps"):
        torch.mps.synchronize()
