"""Write the simulated dataset: a BIDS derivative of single-trial betas, with the design of NSD."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from bidsapp import __version__
from bidsapp.demo import scenes, sidecars
from bidsapp.demo.brain import ROI_NAMES, Brain, make_brain
from bidsapp.demo.design import DatasetDesign, SessionDesign, SubjectDesign, generator, make_design
from bidsapp.demo.encoding import (
    INPUT_SIDE,
    UNEXPLAINED,
    add_unexplained,
    higher_signal,
    make_early_model,
    make_higher_weights,
)
from bidsapp.demo.noise import SessionNoise, VoxelStatistics, make_statistics
from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.atomic import atomic_path, clear_partials
from bidsapp.storage.text import read_json, write_json, write_text, write_tsv
from bidsapp.system.logging import track

_BLOCK_TRIALS = 64


def write_dataset(
    bids_dir: str | os.PathLike[str], design: DatasetDesign | None = None, *, n_cpus: int = 2
) -> Path:
    """Simulate subjects that look at drawn scenes, and write their betas as a BIDS dataset.

    The same design gives the same bytes, whatever the number of threads. A folder that already holds this
    dataset is left unchanged; one that is incomplete is written again.
    Returns ``bids_dir``.

    Parameters
    ----------
    bids_dir : path
        A new or empty folder, or one from an earlier call with the same design.
    design : DatasetDesign, optional
    n_cpus : int
        Number of threads.

    Raises
    ------
    AppError
        Exit code 73 if the folder holds something else.
    ValueError
        For an image size below 64.

    Notes
    -----
    Peak memory is about ``n_images * 12 kB`` (images at 64 pixels) plus
    ``n_images * n_voxels * 30`` bytes for one subject's signal: about 0.2 GB with the defaults.
    """
    design = design or DatasetDesign()
    if design.image_size < INPUT_SIDE:
        raise ValueError(f"image_size is {design.image_size}, it must be at least {INPUT_SIDE}")
    settings = str(design)
    subjects = [make_design(design, number) for number in range(design.n_subjects)]
    root = Path(bids_dir)
    if _already_written(root, settings):
        return root
    write_text(root / "README.md", sidecars.readme(settings))
    write_text(root / ".bidsignore", "\n".join(sidecars.BIDSIGNORE) + "\n")

    # One BLAS thread in each of ours: more would compete for the cores, and sums would depend on them.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(max_workers=max(1, n_cpus)) as pool:
        images = _write_stimuli(root / "stimuli", design, subjects, pool)
        for seen in subjects:
            subject = _Subject(root, design, seen)
            subject.write_anatomy()
            patterns = subject.patterns(images[np.array(seen.scenes)])
            jobs = [pool.submit(subject.write_session, session, patterns) for session in seen.sessions]
            for job in track(jobs, f"simulating the sessions of sub-{seen.label}"):
                job.result()
    columns: dict[str, Any] = {
        "participant_id": [f"sub-{d.label}" for d in subjects],
        "n_sessions": [len(d.sessions) for d in subjects],
        "n_trials": [sum(len(s.scenes) for s in d.sessions) for d in subjects],
    }
    write_tsv(root / "participants.tsv", columns)
    write_json(root / "participants.json", sidecars.PARTICIPANTS_COLUMNS)
    # Last: this file marks the dataset as complete.
    write_json(root / "dataset_description.json", sidecars.dataset_description(settings))
    return root


def stimulus_label(scene: int) -> str:
    """Label of a scene's stimulus, without ``stim-``."""
    return f"scene{scene:05d}"


def _already_written(root: Path, settings: str) -> bool:
    """Whether this very dataset exists already; refuse to write into anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    readme = root / "README.md"
    ours = readme.is_file() and readme.read_bytes() == sidecars.readme(settings).encode()
    if not ours:
        raise AppError(
            f"{root} is not empty, and it does not hold a dataset that bidsapp-recon {__version__} simulated "
            f"with these settings ({settings}). Nothing was written. Name a new folder, or remove this one.",
            exit_code=ExitCode.CANNOT_CREATE,
        )
    for folder in [root, *(p for p in root.rglob("*") if p.is_dir())]:
        clear_partials(folder)
    description = root / "dataset_description.json"
    return description.is_file() and read_json(description) == sidecars.dataset_description(settings)


def _write_stimuli(
    folder: Path, design: DatasetDesign, subjects: list[SubjectDesign], pool: ThreadPoolExecutor
) -> NDArray[np.uint8]:
    """Draw every scene once and write it with its captions; return all at 64 pixels, by scene index."""
    shown_to = dict.fromkeys(subjects[0].test, "all")
    for subject in subjects:
        shown_to.update(dict.fromkeys(subject.train, f"sub-{subject.label}"))
    n, family = len(shown_to), design.family
    small = np.empty((n, INPUT_SIDE, INPUT_SIDE, 3), np.uint8)

    def draw(index: int) -> tuple[str, str]:
        scene = scenes.make_scene(family, index)
        image = Image.fromarray(scenes.draw(scene, design.image_size))
        with atomic_path(folder / f"stim-{stimulus_label(index)}_image.png") as temporary:
            image.save(temporary, format="PNG", compress_level=6)
        small[index] = np.asarray(image.resize((INPUT_SIDE, INPUT_SIDE), Image.Resampling.BOX))
        return scenes.captions(scene)

    drawn = pool.map(draw, range(n))
    captions = [pair for _, pair in zip(track(range(n), "drawing the stimuli"), drawn, strict=False)]
    ids = [f"stim-{stimulus_label(i)}" for i in range(n)]
    columns: dict[str, list[Any]] = {
        "stimulus_id": ids,
        "file": [f"{i}_image.png" for i in ids],
        "type": ["image"] * n,
        "present": [True] * n,
        "split": ["test" if shown_to[i] == "all" else "train" for i in range(n)],
        "shown_to": [shown_to[i] for i in range(n)],
        "scene_family": [family] * n,
        "scene_index": list(range(n)),
    }
    write_tsv(folder / "stimuli.tsv", columns)
    write_json(folder / "stimuli.json", sidecars.STIMULI_COLUMNS)
    rows = [(i, caption) for i, pair in zip(ids, captions, strict=True) for caption in pair]
    write_tsv(folder / "captions.tsv", {"stimulus_id": [r[0] for r in rows], "caption": [r[1] for r in rows]})
    write_json(folder / "captions.json", sidecars.CAPTIONS_COLUMNS)
    return small


class _Subject:
    """Simulates and writes one subject."""

    def __init__(self, root: Path, dataset: DatasetDesign, design: SubjectDesign) -> None:
        self._root, self._dataset, self._design = root, dataset, design
        self._seed = seed = dataset.seed
        self._brain: Brain = make_brain(seed, design.label)
        self._statistics: VoxelStatistics = make_statistics(seed, design.label, self._brain)

    def write_anatomy(self) -> None:
        """Write the reference image, the ROIs and the noise ceiling."""
        repeats = self._dataset.repeats
        label, brain = self._design.label, self._brain
        core = scipy.ndimage.binary_erosion(brain.inside, iterations=3)
        anatomy = np.where(brain.inside, np.where(core, 900, 600), 0).astype(np.int16)
        head = self._root / f"sub-{label}" / "anat" / f"sub-{label}_space-{sidecars.SPACE}_T1w"
        self._write_map(head, anatomy, sidecars.anatomy(label))

        def path(suffix: str) -> Path:
            return self._root / sidecars.func(label, f"{sidecars.MAP}_{suffix}")

        mask = (brain.labels > 0).astype(np.uint8)
        self._write_map(path("label-nsdgeneral_mask"), mask, sidecars.roi_mask(label))
        self._write_map(path("seg-visualrois_dseg"), brain.labels, sidecars.segmentation(label))
        write_tsv(path("seg-visualrois_dseg.tsv"), {"index": range(1, 1 + len(ROI_NAMES)), "name": ROI_NAMES})
        ceiling = self._statistics.noise_ceiling(repeats)
        sidecar = sidecars.noise_ceiling(label, repeats)
        self._write_map(path("desc-noiseceiling_statmap"), ceiling, sidecar)

    def _write_map(self, path: Path, data: NDArray[Any], sidecar: dict[str, Any]) -> None:
        """Write a map and its sidecar; ``path`` is without their extensions."""
        image = path.with_name(path.name + ".nii.gz")
        _write_nifti(image, data.shape, data.dtype, self._brain.affine, [data])
        write_json(path.with_name(path.name + ".json"), sidecar)

    def patterns(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Noise-free responses of the voxels of both ROIs, as z-scores: (n_scenes, n_voxels).

        ``images`` (n_scenes, 64, 64, 3) and the rows of the result follow ``design.scenes``.
        """
        label, brain, family = self._design.label, self._brain, self._dataset.family
        attributes = np.stack([scenes.attributes(scenes.make_scene(family, i)) for i in self._design.scenes])
        known = {
            "early": make_early_model(self._seed, label, brain).signal(images),
            "higher": higher_signal(attributes, make_higher_weights(self._seed, label, brain)),
        }
        rng = generator(self._seed, label, "unexplained")
        parts = [add_unexplained(rng, known[roi], UNEXPLAINED[roi]) for roi in ROI_NAMES]
        return np.concatenate(parts, axis=1)

    def write_session(self, session: SessionDesign, patterns: NDArray[np.float32]) -> None:
        """Write one session's betas and trials."""
        label, n = self._design.label, len(session.scenes)
        name = f"{sidecars.MAP}_stat-effect_desc-singletrial_statmap"
        path = self._root / sidecars.func(label, f"{name}.nii.gz", session.label)
        volumes = self._volumes(session, patterns)
        _write_nifti(path, (*self._brain.shape, n), np.dtype(np.int16), self._brain.affine, volumes)
        sidecar = self._root / sidecars.func(label, f"{name}.json", session.label)
        write_json(sidecar, sidecars.betas(label, n))
        suffix = f"task-{sidecars.TASK}_desc-singletrial_trials"
        trials = self._root / sidecars.func(label, suffix, session.label)
        columns: dict[str, Any] = {
            "session": [session.label] * n,
            "run": session.runs,
            "beta_index": range(n),
            "stim_id": [f"stim-{stimulus_label(i)}" for i in session.scenes.tolist()],
        }
        write_tsv(trials.with_name(trials.name + ".tsv"), columns)
        write_json(trials.with_name(trials.name + ".json"), sidecars.TRIALS_COLUMNS)

    def _volumes(self, session: SessionDesign, patterns: NDArray[np.float32]) -> Iterator[NDArray[np.int16]]:
        """Yield the betas of a session as stored, one volume (x, y, z) per trial."""
        n, statistics = len(session.scenes), self._statistics
        voxels = np.concatenate([self._brain.voxels(roi) for roi in ROI_NAMES])
        index = tuple(voxels.T)
        noise = SessionNoise(
            self._seed, self._design.label, session, statistics=statistics, voxels=voxels, patterns=patterns
        )
        amplitude = statistics.ncsnr[index] * statistics.noise_sd[index]
        rows = np.searchsorted(self._design.scenes, session.scenes)
        for start in range(0, n, _BLOCK_TRIALS):
            block = noise.draw(min(_BLOCK_TRIALS, n - start))
            block += statistics.mean
            block[(slice(None), *index)] += patterns[rows[start : start + len(block)]] * amplitude
            block *= sidecars.SCALE_FACTOR
            np.rint(block, out=block)
            yield from np.clip(block, -32768, 32767).astype(np.int16)


def _write_nifti(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    affine: NDArray[np.float64],
    volumes: Iterable[NDArray[Any]],
) -> None:
    """Stream volumes into a NIfTI-1 file; its bytes depend on the arguments only, not on the time."""
    import nibabel as nib

    header: Any = nib.Nifti1Header()  # type: ignore[no-untyped-call]
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header.set_xyzt_units("mm", "sec")
    header["vox_offset"] = 352
    with (
        atomic_path(path) as temporary,
        open(temporary, "wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=1, mtime=0) as stream,
    ):
        stream.write(header.binaryblock + bytes(4))
        for volume in volumes:
            stream.write(np.asfortranarray(volume, dtype=dtype).tobytes(order="F"))
