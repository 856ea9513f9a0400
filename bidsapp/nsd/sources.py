"""NSD's files of each subject: which exist, and which are missing or damaged. Reads headers only."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bidsapp.errors import AppError, ExitCode, Problem
from bidsapp.nsd import layout, sidecars
from bidsapp.nsd.layout import Missing, Nsd
from bidsapp.nsd.stimuli import BRICK_KEY, BRICK_NAME, StimulusInfo, open_brick
from bidsapp.storage.hdf5 import open_array
from bidsapp.storage.hdf5_rows import written_rows
from bidsapp.storage.nifti import Header, read_header

#: Extensions of betas, the preferred one first.
EXTENSIONS = (".nii.gz", ".hdf5")


@dataclass
class Inventory:
    """What is missing, damaged, or worth a note."""

    missing: list[Missing] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add_damaged(self, error: AppError, path: Path, fix: str = "Download it again.") -> None:
        """Record what is wrong with a file (the one that the error names, else ``path``)."""
        problem = Problem.of(error, path, fix)
        self.problems.append(replace(problem, what=problem.what.removesuffix(" Download it again.")))


@dataclass(frozen=True)
class Betas:
    """The betas of one session.

    ``extension`` is ``.nii.gz``, or ``.hdf5``, which has no header; ``shape`` is (x, y, z, trials).
    """

    path: Path
    extension: str
    shape: tuple[int, ...]
    header: Header | None


@dataclass(frozen=True)
class Brick:
    """The brick of images, and whether the pixels of each are stored, bool (images,)."""

    path: Path
    written: NDArray[np.bool_]


def betas_name(nsd: Nsd, subject: int, session: int, extension: str) -> str:
    """Name of a session's betas in the dataset, relative to its root."""
    suffix = f"space-{nsd.space}_stat-effect_desc-singletrial_statmap{extension}"
    return sidecars.func(f"{subject:02d}", suffix, layout.session_label(session))


def map_name(nsd: Nsd, subject: int, suffix: str) -> str:
    """Name of a subject's map in the dataset, e.g. for the suffix ``label-nsdgeneral_mask.nii.gz``."""
    return sidecars.func(f"{subject:02d}", f"space-{nsd.space}_{suffix}")


def segment(name: str) -> str:
    """BIDS label of a volume of labels: letters and digits only."""
    return "".join(c for c in name if c.isalnum())


class Sources:
    """The files to convert: NSD's own, else what an earlier run put into the dataset.

    Parameters
    ----------
    bids_dir : Path
        The dataset.
    inventory : Inventory
        Takes what is missing or damaged.
    """

    def __init__(self, nsd: Nsd, bids_dir: Path, inventory: Inventory) -> None:
        self.nsd, self.bids_dir, self.inventory = nsd, bids_dir, inventory

    def betas(self, subject: int, sessions: Collection[int]) -> tuple[dict[int, Betas], list[int]]:
        """Find the betas of a subject's sessions; NIfTI is preferred to HDF5.

        These are the ``sessions`` requested, all that NSD has if empty, and those already in the dataset.

        Returns
        -------
        betas : dict of int to Betas
            By session, from 1.
        absent : list of int
            Requested sessions without a file. (Damaged ones are in neither.)
        """
        betas: dict[int, Betas] = {}
        absent = []
        for session in range(1, layout.SESSIONS[subject - 1] + 1):
            converted = {e: self.bids_dir / betas_name(self.nsd, subject, session, e) for e in EXTENSIONS}
            requested = not sessions or session in sessions
            if not requested and not any(path.is_file() for path in converted.values()):
                continue
            candidates = [
                (path, extension)
                for extension in EXTENSIONS
                for path in (
                    self.nsd.root / (self.nsd.session(subject, session) + extension),
                    converted[extension],
                )
            ]
            existing = next(((p, e) for p, e in candidates if p.is_file()), None)
            if existing is None:
                absent.append(session)
                continue
            try:
                betas[session] = _read_betas(*existing)
            except AppError as error:
                self.inventory.add_damaged(error, existing[0])
        return betas, absent

    def add_missing_sessions(self, subject: int, absent: Sequence[int], n: int) -> None:
        """Record the missing ones of the ``n`` sessions that NSD has of a subject."""
        absent = [session for session in absent if session <= n]
        if absent and len(absent) == n:
            self._add(
                f"{self.nsd.session(subject, 1)}.nii.gz",
                f"betas of subject {subject}, all sessions, 1 to {n}",
            )
            return
        for session in absent:
            path = f"{self.nsd.session(subject, session)}.nii.gz"
            self._add(path, f"betas of subject {subject}, session {session}")

    def mask(self, subject: int) -> Path | None:
        """Find the mask of the voxels that are decoded by default."""
        what = f"mask of subject {subject}, the voxels that are decoded by default"
        return self._map(subject, self.nsd.roi(subject, layout.MASK), f"label-{layout.MASK}_mask", what)

    def ncsnr(self, subject: int) -> Path | None:
        """Find the map that the noise ceiling is computed from."""
        what = f"noise ceiling of subject {subject}"
        return self._map(subject, self.nsd.ncsnr(subject), "desc-noiseceiling_statmap", what)

    def segmentation(self, subject: int, name: str) -> tuple[Path, Path] | None:
        """Find a volume of labels and the table of their names; both are needed."""
        volume = self.nsd.find(self.nsd.roi(subject, name))
        tables = self.nsd.label_tables(subject, name)
        table = self.nsd.find(*tables)
        if volume and table:
            return volume, table
        if not self._converted(subject, f"seg-{segment(name)}_dseg"):
            if volume is None:
                self._add(self.nsd.roi(subject, name), f"regions {name} of subject {subject}")
            if table is None:
                self._add(tables[0], f"names of the regions {name}, which are left out without them")
        return None

    def brick(self, info: StimulusInfo, shown: NDArray[np.int64]) -> Brick | None:
        """Find the brick of all images, and check that it has those shown, given by 73k IDs."""
        converted = self.bids_dir / "stimuli" / BRICK_NAME
        path = self.nsd.find(layout.BRICK) or (converted if converted.is_file() else None)
        if path is None:
            self._add(layout.BRICK, "the images that were shown")
            return None
        try:
            with open_brick(path) as brick:
                if brick.shape[0] != len(info):
                    what = f"has {brick.shape[0]} images in {BRICK_KEY}, but NSD's table lists {len(info)}"
                    raise AppError(f"{path}: {what}.", exit_code=ExitCode.BAD_DATA)
                written = written_rows(brick)
        except AppError as error:
            self.inventory.add_damaged(error, path)
            return None
        lacking = shown[~written[shown - 1]]
        if lacking.size:
            what = f"lacks {lacking.size} of the {shown.size} images shown, e.g. 73k ID {lacking[0]}"
            self.inventory.add_damaged(AppError(f"{path}: {what}.", exit_code=ExitCode.BAD_DATA), path)
        return Brick(path, written)

    def captions(self, info: StimulusInfo, given: Sequence[Path]) -> tuple[Path, ...]:
        """Find COCO's caption files: those given, else one for each COCO set in NSD's folder.

        Raises
        ------
        AppError
            Exit code 66 if a given file does not exist.
        """
        for path in given:
            if not path.is_file():
                raise AppError(f"--captions {path}: There is no such file.", exit_code=ExitCode.NO_INPUT)
        if given:
            return tuple(given)
        paths = []
        for split in sorted(set(info.coco_split)):
            found = self.nsd.find(*(f"{folder}/captions_{split}.json" for folder in layout.ANNOTATIONS))
            if found:
                paths.append(found)
            elif not (self.bids_dir / "stimuli" / "captions.tsv").is_file():
                self.inventory.missing.append(missing_captions(self.nsd, split))
        return tuple(paths)

    def _map(self, subject: int, relative: str, stem: str, what: str) -> Path | None:
        path = self.nsd.find(relative)
        if path is None and not self._converted(subject, stem):
            self._add(relative, what)
        return path

    def _converted(self, subject: int, stem: str) -> bool:
        """Whether an earlier run wrote this map into the dataset."""
        return (self.bids_dir / map_name(self.nsd, subject, f"{stem}.nii.gz")).is_file()

    def _add(self, relative: str, what: str) -> None:
        self.inventory.missing.append(self.nsd.missing(relative, what))


def _read_betas(path: Path, extension: str) -> Betas:
    header = read_header(path) if extension == ".nii.gz" else None
    shape: tuple[int, ...]
    if header:
        shape, dtype = (*header.shape, header.n_volumes), header.dtype
    else:
        with open_array(path) as array:  # HDF5 has the axes reversed
            shape, dtype = tuple(int(n) for n in array.shape[::-1]), array.dtype
    if dtype.kind not in "iu":
        # Divided by the scale factor once more, such a session would not match the others.
        what = f"holds {dtype} values; NSD's are integers, {layout.SCALE_FACTOR} times percent signal change"
        raise AppError(f"{path}: {what}.", exit_code=ExitCode.BAD_DATA)
    return Betas(path, extension, shape, header)


def missing_captions(nsd: Nsd, split: str) -> Missing:
    """Describe the missing caption file of one of COCO's sets."""
    path = nsd.root / layout.ANNOTATIONS[0] / f"captions_{split}.json"
    what = f"COCO's captions of {split}: unzip into {path.parent.parent}, or give the files with --captions"
    return Missing(path, layout.COCO_URL, what)
