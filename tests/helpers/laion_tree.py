"""A small tree in the exact layout that LAION-fMRI publishes.

Names after ViCCo-Group/LAION-fMRI: ``laion_fmri/_paths.py``, ``laion_fmri/splits/`` and the pages "GLMsingle
Beta Estimates", "Stimulus Set" and "Stimulus Derivatives" of its documentation. The contents are made up.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
from PIL import Image

SUBJECTS = ("01", "03")
SHAPE = (9, 8, 7)
AFFINE = np.diag([1.778, 1.778, 1.778, 1.0])
#: The grid of the localizers, on which every ROI is there a second time.
FINE_SHAPE, FINE_AFFINE = (11, 10, 9), np.diag([1.5, 1.5, 1.5, 1.0])
N_SESSIONS = 3

SHARED = tuple(f"shared_12rep_LAION_cluster_{1000 + i}_i{i % 3}.jpg" for i in range(6))
#: Names as they are there, blanks, dots and signs included.
OOD = (
    "shared_4rep_OOD_shape_deeprecon_colorExpStim04_red_+.png",
    "shared_4rep_OOD_unusual_Screenshot 2024-05-06 at 14.45.09.jpg",
    "shared_4rep_OOD_unusual_weird-and-wonderful-fruit-and-vegetables .jpg",
)
UNIQUE = {s: tuple(f"unique_4rep_LAION_sub-{s}_{i}_i0.jpg" for i in range(5)) for s in SUBJECTS}
IMAGES = (*SHARED, *OOD, *UNIQUE["01"], *UNIQUE["03"])
COLUMNS = ("image_name", "dataset", "participant", "unique_or_shared", "n_reps")


@dataclass(frozen=True)
class Laion:
    """Where the tree is, and what was put into it."""

    root: Path
    #: folder of the split files, one for each pool, as in the package ``laion_fmri``
    splits: Path
    #: subject -> names shown, session by session
    shown: dict[str, list[list[str]]] = field(default_factory=dict)
    #: subject -> betas of each session, float32 (x, y, z, trials)
    betas: dict[str, list[np.ndarray]] = field(default_factory=dict)

    @property
    def glmsingle(self) -> Path:
        """The derivative with the betas."""
        return self.root / "derivatives" / "glmsingle-tedana"

    def split(self, pool: str, name: str) -> Path:
        """A split file of a pool."""
        return self.splits / pool / f"{name}.json"


def write_laion_tree(folder: Path, *, older_stimuli: bool = False, seed: int = 0) -> Laion:
    """Write the tree into ``folder / "laion"`` and split files into ``folder / "splits"``.

    With ``older_stimuli`` the images lie in ``stimuli/images`` beside a ``stimuli.tsv``, as before
    the HDF5 archive. Sessions have unequal numbers of trials; every image of a subject is shown in at
    least two of them. Responses are a fixed random projection of each image's features plus noise.
    """
    rng = np.random.default_rng(seed)
    laion = Laion(folder / "laion", folder / "splits")
    root = laion.root
    _json(
        root / "dataset_description.json", {"Name": "LAION-fMRI", "BIDSVersion": "1.10.0", "License": "CC0"}
    )
    (root / "README").write_text("LAION-fMRI, made up for tests: nothing can be learnt from it. " * 5)
    rows = [f"sub-{s}\t{25 + i}\tF" for i, s in enumerate(SUBJECTS)]
    (root / "participants.tsv").write_text("\n".join(["participant_id\tage\tsex", *rows]) + "\n")
    described = {"age": {"Description": "Age in years", "Units": "year"}, "sex": {"Description": "Sex"}}
    _json(root / "participants.json", described)
    features = {name: rng.standard_normal(10) for name in IMAGES}
    _write_stimuli(root / "stimuli", features, older_stimuli)
    for subject in SUBJECTS:
        _write_subject(laion, subject, features, rng)
        _write_rois(root / "derivatives", subject)
        _write_localizer(root / "derivatives", subject)
    _write_splits(laion.splits)
    return laion


def brain() -> np.ndarray:
    """Voxels with a model fit, bool."""
    inside = np.zeros(SHAPE, bool)
    inside[1:-1, 1:-1, 1:-1] = True
    return inside


def high_level() -> np.ndarray:
    """The ROI ``hlvis``: some voxels of the brain, and some outside of it."""
    roi = np.zeros(SHAPE, bool)
    roi[:6, 1:6, 1:5] = True
    return roi


def not_a_number(session: int) -> np.ndarray:
    """Voxels near the mask's edge that are NaN in all trials of a session, others each time."""
    nans = np.zeros(SHAPE, bool)
    nans[1, 1 + session, 1:3] = True
    return nans & brain()


def picture(feature: np.ndarray, transparent: bool, size: int = 40) -> Image.Image:
    """A picture that its features determine: waves, or a shape on a transparent background."""
    grid = np.linspace(-1, 1, size)
    x, y = np.meshgrid(grid, grid)
    waves = sum(f * np.sin((k + 1) * (x + k * y / 4)) for k, f in enumerate(feature))
    colours = np.clip(waves[..., None] * np.array([22.0, 14.0, -16.0]) + 128, 0, 255).astype(np.uint8)
    if not transparent:
        return Image.fromarray(colours)
    disc = (x**2 + y**2 < 0.4 + 0.1 * np.tanh(feature[0])) * 255
    return Image.fromarray(np.dstack([colours, disc.astype(np.uint8)]))


def _write_stimuli(folder: Path, features: dict[str, np.ndarray], older: bool) -> None:
    folder.mkdir(parents=True)
    files = []
    for name in IMAGES:
        stream = io.BytesIO()
        image = picture(features[name], name.endswith(".png"))
        image.save(stream, "PNG" if name.endswith(".png") else "JPEG")
        files.append(stream.getvalue())
    rows = []
    for name in IMAGES:
        owner = next((s for s in SUBJECTS if name in UNIQUE[s]), "")
        kind = "OOD" if name in OOD else "LAION-natural"
        shared = "unique" if owner else "shared"
        who = f"sub-{owner}" if owner else ";".join(f"sub-{s}" for s in SUBJECTS)
        rows.append((name, kind, who, shared, name.split("_")[1].removesuffix("rep")))
    if older:
        (folder / "images").mkdir()
        for name, content in zip(IMAGES, files, strict=True):
            (folder / "images" / name).write_bytes(content)
        text = "\n".join("\t".join(row) for row in [("stimulus_id", *COLUMNS[1:]), *rows])
        (folder / "stimuli.tsv").write_text(text + "\n")
    else:
        with h5py.File(folder / "task-images_stimuli.h5", "w") as file:
            images = file.create_dataset("images", (len(files),), dtype=h5py.vlen_dtype(np.uint8))
            for row, content in enumerate(files):
                images[row] = np.frombuffer(content, np.uint8)
        _csv(folder / "task-images_metadata.csv", COLUMNS, rows)
        with h5py.File(folder / "task-images_desc-CLIP_embeddings.h5", "w") as file:
            file["embedding"] = np.zeros((len(files), 4), np.float16)
        columns = ("mask_row", "image_name", "noun", "instance_id")
        _csv(folder / "task-images_desc-segmentations_metadata.csv", columns, [(0, SHARED[0], "hand", 0)])
    captions = []
    for i, name in enumerate(IMAGES):
        humans = 5 if name in (*SHARED, *OOD) else 3
        for rank in range(1, humans + 1):
            text = f"picture {i}, told for the {rank}. time"
            captions.append((name, rank, "human", text, "main3", f"p{rank}", ""))
        if name in SHARED:
            captions.append((name, 0, "ai", f"A description of picture {i}.", "gpt-5.1", "", "gpt-5.1"))
    columns = ("image_name", "caption_idx", "source", "caption", "origin_collection", "participant_id")
    _csv(folder / "task-images_desc-captions.csv", (*columns, "ai_model"), captions)


def _write_subject(
    laion: Laion, subject: str, features: dict[str, np.ndarray], rng: np.random.Generator
) -> None:
    inside = brain()
    weights = rng.standard_normal((10, *SHAPE)) * inside
    names = (*SHARED, *OOD, *UNIQUE[subject])
    laion.shown[subject], laion.betas[subject] = [], []
    for session in range(N_SESSIONS):
        # Each image is left out of one session, so numbers of trials differ and some images repeat.
        shown = [n for i, n in enumerate(names) if i % (N_SESSIONS + 1) != session]
        shown += [SHARED[0]] * session
        order = [shown[i] for i in rng.permutation(len(shown))]
        betas = np.einsum("tf,fxyz->xyzt", np.stack([features[n] for n in order]), weights)
        betas = (betas + 0.5 * rng.standard_normal(betas.shape) * inside[..., None]).astype(np.float32)
        betas[not_a_number(session)] = np.nan
        laion.shown[subject].append(order)
        laion.betas[subject].append(betas)
        _write_session(laion.glmsingle / f"sub-{subject}", subject, f"{session + 1:02d}", betas, order)
    folder = laion.glmsingle / f"sub-{subject}"
    stem = f"sub-{subject}_task-images_space-T1w"
    _save(folder / f"{stem}_desc-meanR2gt15mask_mask.nii.gz", inside.astype(np.uint8), {"Type": "Brain"})
    for desc, value in (("4rep", 20.0), ("12rep", 45.0), ("Allrep", 30.0)):
        _save(folder / f"{stem}_desc-Noiseceiling{desc}_statmap.nii.gz", np.float32(inside * value))
    _save(folder / f"{stem}_stat-rsquare_desc-R2mean_statmap.nii.gz", np.float32(inside * 0.5))
    _json(folder / f"sub-{subject}_task-images_desc-GLMsingle_summary.json", {"sessions": N_SESSIONS})


def _write_session(folder: Path, subject: str, session: str, betas: np.ndarray, order: list[str]) -> None:
    func = folder / f"ses-{session}" / "func"
    plain = f"sub-{subject}_ses-{session}_task-images"
    stem = f"{plain}_space-T1w"
    about = {"Description": "GLMsingle TYPED betas"}
    _save(func / f"{stem}_stat-effect_desc-SingletrialBetas_statmap.nii.gz", betas, about)
    rows = [f"ses-{session}\t{1 + i // 6}\t{i}\t{name}" for i, name in enumerate(order)]
    table = func / f"{plain}_desc-SingletrialBetas_trials.tsv"
    table.write_text("\n".join(["session\trun\tbeta_index\tlabel", *rows]) + "\n")
    _json(table.with_suffix(".json"), {"label": {"Description": "Image file name."}})
    inside = brain()
    _save(func / f"{stem}_desc-Noiseceiling_statmap.nii.gz", np.float32(inside * 5.0))
    _save(func / f"{stem}_stat-rsquare_desc-R2_statmap.nii.gz", np.float32(inside * 0.4))
    _save(func / f"{stem}_desc-HRFindex_dseg.nii.gz", np.int16(inside * 3))
    _save(func / f"{stem}_desc-Fracridge_statmap.nii.gz", np.float32(inside * 0.1))
    _json(func / f"{plain}_desc-GLMsingle_summary.json", {"runs": 12})
    with h5py.File(func / f"{stem}_desc-GLMsingle_model.h5", "w") as file:
        file["betasmd"] = betas
    (func / "figures").mkdir()
    (func / "figures" / f"{stem}_desc-R2_statmap.png").write_bytes(b"")


def _write_rois(derivatives: Path, subject: str) -> None:
    folder = derivatives / "atlases" / f"sub-{subject}" / "rois"
    _save(folder / "hlvis.nii.gz", high_level().astype(np.uint8))
    _save(folder / "visual.nii.gz", brain().astype(np.uint8))
    places = {"face": "FFA-1", "laion": "laion-general"}
    for category, label in places.items():
        folder = derivatives / "rois" / f"sub-{subject}" / category
        stem = f"sub-{subject}_space-T1w_res"
        _save(folder / f"{stem}-1pt8_label-{label}_mask.nii.gz", high_level().astype(np.uint8))
        fine = np.ones(FINE_SHAPE, np.uint8)
        _save(folder / f"{stem}-1pt5_label-{label}_mask.nii.gz", fine, affine=FINE_AFFINE)
        for hemisphere in "LR":
            name = f"sub-{subject}_hemi-{hemisphere}_space-fsnative_label-{label}_mask"
            (folder / f"{name}.func.gii").write_text("<GIFTI/>")
            (folder / f"{name}.label").write_text("#!ascii label\n0\n")


def _write_localizer(derivatives: Path, subject: str) -> None:
    folder = derivatives / "localizers" / f"sub-{subject}" / "ses-loc" / "func"
    stem = f"sub-{subject}_ses-loc_task-floc_run-01_space-T1w_res-1pt8_contrast-face_stat-effect_statmap"
    _save(folder / f"{stem}.nii.gz", np.zeros(SHAPE, np.float32))


def _write_splits(folder: Path) -> None:
    pools = {"shared": SHARED, **{f"sub-{s}": (*SHARED, *UNIQUE[s]) for s in SUBJECTS}}
    for pool, names in pools.items():
        fifths = [[n for i, n in enumerate(names) if i % 5 == k] for k in range(5)]

        def write(
            name: str, variants: list[tuple[list[str], list[str]]], splitter: str, pool: str = pool
        ) -> None:
            content = [
                {"variant_id": i, "train_ids": train, "test_ids": test}
                for i, (train, test) in enumerate(variants)
            ]
            train, test = variants[0]
            entry = {"name": name, "pool": pool, "splitter": splitter, "params": {"seed": 2026}}
            entry |= {"n_train": len(train), "n_test": len(test), "variants": content}
            _json(folder / pool / f"{name}.json", entry)

        def held_out(k: int, names: Any = names, fifths: Any = fifths) -> tuple[list[str], list[str]]:
            return [n for n in names if n not in fifths[k]], fifths[k]

        write("tau", [(list(names[3:]), list(names[:3]))], "min_nn_stochastic")
        write("ood", [(list(names), list(OOD))], "ood_holdout")
        write("cluster_k5", [held_out(k) for k in range(5)], "kmeans_cluster_holdout")
        for k in range(5):
            write(f"cluster_k5_{k}", [held_out(k)], "kmeans_cluster_holdout")
            write(f"random_{k}", [held_out((k + 2) % 5)], "random")


def _save(
    path: Path, data: np.ndarray, sidecar: dict[str, Any] | None = None, affine: np.ndarray = AFFINE
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
    _json(path.with_name(path.name.removesuffix(".nii.gz") + ".json"), sidecar or {"Units": "percent"})


def _csv(path: Path, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])


def _json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))
