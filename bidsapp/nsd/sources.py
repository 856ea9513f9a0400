"""Find NSD's files of a subject, and say which are missing or damaged; reads headers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bidsapp.errors import AppError, ExitCode, Problem
from bidsapp.nsd import layout, sidecars
from bidsapp.nsd.layout import Missing, Nsd
from bidsapp.nsd.stimuli import BRICK_KEY, StimulusInfo, open_brick
from bidsapp.storage.hdf5 import open_array
from bidsapp.storage.nifti import Header, read_header

#: Extensions of betas, the one preferred first.
EXTENSIONS = (".nii.gz", ".hdf5")


@dataclass
class Findings:
    """Collects what is missing, damaged, or worth saying."""

    missing: list[Missing] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def damaged(self, error: AppError, path: Path, mend: str = "Download it again.") -> None:
        """Record what is wrong with a file (the one that the error names, else ``path``)."""
        problem = Problem.of(error, path, mend)
        self.problems.append(replace(problem, what=problem.what.removesuffix(" Download it again.")))


@dataclass(frozen=True)
class Betas:
    """The betas of a session that were found.

    Attributes
    ----------
    path : Path
    extension : str
        ``.nii.gz`` or ``.hdf5``.
    shape : tuple of int
        (x, y, z, trials).
    header : Header or None
        None for HDF5, which has no affine.
    """

    path: Path
    extension: str
    shape: tuple[int, ...]
    header: Header | None


def betas_name(nsd: Nsd, subject: int, session: int, extension: str) -> str:
    """Name of a session's betas in the dataset, from its root."""
    suffix = f"space-{nsd.space}_stat-effect_desc-singletrial_statmap{extension}"
    return sidecars.func(f"{subject:02d}", suffix, f"nsd{session:02d}")


def map_name(nsd: Nsd, subject: int, suffix: str) -> str:
    """Name of a subject's map in the dataset, from its root, e.g. for ``label-nsdgeneral_mask.nii.gz``."""
    return sidecars.func(f"{subject:02d}", f"space-{nsd.space}_{suffix}")


def find_betas(nsd: Nsd, bids_dir: Path, subject: int, found: Findings) -> tuple[dict[int, Betas], list[int]]:
    """Find the betas of every session that NSD has of a subject.

    NSD's file is taken, else what an earlier run put into the dataset; NIfTI, of either, before HDF5.

    Returns
    -------
    betas : dict of int to Betas
        By session, from 1.
    absent : list of int
        Sessions of which no file is there. (Damaged ones are in neither.)
    """
    betas: dict[int, Betas] = {}
    absent = []
    for session in range(1, layout.SESSIONS[subject - 1] + 1):
        places = [
            (path, extension)
            for extension in EXTENSIONS
            for path in (
                nsd.root / (nsd.session(subject, session) + extension),
                bids_dir / betas_name(nsd, subject, session, extension),
            )
        ]
        there = next(((p, e) for p, e in places if p.is_file()), None)
        if there is None:
            absent.append(session)
            continue
        try:
            betas[session] = _read_betas(*there)
        except AppError as error:
            found.damaged(error, there[0])
    return betas, absent


def _read_betas(path: Path, extension: str) -> Betas:
    header = read_header(path) if extension == ".nii.gz" else None
    shape, dtype = (header.shape, header.dtype) if header else _hdf5_form(path)
    if dtype.kind not in "iu":
        # Divided by the scale factor once more, such a session would not fit the others.
        what = f"holds {dtype} values; NSD's are integers, {layout.SCALE_FACTOR} times percent signal change"
        raise AppError(f"{path}: {what}.", exit_code=ExitCode.BAD_DATA)
    if len(shape) not in (3, 4):
        raise AppError(f"{path}: must be 4-D, but its shape is {shape}.", exit_code=ExitCode.BAD_DATA)
    return Betas(path, extension, shape if len(shape) == 4 else (*shape, 1), header)


def _hdf5_form(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read the shape (x, y, z, trials) and type of betas in HDF5, whose array has the axes reversed."""
    with open_array(path) as array:
        return tuple(int(n) for n in array.shape[::-1]), array.dtype


def name_missing_sessions(nsd: Nsd, subject: int, absent: Sequence[int], n: int, found: Findings) -> None:
    """Record the sessions that are not there, of the ``n`` that NSD has of a subject."""
    absent = [session for session in absent if session <= n]
    if absent and len(absent) == n:
        first = f"{nsd.session(subject, 1)}.nii.gz"
        found.missing.append(nsd.missing(first, f"betas of subject {subject}, all sessions, 1 to {n}"))
        return
    for session in absent:
        path = f"{nsd.session(subject, session)}.nii.gz"
        found.missing.append(nsd.missing(path, f"betas of subject {subject}, session {session}"))


def find_mask(nsd: Nsd, bids_dir: Path, subject: int, found: Findings) -> Path | None:
    """Find the volume of the region that is decoded by default."""
    path = nsd.find(nsd.roi(subject, layout.MASK))
    if path is None and not (bids_dir / map_name(nsd, subject, f"label-{layout.MASK}_mask.nii.gz")).is_file():
        what = f"mask of subject {subject}, the voxels that are decoded by default"
        found.missing.append(nsd.missing(nsd.roi(subject, layout.MASK), what))
    return path


def find_segmentation(
    nsd: Nsd, bids_dir: Path, subject: int, name: str, found: Findings
) -> tuple[Path, Path] | None:
    """Find a volume of labels and the table of their names; both are needed."""
    volume = nsd.find(nsd.roi(subject, name))
    tables = nsd.label_tables(subject, name)
    table = nsd.find(*tables)
    if volume and table:
        return volume, table
    if not (bids_dir / map_name(nsd, subject, f"seg-{segment(name)}_dseg.nii.gz")).is_file():
        if volume is None:
            found.missing.append(nsd.missing(nsd.roi(subject, name), f"regions {name} of subject {subject}"))
        if table is None:
            what = f"names of the regions {name}, without which they were left out"
            found.missing.append(nsd.missing(tables[0], what))
    return None


def segment(name: str) -> str:
    """BIDS label of a volume of labels: letters and digits only."""
    return "".join(c for c in name if c.isalnum())


def find_ncsnr(nsd: Nsd, bids_dir: Path, subject: int, found: Findings) -> Path | None:
    """Find the map that the noise ceiling is made from."""
    path = nsd.find(nsd.ncsnr(subject))
    if path is None and not (bids_dir / map_name(nsd, subject, "desc-noiseceiling_statmap.nii.gz")).is_file():
        found.missing.append(nsd.missing(nsd.ncsnr(subject), f"noise ceiling of subject {subject}"))
    return path


def find_brick(nsd: Nsd, bids_dir: Path, info: StimulusInfo, found: Findings) -> Path | None:
    """Find the brick of all images, and check that it has them."""
    there = bids_dir / "stimuli" / Path(layout.BRICK).name
    path = nsd.find(layout.BRICK) or (there if there.is_file() else None)
    if path is None:
        found.missing.append(nsd.missing(layout.BRICK, "the images that were shown"))
        return None
    try:
        with open_brick(path) as brick:
            if brick.shape[0] != len(info):
                what = f"has {brick.shape[0]} images in {BRICK_KEY}, but NSD's table lists {len(info)}"
                raise AppError(f"{path}: {what}.", exit_code=ExitCode.BAD_DATA)
    except AppError as error:
        found.damaged(error, path)
        return None
    return path


def find_captions(
    nsd: Nsd, bids_dir: Path, info: StimulusInfo, given: Sequence[Path], found: Findings
) -> tuple[Path, ...]:
    """Find COCO's caption files: those given, else one for each COCO set in NSD's folder.

    Raises
    ------
    AppError
        Exit code 66 for a file that was given and is not there.
    """
    for path in given:
        if not path.is_file():
            raise AppError(f"--captions {path}: there is no such file.", exit_code=ExitCode.NO_INPUT)
    if given:
        return tuple(given)
    paths = []
    for split in sorted(set(info.coco_split)):
        name = f"captions_{split}.json"
        there = nsd.find(*(f"{folder}/{name}" for folder in layout.ANNOTATIONS))
        if there:
            paths.append(there)
        elif not (bids_dir / "stimuli" / "captions.tsv").is_file():
            found.missing.append(missing_captions(nsd, split))
    return tuple(paths)


def missing_captions(nsd: Nsd, split: str) -> Missing:
    """Name COCO's caption file of one of its sets."""
    path = nsd.root / layout.ANNOTATIONS[0] / f"captions_{split}.json"
    what = f"COCO's captions of {split}: unzip into {path.parent.parent}, or give the files with --captions"
    return Missing(path, layout.COCO_URL, what)
