"""Ways to damage a good dataset whose files are hard links: each makes a new file, never writes into one."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

#: Of the second subject and session, so that what is found is not merely what is met first.
SESSION = "sub-02/ses-s2/func/sub-02_ses-s2_task-tiny"
BETAS = f"{SESSION}_space-func3mm_stat-effect_desc-singletrial_statmap.nii.gz"
SIDECAR = BETAS.replace(".nii.gz", ".json")
TRIALS = f"{SESSION}_desc-singletrial_trials.tsv"
MASK = "sub-02/func/sub-02_task-tiny_space-func3mm_label-nsdgeneral_mask.nii.gz"
DSEG = "sub-02/func/sub-02_task-tiny_space-func3mm_seg-visualrois_dseg.nii.gz"
CEILING = "sub-02/func/sub-02_task-tiny_space-func3mm_desc-noiseceiling_statmap.nii.gz"
STIMULI, CAPTIONS = "stimuli/stimuli.tsv", "stimuli/captions.tsv"
IMAGE = "stimuli/stim-pic003_image.png"  # of the test set
BRICK = "stimuli/bricks.hdf5"


def copy_by_links(source: Path, target: Path) -> Path:
    """A copy whose files are hard links."""
    return Path(shutil.copytree(source, target, copy_function=os.link))


def put(path: Path, content: bytes | str) -> Path:
    """Replace a file by a new one."""
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def edit(path: Path, change: Callable[[str], str]) -> Path:
    """Replace a text by a changed one; a change that changes nothing is a mistake of the test."""
    old = path.read_text()
    assert change(old) != old
    return put(path, change(old))


def edit_json(path: Path, **changes: object) -> Path:
    return put(path, json.dumps(json.loads(path.read_text()) | changes))


def resave(
    path: Path,
    change: Callable[[np.ndarray], np.ndarray] = lambda values: values,
    affine: Callable[[np.ndarray], np.ndarray] = lambda affine: affine,
) -> Path:
    """Replace a NIfTI file by one of other values or another affine."""
    image = nib.load(path)
    made = nib.Nifti1Image(change(np.asarray(image.dataobj)), affine(image.affine))
    return put(path, gzip.compress(made.to_bytes(), 1, mtime=0))


def rgb(values: np.ndarray) -> np.ndarray:
    """Values as NIfTI's RGB type."""
    colours = np.zeros(values.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["R"] = values.astype("u1")
    return colours


def declare_too_much(path: Path) -> Path:
    """A header that declares far more data than the file can hold."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[40:56] = np.array([4, 30000, 30000, 30000, 30000, 1, 1, 1], "<i2").tobytes()
    return put(path, gzip.compress(bytes(raw)))


def scramble(path: Path) -> Path:
    """A gzip file whose beginning and length are right, and nothing between."""
    old = path.read_bytes()
    return put(path, old[:12] + b"\xff" * 99 + old[111:])


def drop_line(path: Path, index: int = -1) -> Path:
    lines = path.read_text().rstrip("\n").split("\n")
    del lines[index]
    return put(path, "\n".join(lines) + "\n")


def drop_column(path: Path, name: str) -> Path:
    rows = [line.split("\t") for line in path.read_text().rstrip("\n").split("\n")]
    index = rows[0].index(name)
    return put(path, "".join("\t".join(c for i, c in enumerate(r) if i != index) + "\n" for r in rows))


def replace_brick(path: Path, **datasets: np.ndarray) -> Path:
    import h5py

    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for name, values in datasets.items():
            file[name] = values
    return put(path, stream.getvalue())


def snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    """Every path below a folder: its kind, size and time, or where it leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        what = str(path.readlink()) if path.is_symlink() else (stat.st_size, stat.st_mtime_ns)
        found[path.relative_to(folder).as_posix()] = (path.is_dir(), None if path.is_dir() else what)
    return found
