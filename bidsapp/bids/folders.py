"""Checks of the folders to write to: outside of the input, writable, with enough free space."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bidsapp.bids.descriptions import refuse_foreign_dataset
from bidsapp.errors import RENAME, AppError, ExitCode, Problem, is_utf8

#: First letters of the names that the app uses in an output folder, and in a work folder.
_OF_OUTPUT = ("sub-", "logs", "phenotype")
_OF_WORK = ("sub-", "targets-", "canaries", "cache")


@dataclass(frozen=True)
class RequiredSpace:
    """Bytes that will be written into a folder, which a message calls ``the <name> folder``."""

    folder: Path
    name: str
    n_bytes: int


def check_folders(inputs: Iterable[Path], out_dir: Path, work_dir: Path) -> list[Problem]:
    """Check that the output and work folders can be created and written, and are outside of the input.

    ``inputs`` are the roots of the datasets that are read. Nothing is left behind: a temporary folder is
    created next to the new one and removed, because only the file system knows all its reasons to refuse.
    Paths that are not UTF-8 are refused too. The problems have exit code 73.
    """
    problems = []
    roots = dict.fromkeys(Path(os.path.realpath(root)) for root in inputs)
    for path, name in ((out_dir, "output"), (work_dir, "work")):
        problem = _not_utf8(path, name) or _inside_input(path, name, roots) or _unwritable(path, name)
        if problem is not None:
            problems.append(problem)
    if not problems and _would_mix(out_dir, work_dir):
        what = f"Files of the work folder would be mixed with those of the output folder {out_dir}."
        fix = f"Choose another work folder with -w. The default is {out_dir / '.work'}."
        problems.append(Problem(str(work_dir), what, fix, ExitCode.CANNOT_CREATE))
    try:
        refuse_foreign_dataset(out_dir)
    except AppError as error:
        problems.append(Problem.of(error, out_dir, "Choose another output folder."))
    return problems


def check_space(wanted: Sequence[RequiredSpace]) -> list[Problem]:
    """Check the free space for what will be written; folders on the same file system share it.

    There is one problem (exit code 74) per file system with too little free space.
    """
    systems: dict[int, list[RequiredSpace]] = {}
    for item in wanted:
        systems.setdefault(_existing(item.folder).stat().st_dev, []).append(item)
    problems = []
    for items in systems.values():
        total = sum(item.n_bytes for item in items)
        free = shutil.disk_usage(_existing(items[0].folder)).free
        if total > free:
            parts = " and ".join(f"{_gb(item.n_bytes)} for the {item.name} folder" for item in items)
            what = f"About {parts} will be written, but only {_gb(free)} are free."
            fix = "Free some space, choose another folder (-w has the larger part), or run fewer subjects."
            problems.append(Problem(str(items[0].folder), what, fix, ExitCode.IO_ERROR))
    return problems


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 5e7 else f"{n_bytes / 1e6:.1f} MB"


def _existing(path: Path) -> Path:
    """Give the folder itself, or the nearest existing one above it."""
    path = path.absolute()
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def _inside_input(path: Path, name: str, roots: Iterable[Path]) -> Problem | None:
    for root in roots:
        # <dataset>/derivatives/<name> is BIDS' own place for results, and is never indexed as input.
        inner = _inner_parts(path, root)
        if inner is not None and not (len(inner) >= 2 and inner[0] == "derivatives"):
            what = f"The {name} folder is inside the input dataset {root}."
            fix = f"Choose a folder outside of it, or {root / 'derivatives' / 'bidsapp-recon'}."
            return Problem(str(path), what, fix, ExitCode.CANNOT_CREATE)
    return None


def _would_mix(out_dir: Path, work_dir: Path) -> bool:
    """Whether one folder is the other, or lies where the other has its own files."""
    for inner, outer, own in ((work_dir, out_dir, _OF_OUTPUT), (out_dir, work_dir, _OF_WORK)):
        parts = _inner_parts(inner, outer)
        if parts is not None and (not parts or parts[0].startswith(own)):
            return True
    return False


def _inner_parts(path: Path, root: Path) -> tuple[str, ...] | None:
    """Names of folders from ``root`` to ``path``; None if it is not inside.

    Folders are compared on the disk: with a bind mount, or a file system that ignores case, one folder has
    several paths.
    """
    real, top = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    for folder in (real, *real.parents):
        try:
            same = folder == top or folder.samefile(top)
        except OSError:  # not there yet
            same = False
        if same:
            return real.relative_to(folder).parts
    return None


def _not_utf8(path: Path, name: str) -> Problem | None:
    """Refuse a path that no text file of the output could hold."""
    if is_utf8(str(path.absolute())):
        return None
    what = f"The path of the {name} folder is not UTF-8: {path.absolute()}."
    return Problem(str(path), what, RENAME, ExitCode.CANNOT_CREATE)


def _unwritable(path: Path, name: str) -> Problem | None:
    existing = _existing(path)
    fix = "Choose a folder that this user may write to; in a container, check that it is bound read-write."
    if not existing.is_dir():
        kind = "is a file" if existing.exists() else "is a link to nothing"
        what = f"The {name} folder cannot be made: {existing} {kind}."
        return Problem(str(path), what, fix, ExitCode.CANNOT_CREATE)
    try:
        Path(tempfile.mkdtemp(prefix=".bidsapp-recon-", dir=existing)).rmdir()
    except OSError as error:
        what = f"The {name} folder cannot be written: {existing} refuses ({error.strerror})."
        return Problem(str(path), what, fix, ExitCode.CANNOT_CREATE)
    return None
