"""Folders to bind into a container: those that the run names, and the targets of links in the input."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bidsapp.errors import AppError, ExitCode


@dataclass(frozen=True)
class Bind:
    """A folder that the container has at its own path."""

    folder: Path
    writable: bool = False

    def __str__(self) -> str:
        return f"{self.folder}:{self.folder}" + ("" if self.writable else ":ro")


def binds(read: Iterable[Path], written: Iterable[Path]) -> list[Bind]:
    """List what to bind: each folder once, outer folders first.

    Paths are absolute. Of a file that is read, its folder is bound; folders that are written to need not
    exist.

    Raises
    ------
    AppError
        Exit code 64 for a path that Apptainer's ``--bind`` cannot express.
    """
    writable = list(dict.fromkeys(written))
    folders = [path.parent if path.is_file() else path for path in read]
    found = [Bind(f, True) for f in writable if not _inside(f, [w for w in writable if w != f])]
    kept: list[Path] = []
    for folder in sorted(dict.fromkeys(folders), key=lambda f: len(f.parts)):
        if not _inside(folder, [*kept, *writable]):
            kept.append(folder)
            found.append(Bind(folder))
    for bind in found:
        if set(str(bind.folder)) & set(":,"):
            raise AppError(
                f"{bind.folder}: a path with ':' or ',' cannot be bound into a container. Rename the folder, "
                "or give a link to it.",
                exit_code=ExitCode.USAGE,
            )
    return sorted(found, key=lambda b: (len(b.folder.parts), str(b.folder)))


def _inside(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def linked_to(root: Path) -> list[Path]:
    """List folders outside a dataset that its symbolic links lead to, sorted.

    For a link to a file, this is the file's folder. Dangling links and ``.git`` are left out.
    """
    real = Path(os.path.realpath(root))
    found = {real} if real != root else set()
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name != ".git"]
        for name in (*folders, *files):
            path = Path(place, name)
            if not path.is_symlink():
                continue
            # Every step of a chain of links has to be visible.
            for target in _steps(path):
                folder = target if target.is_dir() else target.parent
                if not _inside(folder, (root, real)) and target.exists():
                    found.add(folder)
    return sorted(found)


def _steps(link: Path) -> list[Path]:
    """Give a link's direct target, and the end of the chain."""
    direct = Path(os.path.normpath(link.parent / link.readlink()))
    return [direct, Path(os.path.realpath(link))]
