"""Facts about files: what a path is, where a dataset is, sizes, and hashes that identify contents."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def kind_of(path: str | os.PathLike[str]) -> str:
    """Describe what is at a path instead of a regular file; "" for a regular file (links are followed).

    Only regular files are read: a pipe could make a run wait forever, a device never ends.
    """
    try:
        mode = Path(path).stat().st_mode
    except ValueError:  # a NUL byte in the path
        return "cannot be the name of a file"
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "is a link to itself"
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            return f"cannot be read ({error.strerror})"
        link = " (a broken link: in a DataLad dataset, run `datalad get` on it)"
        return "there is no such file" + (link if Path(path).is_symlink() else "")
    if stat.S_ISREG(mode):
        return ""
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
    return f"is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file; save its content as a file"


def datasets_around(folder: Path) -> tuple[Path, ...]:
    """Give a dataset, and the one whose ``derivatives`` folder holds it, if any.

    ``folder`` is a dataset's root, or ``<root>/derivatives/<name>``; it need not exist.
    """
    # Not resolve(): a link belongs where its name is, not where it points to.
    whole = Path(os.path.abspath(folder))
    return (folder, whole.parent.parent) if whole.parent.name == "derivatives" else (folder,)


def bytes_there(folder: Path) -> int:
    """Count the bytes of the files in a folder and below; 0 if there are none.

    Files that another job removes meanwhile are not counted.
    """
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                total += Path(parent, name).stat().st_size
    return total


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_array(array: np.ndarray) -> str:
    """Hexadecimal SHA-256 of an array's values, in C order."""
    return hashlib.sha256(array.data if array.flags.c_contiguous else array.tobytes()).hexdigest()


def fingerprint(path: Path) -> list[Any]:
    """Identify a file's version without reading it: path, bytes, modification time in ns."""
    stat = path.stat()
    return [str(path), stat.st_size, stat.st_mtime_ns]
