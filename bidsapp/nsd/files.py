"""Files of the converted dataset: links to NSD's own, and small files written only if they changed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bidsapp.errors import AppError, ExitCode
from bidsapp.nsd.layout import LINKS
from bidsapp.storage.atomic import atomic_path
from bidsapp.storage.nifti import volume_bytes
from bidsapp.storage.text import json_text, tsv_text

#: Another disk, a file system without hard links, too many of them, or a file of another user.
_NO_HARD_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP}


class Writer:
    """Writes files into one dataset, never outside of it.

    Attributes
    ----------
    written, kept : int
        Number of files created or replaced, and of those that were up to date.
    notes : list of str
        What the user should know about how the files were created.
    """

    def __init__(self, root: Path, link: str) -> None:
        if link not in LINKS:
            raise ValueError(f"link is {link!r}, not one of {', '.join(LINKS)}")
        self.root, self._link = root, link
        self.written = self.kept = 0
        self.notes: list[str] = []

    def link_or_copy(self, source: Path, target: Path) -> None:
        """Link a large file to its name in the dataset, or copy it.

        A target that is the source already, or a copy with the same size and time, is kept; a symbolic link
        is replaced if a hard link or a copy was requested. If a hard link is impossible, a symbolic one is
        made and noted.

        Raises
        ------
        AppError
            Exit code 73 if it cannot be created, 74 if the disk is full.
        """
        self._stay_inside(target)
        if _is_same(source, target) and not self._replaces_link(source, target):
            self.kept += 1
            return
        with atomic_path(target) as temporary:
            if self._link == "copy":
                shutil.copyfile(source, temporary)
                status = source.stat()
                os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
            elif self._link == "symbolic" or not self._hard_link(source, temporary):
                temporary.symlink_to(os.path.abspath(source))
        self.written += 1

    def _hard_link(self, source: Path, target: Path) -> bool:
        try:
            # Resolved: on Linux, a hard link to a symbolic link would be a second symbolic link.
            os.link(os.path.realpath(source), target)
        except OSError as error:
            if error.errno not in _NO_HARD_LINK:
                raise
            self._note(
                f"Hard links are not possible ({error.strerror}), so symbolic links were made. NSD's folder "
                "must then have the same path wherever the dataset is read, in containers too. To avoid "
                "this, copy the files (--link copy)."
            )
            return False
        return True

    def _replaces_link(self, source: Path, target: Path) -> bool:
        """Whether a copy, or a hard link on the same disk, replaces a symbolic link of an earlier run."""
        if self._link == "symbolic" or not target.is_symlink():
            return False
        same_disk = source.stat().st_dev == target.lstat().st_dev
        return self._link == "copy" or (same_disk and not self.notes)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def remove(self, target: Path) -> None:
        """Remove a file that another one replaces."""
        self._stay_inside(target)
        target.unlink(missing_ok=True)

    def text(self, target: Path, text: str) -> None:
        """Write a text."""
        self._bytes(target, text.encode())

    def json(self, target: Path, content: Mapping[str, Any]) -> None:
        """Write a JSON object, as :func:`bidsapp.storage.text.write_json` does."""
        self.text(target, json_text(content))

    def tsv(self, target: Path, columns: Mapping[str, Sequence[Any]]) -> None:
        """Write a table, as :func:`bidsapp.storage.text.write_tsv` does."""
        self.text(target, tsv_text(columns))

    def volume(self, target: Path, data: NDArray[Any], affine: NDArray[np.float64]) -> None:
        """Write a gzipped 3-D image."""
        self._bytes(target, volume_bytes(data, affine, compressed=True))

    def _bytes(self, target: Path, content: bytes) -> None:
        self._stay_inside(target)
        if target.is_file() and target.read_bytes() == content:
            self.kept += 1
            return
        with atomic_path(target) as temporary:
            temporary.write_bytes(content)
        self.written += 1

    def _stay_inside(self, target: Path) -> None:
        """Refuse to follow a link out of the dataset."""
        root = os.path.realpath(self.root)
        folder = os.path.realpath(target.parent)
        if folder != root and not folder.startswith(root + os.sep):
            raise AppError(
                f"{target.parent} is a link to a folder outside {self.root}. Nothing is written there; "
                "remove the link.",
                exit_code=ExitCode.CANNOT_CREATE,
            )


def _is_same(source: Path, target: Path) -> bool:
    """Whether the target is the source itself, or a copy of it."""
    try:
        if source.samefile(target):
            return True
        ours, theirs = target.stat(), source.stat()
    except OSError:
        return False  # missing, or a broken link
    return (ours.st_size, ours.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns)
