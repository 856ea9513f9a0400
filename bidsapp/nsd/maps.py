"""A subject's maps on the betas' grid: the mask, labels with their names, and the noise ceiling."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bidsapp.errors import AppError, ExitCode
from bidsapp.nsd import layout, sidecars
from bidsapp.nsd.design import Repeats, count_repeats
from bidsapp.nsd.files import Writer
from bidsapp.nsd.plan import ConversionPlan, SubjectPlan
from bidsapp.nsd.sources import Inventory, map_name, segment
from bidsapp.storage.nifti import displacement, load_volume, read_header
from bidsapp.storage.text import read_text

#: A difference between affines is noted from this share of a voxel on (less is rounding).
TOLERANCE = 0.1


def labels_of(path: Path, values: NDArray[np.float64]) -> NDArray[np.int16]:
    """Return a segmentation's labels, 0 where NSD has 0 or -1.

    Raises
    ------
    AppError
        Exit code 65 if the values are not labels.
    """
    inside = np.where(values > 0, values, 0)
    if inside.max(initial=0) > np.iinfo(np.int16).max or (inside != np.rint(inside)).any():
        raise _bad(path, "must hold whole numbers as labels, but it has other values above 0")
    return inside.astype(np.int16)


def read_label_table(path: Path) -> dict[int, str]:
    """Read a FreeSurfer colour table (``.ctab``): one number and name per line, optionally with a colour.

    Returns labels above 0, sorted.

    Raises
    ------
    AppError
        Exit code 65 with the line that is not such an entry.
    """
    names: dict[int, str] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            value = int(words[0])
        except ValueError as error:
            raise _bad(path, f"line {number}: {words[0][:40]!r} is not a label number") from error
        colour = words[-4:]
        named = words[1:-4] if len(words) > 5 and all(w.isdecimal() for w in colour) else words[1:]
        if value > 0 and named:
            names[value] = " ".join(named)[:80]
    return dict(sorted(names.items()))


def noise_ceiling(ncsnr: NDArray[np.float64], repeats: Repeats) -> NDArray[np.float32]:
    """Compute the share of variance of averaged responses that the stimulus can explain.

    ``100 * ncsnr^2 / (ncsnr^2 + 1/n)`` for averages of n trials (Allen et al. 2022, Methods, "Noise
    ceiling estimation"). If images differ in n, 1/n is averaged over them; in the NSD Data Manual's words
    ``(A/3 + B/2 + C/1) / (A + B + C)`` for A, B and C images with 3, 2 and 1 trials.

    Parameters
    ----------
    ncsnr : ndarray of float64
        Standard deviation of the signal divided by that of a single trial's noise.

    Returns
    -------
    ndarray of float32
        Percent, 0 to 100; NaN where ncsnr is negative or not finite.
    """
    squared = np.where(np.isfinite(ncsnr) & (ncsnr >= 0), ncsnr, np.nan) ** 2
    ceiling: NDArray[np.float32] = (100 * squared / (squared + repeats.mean_inverse)).astype(np.float32)
    return ceiling


def write_maps(
    plan: ConversionPlan, subject: SubjectPlan, root: Path, writer: Writer, inventory: Inventory
) -> None:
    """Write the maps that NSD has of a subject into the dataset ``root``; damaged ones are left out.

    All maps get the affine of the betas: NSD defines all volumes of a space on one grid, so voxel indices
    correspond, and readers compare affines.
    """
    affine, nsd, number = _affine(subject), plan.nsd, subject.number

    def write(stem: str, values: NDArray[np.generic], sidecar: dict[str, Any]) -> None:
        writer.volume(root / map_name(nsd, number, f"{stem}.nii.gz"), values, affine)
        writer.json(root / map_name(nsd, number, f"{stem}.json"), sidecar)

    def write_mask(_: Path, values: NDArray[np.float64]) -> None:
        # Voxels outside are 0 or, in cortex, -1.
        inside = (values > 0).astype(np.uint8)
        write(f"label-{layout.MASK}_mask", inside, sidecars.mask(nsd, subject.label, number))

    def write_segmentation(roi: str, table: Path, path: Path, values: NDArray[np.float64]) -> None:
        stem, labels = f"seg-{segment(roi)}_dseg", labels_of(path, values)
        names = read_label_table(table)
        unnamed = sorted({int(n) for n in np.unique(labels)} - {0, *names})
        if unnamed:
            inventory.notes.append(f"{table}: lacks names for {unnamed} of {path.name}: named label<n>.")
        names = dict(sorted({**names, **{n: f"label{n}" for n in unnamed}}.items()))
        table_file = root / map_name(nsd, number, f"{stem}.tsv")
        writer.tsv(table_file, {"index": list(names), "name": list(names.values())})
        write(stem, labels, sidecars.segmentation(nsd, subject.label, number, roi))

    def write_ceiling(_: Path, values: NDArray[np.float64]) -> None:
        shown = [plan.design.shown(number, s.number) for s in subject.sessions]
        repeats = count_repeats(shown, plan.design.shared)
        sidecar = sidecars.noise_ceiling(nsd, subject.label, number, repeats)
        write("desc-noiseceiling_statmap", noise_ceiling(values, repeats), sidecar)

    jobs: list[tuple[Path | None, Callable[[Path, NDArray[np.float64]], None]]] = [
        (subject.mask, write_mask),
        (subject.ncsnr, write_ceiling),
    ]
    jobs += [(path, partial(write_segmentation, roi, t)) for roi, (path, t) in subject.segmentations.items()]
    for path, write_map in jobs:
        if path is None:
            continue
        try:
            values, own = _load(path, subject)
            distance = displacement(affine, own, values.shape)
            if distance > TOLERANCE:
                inventory.notes.append(
                    f"{path}: its affine differs from that of the betas by up to {distance:.2f} voxels. "
                    "The betas' affine was written, because NSD's volumes of one space share their voxels."
                )
            write_map(path, values)
        except AppError as error:
            inventory.add_damaged(error, path)


def _load(path: Path, subject: SubjectPlan) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    volume = load_volume(path)
    if volume.data.shape != subject.shape:
        raise _bad(path, f"has shape {volume.data.shape}, the betas of sub-{subject.label} {subject.shape}")
    return volume.data.astype(np.float64), volume.affine


def _affine(subject: SubjectPlan) -> NDArray[np.float64]:
    """Affine of the betas; if all are HDF5, which has none, that of the first map of their shape."""
    if subject.grid is not None:
        return subject.grid.affine
    for path in (subject.mask, subject.ncsnr, *(volume for volume, _ in subject.segmentations.values())):
        try:
            header = read_header(path) if path is not None else None
        except AppError:
            continue  # reported when the map is read
        if header is not None and header.shape == subject.shape:
            return header.affine
    return np.eye(4)


def _bad(path: Path, what: str) -> AppError:
    return AppError(f"{path}: {what}.", exit_code=ExitCode.BAD_DATA, path=path)
