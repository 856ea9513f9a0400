"""A synthetic download of NSD, in the layout and the file formats in which NSD is published, only smaller."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
from scipy.io import savemat

N_SUBJECTS, N_SHARED, N_OWN, N_SESSIONS, N_TRIALS, SIDE = 8, 6, 30, 3, 30, 40
SHAPES = {1: (9, 11, 8), 2: (10, 9, 9)}
BETAS = "fithrf_GLMdenoise_RR"
SPACE = "func1pt8mm"
LABELS = {
    "prf-visualrois": ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"),
    "prf-eccrois": ("ecc0pt5", "ecc1", "ecc2", "ecc4", "ecc4+"),
    "floc-faces": ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    "floc-words": ("OWFA", "VWFA-1", "VWFA-2"),
    "floc-places": ("OPA", "PPA", "RSC"),
    "floc-bodies": ("EBA", "FBA-1", "FBA-2"),
    "streams": ("early", "midventral", "midlateral"),
}


@dataclass
class NsdTree:
    """Where the synthetic download is, and what was put into it."""

    root: Path
    order: np.ndarray  # (trials,), 1-based
    images: np.ndarray  # (subjects, images), 1-based 73k IDs
    coco: dict[int, tuple[int, str, list[str]]] = field(default_factory=dict)  # by 73k ID
    brick: np.ndarray = field(default_factory=lambda: np.empty(0))

    def betas(self, subject: int, session: int, extension: str = ".nii.gz") -> Path:
        folder = self.root / f"nsddata_betas/ppdata/subj{subject:02d}/{SPACE}/betas_{BETAS}"
        return folder / f"betas_session{session:02d}{extension}"

    def roi(self, subject: int, name: str) -> Path:
        return self.root / f"nsddata/ppdata/subj{subject:02d}/{SPACE}/roi/{name}.nii.gz"

    def shown(self, subject: int, session: int) -> np.ndarray:
        trials = self.order[(session - 1) * N_TRIALS : session * N_TRIALS]
        return self.images[subject - 1, trials - 1]


def write_nsd(root: Path, *, seed: int = 0, stimpattern: bool = True) -> NsdTree:
    """Write the files of subjects 1 and 2, as NSD's own scripts export them (nsddatapaper, nsdcode)."""
    rng = np.random.default_rng(seed)
    tree = _design(root, rng, stimpattern)
    _table(tree, rng)
    _stimuli(tree, rng)
    for subject, shape in SHAPES.items():
        _subject(tree, subject, shape, rng)
    return tree


def _design(root: Path, rng: np.random.Generator, stimpattern: bool) -> NsdTree:
    n_images, n_trials = N_SHARED + N_OWN, N_SESSIONS * N_TRIALS
    ids = rng.permutation(N_SHARED + N_SUBJECTS * N_OWN) + 1
    shared = np.sort(ids[:N_SHARED])
    own = ids[N_SHARED:].reshape(N_SUBJECTS, N_OWN)
    images = np.concatenate([np.tile(shared, (N_SUBJECTS, 1)), own], axis=1)
    # Up to three repeats, over sessions; as in subjects with fewer sessions, some images lack some.
    order = rng.permutation(np.repeat(np.arange(1, n_images + 1), 3))[:n_trials]
    variables = {
        "masterordering": order[None].astype(float),
        "subjectim": images.astype(float),
        "sharedix": shared[None].astype(float),
        "basiccnt": np.zeros((1, 3)),
    }
    if stimpattern:  # sessions x runs x slots of 4 s, 1 where an image was shown; runs of 3 and 2 trials
        pattern = np.zeros((N_SESSIONS, 12, 4))
        pattern[:, ::2, :3] = 1
        pattern[:, 1::2, 1:3] = 1
        variables["stimpattern"] = pattern
    path = root / "nsddata/experiments/nsd/nsd_expdesign.mat"
    path.parent.mkdir(parents=True)
    savemat(path, variables, do_compression=True)
    return NsdTree(root, order, images)


def _table(tree: NsdTree, rng: np.random.Generator) -> None:
    n, subjects = int(tree.images.max()), range(1, N_SUBJECTS + 1)
    names = ["cocoId", "cocoSplit", "cropBox", "loss", "nsdId", "flagged", "BOLD5000", "shared1000"]
    names += [f"subject{s}" for s in subjects] + [f"subject{s}_rep{r}" for s in subjects for r in range(3)]
    coco_ids = rng.choice(np.arange(1, 100_000), n, replace=False)
    shared = set(tree.images[0, :N_SHARED].tolist())
    trials = [
        [np.flatnonzero(tree.images[s, tree.order - 1] == i) + 1 for s in range(N_SUBJECTS)]
        for i in range(1, n + 1)
    ]
    lines = [",".join(["", *names])]
    for image in range(1, n + 1):
        split = "val2017" if image % 10 == 3 else "train2017"
        texts = [f"picture {image} seen by {who}" for who in ("one", "two", "three", "four", "five")]
        tree.coco[image] = int(coco_ids[image - 1]), split, texts
        cells = [str(image - 1), str(coco_ids[image - 1]), split, '"(0, 0, 0.1671875, 0.1671875)"', "0.17"]
        cells += [str(image - 1), "False", "False", str(image in shared)]
        cells += [str(int(image in tree.images[s - 1])) for s in subjects]
        for own in trials[image - 1]:
            cells += [str(own[r]) if r < own.size else "0" for r in range(3)]
        lines.append(",".join(cells))
    path = tree.root / "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
    path.write_text("\n".join(lines) + "\n")


def _stimuli(tree: NsdTree, rng: np.random.Generator) -> None:
    folder = tree.root / "nsddata_stimuli/stimuli/nsd"
    (folder / "annotations").mkdir(parents=True)
    small = rng.integers(0, 256, (len(tree.coco), 5, 5, 3), dtype=np.uint8)
    tree.brick = small.repeat(SIDE // 5, axis=1).repeat(SIDE // 5, axis=2)
    with h5py.File(folder / "nsd_stimuli.hdf5", "w") as file:
        file.create_dataset("imgBrick", data=tree.brick, chunks=(1, SIDE, SIDE, 3))
    for split in ("train2017", "val2017"):
        chosen = [(c, text) for c, s, texts in tree.coco.values() if s == split for text in texts]
        entries = [{"image_id": c, "id": 7 * i + 1, "caption": t} for i, (c, t) in enumerate(chosen)]
        # COCO has many more images than NSD, and its annotations are in no order.
        entries.append({"image_id": 999_999_000, "id": 5, "caption": "An image that NSD does not have."})
        shuffled = [entries[i] for i in rng.permutation(len(entries))]
        content = {"info": {"year": 2017}, "licenses": [], "images": [], "annotations": shuffled}
        (folder / f"annotations/captions_{split}.json").write_text(json.dumps(content))


def _subject(tree: NsdTree, subject: int, shape: tuple[int, int, int], rng: np.random.Generator) -> None:
    labels = tree.root / f"nsddata/freesurfer/subj{subject:02d}/label"
    labels.mkdir(parents=True)
    # Nested boxes: outside of the brain 0, cortex -1, nsdgeneral 1.
    general = np.zeros(shape, np.int16)
    general[1:-1, 1:-1, 1:-1] = -1
    general[2:-2, 2:-2, 2:-2] = 1
    write_nifti(tree.roi(subject, "nsdgeneral"), general)
    for number, (name, names) in enumerate(LABELS.items()):
        volume = np.where(general == 0, 0, -1).astype(np.int16)
        inside = np.argwhere(general == 1)
        chosen = inside[rng.permutation(len(inside))[: 6 * len(names)]]
        volume[tuple(chosen.T)] = np.arange(len(chosen)) % len(names) + 1
        write_nifti(tree.roi(subject, name), volume)
        write_nifti(tree.roi(subject, f"lh.{name}"), volume)
        end = " 255 0 0 0" if number % 2 else ""
        rows = ["0 Unknown" + end, *(f"{i} {n}{end}" for i, n in enumerate(names, start=1))]
        (labels / f"{name}.mgz.ctab").write_text("\n".join(rows) + "\n")
    write_nifti(tree.roi(subject, "Kastner2015"), general)  # it has a V1 of its own
    (labels / "Kastner2015.mgz.ctab").write_text("0 Unknown\n1 V1v\n2 V1d\n")
    ncsnr = np.where(general == 0, np.nan, rng.gamma(2, 0.2, shape)).astype(np.float32)
    write_nifti(tree.betas(subject, 1).with_name("ncsnr.nii.gz"), ncsnr)
    write_nifti(tree.betas(subject, 1).with_name("meanbeta_session01.nii.gz"), ncsnr)
    patterns = rng.standard_normal((tree.images.max() + 1, *shape))
    for session in range(1, N_SESSIONS + 1):
        signal = patterns[tree.shown(subject, session)]
        betas = signal + rng.standard_normal(signal.shape) + rng.standard_normal(shape)
        betas *= general != 0  # NSD sets voxels outside of the brain to 0
        stored = np.rint(betas * 300).astype(np.int16)
        write_nifti(tree.betas(subject, session), np.moveaxis(stored, 0, -1))


def write_nifti(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> None:
    """As NSD's nsd_savenifti: the origin is the centre of the slab."""
    import nibabel as nib

    if affine is None:
        affine = np.diag([1.8, 1.8, 1.8, 1.0])
        affine[:3, 3] = [-1.8 * (n - 1) / 2 for n in data.shape[:3]]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(nib.Nifti1Image(data, affine).to_bytes(), 1, mtime=0))


def write_hdf5(path: Path, nifti: Path) -> None:
    """The HDF5 twin of a session's betas: MATLAB's axes (x, y, z, trial) arrive reversed."""
    import nibabel as nib

    data = np.asarray(nib.load(nifti).dataobj)
    with h5py.File(path, "w") as file:
        file.create_dataset("betas", data=data.transpose(), chunks=(data.shape[3], 1, 1, 1))
