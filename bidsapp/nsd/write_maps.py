"""Write a subject's mask, segmentations and noise ceiling on the grid of the betas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bidsapp.errors import AppError, ExitCode
from bidsapp.nsd import layout, maps, sidecars, sources
from bidsapp.nsd.files import Writer
from bidsapp.nsd.plan import Plan, SubjectPlan
from bidsapp.nsd.sources import Findings
from bidsapp.storage.nifti import displacement, load_volume, read_header

_Write = Callable[[Path, NDArray[np.float64]], None]
#: A difference of affines is worth a note from this share of a voxel on (less is rounding).
TOLERANCE = 0.1


def write_maps(plan: Plan, subject: SubjectPlan, root: Path, writer: Writer, found: Findings) -> None:
    """Write the maps that NSD has of a subject; one that can't be used leaves the rest alone.

    The betas' affine is written into all of them: NSD defines all volumes of a space on one grid, so the
    voxels' indices decide, and readers compare affines.

    Parameters
    ----------
    plan : Plan
    subject : SubjectPlan
    root : Path
        The dataset.
    writer : Writer
    found : Findings
        Takes what is wrong with a map.
    """
    affine = _affine(subject)
    nsd, number = plan.nsd, subject.number

    def name(suffix: str) -> Path:
        return root / sources.map_name(nsd, number, suffix)

    def write_mask(_: Path, values: NDArray[np.float64]) -> None:
        stem = f"label-{layout.MASK}_mask"
        writer.volume(name(f"{stem}.nii.gz"), maps.mask_of(values), affine)
        writer.json(name(f"{stem}.json"), sidecars.mask(nsd, subject.label, number))

    def write_segmentation(roi: str, table: Path) -> _Write:
        def write(path: Path, values: NDArray[np.float64]) -> None:
            stem, labels = f"seg-{sources.segment(roi)}_dseg", maps.labels_of(path, values)
            names = maps.read_label_table(table)
            unnamed = sorted({int(n) for n in np.unique(labels)} - {0, *names})
            if unnamed:
                found.notes.append(f"{table}: lacks names for {unnamed} of {path.name}: called label<n>.")
            names = dict(sorted({**names, **{n: f"label{n}" for n in unnamed}}.items()))
            writer.tsv(name(f"{stem}.tsv"), {"index": list(names), "name": list(names.values())})
            writer.volume(name(f"{stem}.nii.gz"), labels, affine)
            writer.json(name(f"{stem}.json"), sidecars.segmentation(nsd, subject.label, number, roi))

        return write

    def write_ceiling(_: Path, values: NDArray[np.float64]) -> None:
        shown = [plan.design.shown(number, s.number) for s in subject.sessions]
        repeats = maps.count_repeats(shown, plan.design.shared)
        stem = "desc-noiseceiling_statmap"
        writer.volume(name(f"{stem}.nii.gz"), maps.noise_ceiling(values, repeats), affine)
        writer.json(name(f"{stem}.json"), sidecars.noise_ceiling(nsd, subject.label, number, repeats))

    jobs: list[tuple[Path | None, _Write]] = [(subject.mask, write_mask), (subject.ncsnr, write_ceiling)]
    jobs += [(path, write_segmentation(roi, t)) for roi, (path, t) in subject.segmentations.items()]
    for path, write in jobs:
        if path is None:
            continue
        try:
            values, own = _load(path, subject)
            distance = displacement(affine, own, values.shape)
            if distance > TOLERANCE:
                found.notes.append(
                    f"{path}: its affine differs from that of the betas by up to {distance:.2f} voxels; "
                    "the betas' was written, as NSD's volumes of one space share their voxels."
                )
            write(path, values)
        except AppError as error:
            found.damaged(error, path)


def _load(path: Path, subject: SubjectPlan) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    volume = load_volume(path)
    if volume.data.shape != subject.shape:
        what = f"has the shape {volume.data.shape}, the betas of sub-{subject.label} have {subject.shape}"
        raise AppError(f"{path}: {what}.", exit_code=ExitCode.BAD_DATA)
    return volume.data.astype(np.float64), volume.affine


def _affine(subject: SubjectPlan) -> NDArray[np.float64]:
    """Affine of the betas; where HDF5 tells none, of the first map that has their shape."""
    if subject.grid is not None:
        return subject.grid.affine
    for path in (subject.mask, subject.ncsnr, *(volume for volume, _ in subject.segmentations.values())):
        try:
            header = read_header(path) if path is not None else None
        except AppError:
            continue  # said when the map is read
        if header is not None and header.shape == subject.shape:
            return header.affine
    return np.eye(4)
