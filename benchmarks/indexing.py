"""Find the inputs of a dataset of NSD's size: this app's indexing against a plain walk and pybids' own.

    python benchmarks/indexing.py [--subjects 8] [--sessions 40] [--stimuli 73000] [--repeats 3] [--json FILE]

Makes a tree in a temporary folder: betas that hold only zeros, but have NSD's shapes and whole files (so
that their headers are checked as real ones are), tables of 750 trials a session, a table of all stimuli and
five captions each. Everything runs in turn in one process; the best time of each counts. The processor's
own seconds stand beside those of the clock, for machines that do other things as well.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
from isal import igzip

from bidsapp.bids.inputs import Dataset, open_dataset
from bidsapp.bids.preflight import find_problems
from bidsapp.data.splits import make_split
from bidsapp.data.stimuli import StimulusSet

#: Volumes of NSD's subjects in the space func1pt8mm (two of the eight shapes).
SHAPES = ((81, 104, 83), (82, 106, 84))
TRIALS = 750
SHARED = 1000
TASK, SPACE = "nsdcore", "func1pt8mm"


def main() -> None:
    """Make the tree, measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--sessions", type=int, default=40)
    parser.add_argument("--stimuli", type=int, default=73_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to make the tree (default: a temporary folder)")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "indexing.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        start = time.perf_counter()
        root = Path(folder) / "bids"
        make_tree(root, options.subjects, options.sessions, options.stimuli)
        n_files = sum(len(files) for _, _, files in os.walk(root))
        print(f"made {n_files} files in {time.perf_counter() - start:.0f} s")
        steps, others = measure(root, options.repeats)
    total = tuple(sum(best(times)[i] for times in steps.values()) for i in range(2))
    print(f"\n{'seconds':44} {'clock':>8} {'processor':>10}")
    for name, times in steps.items():
        print(row(name, best(times)))
    print(row("this app, together", total) + "\n")
    for name, times in others.items():
        print(row(name, best(times)))
    report = {
        "subjects": options.subjects,
        "sessions": options.sessions,
        "stimuli": options.stimuli,
        "files": n_files,
        "clock and processor seconds": steps,
        "of others": others,
        "together": total,
        "pybids": metadata.version("pybids"),
        "machine": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


Times = list[tuple[float, float]]


def best(times: Times) -> tuple[float, float]:
    """Least clock and least processor seconds."""
    return min(t[0] for t in times), min(t[1] for t in times)


def row(name: str, seconds: tuple[float, ...]) -> str:
    """Make a line of the table."""
    return f"{name:44} {seconds[0]:8.2f} {seconds[1]:10.2f}"


def measure(root: Path, repeats: int) -> tuple[dict[str, Times], dict[str, Times]]:
    """Run every way in turn, so that a busy machine slows all; the first round imports what is needed."""
    found: dict[str, Any] = {}
    steps: dict[str, Callable[[], object]] = {
        "index, choose files, read all trials": lambda: found.update(dataset=open_dataset(root)),
        "stimuli and captions": lambda: found.update(stimuli=StimulusSet.open(root)),
        "splits of all subjects": lambda: found.update(splits=split_all(**found)),
        "check headers, masks and stimuli": lambda: no_problems(**found),
    }
    others = {"os.walk, names alone": lambda: walk(root), "pybids, default": lambda: pybids(root)}
    seconds: dict[str, Times] = {name: [] for name in (*steps, *others)}
    for round_ in range(repeats + 1):
        found.clear()
        for name, way in (*steps.items(), *others.items()):
            start, busy = time.perf_counter(), time.process_time()
            way()
            if round_:
                seconds[name].append((time.perf_counter() - start, time.process_time() - busy))
    return {name: seconds[name] for name in steps}, {name: seconds[name] for name in others}


def split_all(dataset: Dataset, stimuli: StimulusSet) -> dict[str, Any]:
    """Training and test set of every subject."""
    seen = {s.label: {i for x in s.sessions for i in x.stimulus_ids} for s in dataset.subjects}
    return {label: make_split(stimuli, ids) for label, ids in seen.items()}


def no_problems(dataset: Dataset, stimuli: StimulusSet, splits: dict[str, Any]) -> None:
    """All checks before a run but those of the folders and the models."""
    problems = find_problems(dataset, stimuli, splits)
    if problems:
        raise SystemExit(f"the tree is wrong: {problems[:3]}")


def walk(root: Path) -> int:
    """Only list the files."""
    return sum(len(files) for _, _, files in os.walk(root))


def pybids(root: Path) -> int:
    """Index with pybids as it comes, sidecars too; it knows neither statmap nor trials files."""
    from bids.layout import BIDSLayout

    layout = BIDSLayout(root, validate=False, is_derivative=True)
    n = len(layout.get(suffix="mask"))
    layout.session.close()
    return n


def make_tree(root: Path, n_subjects: int, n_sessions: int, n_stimuli: int) -> None:
    """Write the input layout of this app, as ``nsd2bids`` does."""
    rng = np.random.default_rng(0)
    _json(root / "dataset_description.json", {"Name": "NSD", "BIDSVersion": "1.11.1"})
    _stimuli(root / "stimuli", n_stimuli)
    pool = np.arange(SHARED, n_stimuli)
    n_own = min(9000, len(pool) // max(n_subjects, 1))
    for number in range(n_subjects):
        subject, shape = f"{number + 1:02d}", SHAPES[number % len(SHAPES)]
        own = pool[number * n_own : (number + 1) * n_own]
        shown = np.concatenate([np.arange(SHARED), own]).repeat(3)
        shown = np.resize(rng.permutation(shown), n_sessions * TRIALS)
        _maps(root / f"sub-{subject}" / "func", subject, shape)
        whole = root.parent / f"zeros-{number % len(SHAPES)}.nii.gz"
        if not whole.is_file():
            whole.write_bytes(zeros(shape, TRIALS))
        for session in range(n_sessions):
            trials = shown[session * TRIALS : (session + 1) * TRIALS]
            _session(root / f"sub-{subject}", subject, f"nsd{session + 1:02d}", whole, trials)


def zeros(shape: tuple[int, int, int], trials: int) -> bytes:
    """Make a gzipped NIfTI file of int16 zeros."""
    image: Any = nib.Nifti1Image(np.zeros((*shape, 1), np.int16), np.diag([1.8, 1.8, 1.8, 1.0]))
    image.header.set_data_shape((*shape, trials))
    image.header.set_data_offset(352)
    size = int(np.prod(shape)) * trials * 2
    return igzip.compress(image.header.binaryblock + b"\0" * 4 + bytes(size), 3)


def _session(folder: Path, subject: str, session: str, whole: Path, trials: np.ndarray) -> None:
    func = folder / f"ses-{session}" / "func"
    func.mkdir(parents=True)
    stem = f"sub-{subject}_ses-{session}_task-{TASK}"
    betas = func / f"{stem}_space-{SPACE}_stat-effect_desc-singletrial_statmap.nii.gz"
    try:
        os.link(whole, betas)
    except OSError:
        shutil.copy(whole, betas)
    mask = f"sub-{subject}/func/sub-{subject}_space-{SPACE}_label-nsdgeneral_mask.nii.gz"
    sidecar = {"ScaleFactor": 300, "SpatialReference": f"bids::{mask}"}
    _json(betas.with_name(betas.name.replace(".nii.gz", ".json")), sidecar)
    rows = [f"{session}\t{1 + i // 63}\t{i}\tstim-nsd{image:05d}" for i, image in enumerate(trials)]
    table = func / f"{stem}_desc-singletrial_trials.tsv"
    table.write_text("\n".join(["session\trun\tbeta_index\tstim_id", *rows]) + "\n")
    _json(table.with_suffix(".json"), {"stim_id": {"Description": "Stimulus"}})


def _maps(func: Path, subject: str, shape: tuple[int, int, int]) -> None:
    func.mkdir(parents=True)
    data = np.zeros(shape, np.int16)
    data[20:45, 20:45, 20:45] = 1
    names = {
        "label-nsdgeneral_mask": None,
        "seg-prfvisualrois_dseg": ("V1v", "V1d", "hV4"),
        "seg-flocfaces_dseg": ("OFA", "FFA"),
        "seg-streams_dseg": ("early", "ventral"),
        "desc-noiseceiling_statmap": None,
    }
    for name, labels in names.items():
        path = func / f"sub-{subject}_space-{SPACE}_{name}.nii.gz"
        image: Any = nib.Nifti1Image(data, np.diag([1.8, 1.8, 1.8, 1.0]))
        path.write_bytes(gzip.compress(image.to_bytes(), 1))
        _json(path.with_name(path.name.replace(".nii.gz", ".json")), {"Units": "percent"})
        if labels:
            rows = "".join(f"{i}\t{label}\n" for i, label in enumerate(labels, start=1))
            path.with_name(path.name.replace(".nii.gz", ".tsv")).write_text("index\tname\n" + rows)


def _stimuli(folder: Path, n: int) -> None:
    folder.mkdir(parents=True)
    with h5py.File(folder / "nsd_stimuli.hdf5", "w") as file:
        file.create_dataset("imgBrick", (n, 425, 425, 3), np.uint8, chunks=(1, 425, 425, 3))
    columns = "stimulus_id\tfile\trow\tNSD_id\tCOCO_id\tsplit\tpresent"
    rows = [
        f"stim-nsd{i:05d}\tnsd_stimuli.hdf5\t{i}\t{i}\t{i * 7}\t{'test' if i < SHARED else 'train'}\t1"
        for i in range(n)
    ]
    (folder / "stimuli.tsv").write_text("\n".join([columns, *rows]) + "\n")
    captions = [f"stim-nsd{i:05d}\tA photograph of thing {i}, told {k}." for i in range(n) for k in range(5)]
    (folder / "captions.tsv").write_text("\n".join(["stimulus_id\tcaption", *captions]) + "\n")


def _json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
