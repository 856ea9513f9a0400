"""Fixtures shared by the tests."""

from __future__ import annotations

import gc
import gzip
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
for _name in _THREADS:  # before NumPy and torch are imported: arrays are small, and workers share the CPUs
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402

from bidsapp.system.resources import available_cpus, available_memory  # noqa: E402

_VARIABLES = (*_THREADS, "BIDSAPP_RECON_MODELS")
#: What a worker may hold, with the commands it starts: less free memory, fewer workers.
_WORKER_BYTES = 3 * 2**30
#: Files of whole runs, longest first: begun first, they do not leave one worker alone at the end.
_LONGEST = (
    "end_to_end/test_sabotage.py",
    "end_to_end/test_participant.py",
    "end_to_end/test_killed.py",
    "end_to_end/test_models_startup.py",
    "end_to_end/test_published.py",
    "end_to_end/test_recipes_as_shipped.py",
    "end_to_end/test_laion.py",
    "end_to_end/test_options.py",
    "end_to_end/test_nsd.py",
    "planning/test_describe.py",
)
TASK, SPACE = "tiny", "func3mm"
AFFINE = np.array([[-3.0, 0, 0, 12], [0, 3, 0, -13], [0, 0, 3, -10], [0, 0, 0, 1]])


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Workers for ``-n auto``: one for each CPU that this process may use, none for a single file."""
    if os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):
        return None  # pytest-xdist takes that number
    free = available_memory()
    room = free // _WORKER_BYTES if free is not None else 1
    files = {word.partition("::")[0] for word in config.args}
    alone = all(word.endswith(".py") for word in files) and len(files) == 1
    n_workers = min(available_cpus(), room, 8)
    return 0 if alone or n_workers < 2 else n_workers


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; the order within a file stays."""
    place = {name: i for i, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(f"{item.path.parent.name}/{item.path.name}", len(place)))


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Factory of tiny valid input datasets, each in a folder of its own: see :func:`write_tiny_dataset`."""

    def make(**options: Any) -> Path:
        return write_tiny_dataset(tmp_path_factory.mktemp("tiny") / "bids", **options)

    return make


@pytest.fixture(scope="session")
def validate() -> Callable[[Path], list[str]]:
    """Errors that bids-validator reports on a dataset (skips where it is not installed)."""
    command = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent)) or shutil.which(
        "bids-validator-deno"
    )
    if command is None:
        pytest.skip("bids-validator-deno is not installed")

    def run(root: Path) -> list[str]:
        done = subprocess.run([command, "--json", str(root)], capture_output=True, text=True, check=False)
        issues = json.loads(done.stdout)["issues"]["issues"]
        errors = [
            f"{i['code']} {i.get('location')} {i.get('issueMessage')}"
            for i in issues
            if i["severity"] == "error"
        ]
        assert (done.returncode == 0) == (not errors), done.stderr
        return errors

    return run


def write_tiny_dataset(
    root: Path,
    *,
    n_subjects: int = 2,
    n_sessions: int = 2,
    n_trials: int = 12,
    shape: tuple[int, int, int] = (8, 9, 7),
    size: int = 32,
    brick: bool = False,
    seed: int = 0,
) -> Path:
    """Write an input dataset: betas, trials, masks, noise ceiling, stimuli, captions, split.

    A third of the trials shows test stimuli, which all subjects see; every stimulus is shown once a
    session. Responses are a fixed random projection of each stimulus' features plus noise, stored as
    int16 x 300. Ids are ``pic000`` ...; test stimuli come first. ROIs: ``nsdgeneral`` (a mask), and
    ``V1v``, ``V1d``, ``hV4`` (labels 1, 2, 3 of ``seg-visualrois``).
    """
    rng = np.random.default_rng(seed)
    n_test, n_train = n_trials // 3, n_trials - n_trials // 3
    ids = [f"pic{i:03d}" for i in range(n_test + n_subjects * n_train)]
    features = rng.standard_normal((len(ids), 12))
    labels = _labels(shape)
    _write_stimuli(root / "stimuli", ids, n_test, features, size, brick)
    _json(
        root / "dataset_description.json",
        {
            "Name": "Tiny",
            "BIDSVersion": "1.11.1",
            "DatasetType": "derivative",
            "License": "CC0",
            "GeneratedBy": [{"Name": "tiny"}],
        },
    )
    (root / ".bidsignore").write_text("*_statmap.*\n*_trials.*\n")
    (root / "README.md").write_text(
        "# Tiny\n\n" + "A dataset for tests, of which nothing can be learnt. " * 4
    )
    subjects = [f"{s + 1:02d}" for s in range(n_subjects)]
    (root / "participants.tsv").write_text(
        "participant_id\tage\n" + "".join(f"sub-{s}\t{30}\n" for s in subjects)
    )
    _json(root / "participants.json", {"age": {"Description": "Age.", "Units": "year"}})
    for number, subject in enumerate(subjects):
        own = range(n_test + number * n_train, n_test + (number + 1) * n_train)
        shown = np.array([*range(n_test), *own])
        weights = rng.standard_normal((12, *shape)) * (labels > 0)
        _write_maps(root, subject, labels)
        for session in range(n_sessions):
            order = rng.permutation(shown)
            betas = np.einsum("tf,fxyz->xyzt", features[order], weights)
            betas = betas + rng.standard_normal(betas.shape)
            _write_session(root, subject, f"s{session + 1}", betas, [ids[i] for i in order])
    return root


def _labels(shape: tuple[int, int, int]) -> np.ndarray:
    labels = np.zeros(shape, np.int16)
    inner = labels[1:-1, 1:-1, 1:-1]
    inner[: shape[0] // 3] = 1
    inner[shape[0] // 3 : shape[0] // 2] = 2
    inner[shape[0] // 2 :] = 3
    labels[0] = -1  # as in NSD, outside is -1 or 0
    return labels


def _write_stimuli(
    folder: Path, ids: list[str], n_test: int, features: np.ndarray, size: int, brick: bool
) -> None:
    from PIL import Image

    folder.mkdir(parents=True)
    grid = np.linspace(0, 1, size)
    waves = np.stack([np.sin(2 * np.pi * (k + 1) * (grid[:, None] + k * grid[None] / 4)) for k in range(12)])
    pixels = np.einsum("nf,fhw->nhw", features, waves)[..., None] * np.array([20.0, 12.0, -15.0]) + 128
    images = np.clip(pixels, 0, 255).astype(np.uint8)
    rows = ["stimulus_id\tfile\trow\tsplit"]
    for i, name in enumerate(ids):
        file = "bricks.hdf5" if brick else f"stim-{name}_image.png"
        rows.append(f"stim-{name}\t{file}\t{i if brick else 'n/a'}\t{'test' if i < n_test else 'train'}")
        if not brick:
            Image.fromarray(images[i]).save(folder / file)
    if brick:
        import h5py

        with h5py.File(folder / "bricks.hdf5", "w") as file:
            file.create_dataset("imgBrick", data=images, chunks=(1, size, size, 3))
    (folder / "stimuli.tsv").write_text("\n".join(rows) + "\n")
    texts = [f"stim-{n}\twave {i} {w}" for i, n in enumerate(ids) for w in ("one", "two")]
    (folder / "captions.tsv").write_text("\n".join(["stimulus_id\tcaption", *texts]) + "\n")


def _write_maps(root: Path, subject: str, labels: np.ndarray) -> None:
    folder = root / f"sub-{subject}" / "func"
    stem = f"sub-{subject}_task-{TASK}_space-{SPACE}"
    reference = {"SpatialReference": f"bids::sub-{subject}/func/{stem}_label-nsdgeneral_mask.nii.gz"}
    dseg = folder / f"{stem}_seg-visualrois_dseg.nii.gz"
    _save(dseg, labels, {"Manual": False, **reference})
    dseg.with_name(dseg.name.replace(".nii.gz", ".tsv")).write_text("index\tname\n1\tV1v\n2\tV1d\n3\thV4\n")
    sources = {"Type": "ROI", "Sources": [f"bids::sub-{subject}/func/{dseg.name}"]}
    _save(
        folder / f"{stem}_label-nsdgeneral_mask.nii.gz",
        (labels > 0).astype(np.uint8),
        {**sources, **reference},
    )
    ceiling = np.where(labels > 0, 40.0, 0.0).astype(np.float32)
    _save(folder / f"{stem}_desc-noiseceiling_statmap.nii.gz", ceiling, {"Units": "percent", **reference})


def _write_session(root: Path, subject: str, session: str, betas: np.ndarray, shown: list[str]) -> None:
    folder = root / f"sub-{subject}" / f"ses-{session}" / "func"
    stem = f"sub-{subject}_ses-{session}_task-{TASK}"
    mask = f"sub-{subject}/func/sub-{subject}_task-{TASK}_space-{SPACE}_label-nsdgeneral_mask.nii.gz"
    name = f"{stem}_space-{SPACE}_stat-effect_desc-singletrial_statmap.nii.gz"
    stored = np.round(betas * 300).astype(np.int16)
    _save(folder / name, stored, {"ScaleFactor": 300, "SpatialReference": f"bids::{mask}"})
    rows = [f"{session}\t1\t{i}\tstim-{s}" for i, s in enumerate(shown)]
    text = "\n".join(["session\trun\tbeta_index\tstim_id", *rows]) + "\n"
    (folder / f"{stem}_desc-singletrial_trials.tsv").write_text(text)


def _save(path: Path, data: np.ndarray, sidecar: dict[str, Any]) -> None:
    import nibabel as nib

    image = nib.Nifti1Image(data, AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(image.to_bytes(), 1, mtime=0))
    _json(path.with_name(path.name.replace(".nii.gz", ".json")), sidecar)


def _json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))


@pytest.fixture(autouse=True, scope="module")
def _few_objects_to_look_through() -> None:
    """Spare ``gc.collect``, which runs call often, the modules: they are millions of objects that stay."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _own_process_state() -> Iterator[None]:
    """The command sets thread counts and logging for its whole process; undo that after each file."""
    root, app = logging.getLogger(), logging.getLogger("bidsapp")
    before = root.handlers[:], root.level, app.level
    environment = {name: os.environ.get(name) for name in _VARIABLES}
    torch = sys.modules.get("torch")
    n_threads = torch.get_num_threads() if torch else None
    yield
    root.handlers[:], root.level, app.level = before
    if torch:
        torch.set_num_threads(n_threads)
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
