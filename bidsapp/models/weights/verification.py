"""Whether weights are still the same: hashed, compared with what is recorded, recorded when first met.

A hash of gigabytes takes a while, so a file that was hashed before and whose size, times and inode are the
same is taken for unchanged. What was hashed, and how the file looked then, is kept beside the lock.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bidsapp.errors import AppError, ExitCode
from bidsapp.models.weights.lock import LOCK, Lock, changed, own_folder
from bidsapp.models.weights.registry import RequiredFile
from bidsapp.storage.files import sha256_file
from bidsapp.storage.locks import locked
from bidsapp.storage.text import read_json, write_json
from bidsapp.system.logging import track

LOG = logging.getLogger("bidsapp")
#: How files looked when they were hashed.
SEEN = "weights.seen.json"
#: A file as young as this when it is hashed may change again under the same time stamp.
_SETTLED_S = 2.0
_HASH = re.compile("[0-9a-f]{64}")
_LOOK = ("size", "mtime_ns", "ctime_ns", "inode")


def verify(required: Sequence[RequiredFile], root: Path, *, full: bool = False) -> dict[str, str]:
    """Compare the files that are there with what is recorded, and record those that were not met before.

    Parameters
    ----------
    required : sequence of RequiredFile
        Those that are not there are passed over.
    root : Path
        The models folder.
    full : bool
        Hash every file, also those that look as they did when they were hashed last, and refuse files
        that are not the published ones; otherwise they are recorded as they are (:func:`unpublished`).

    Returns
    -------
    dict of str to str
        SHA-256 by path in the folder.

    Raises
    ------
    AppError
        Exit code 65, naming every file that is not the recorded one.
    """
    there = {path: item for item in required if (path := item.found(root)) is not None}
    if not there:
        return {}
    lock = Lock.read(root)
    hashes = _hash(list(there), root, full)
    faults = [f for path, item in there.items() if (f := _fault(path, item, hashes[path], lock, full))]
    if faults:
        raise AppError("\n".join(map(str, faults)), exit_code=ExitCode.BAD_DATA)
    _record({p: i for p, i in there.items() if _name(p, root) not in lock.files}, hashes, lock)
    return {_name(path, root): hashes[path] for path in there}


def hash_files(required: Sequence[RequiredFile], root: Path) -> dict[str, str]:
    """SHA-256 of the files that are there, by path in the folder, compared with nothing."""
    paths = [path for item in required if (path := item.found(root)) is not None]
    return {_name(path, root): sha256_file(path) for path in paths}


def not_the_published(what: object, sha256: str, expected: str) -> AppError:
    """Word the error of a file that is not the published one."""
    return AppError(
        f"{what}: its SHA-256 is {sha256[:12]}..., not {expected[:12]}... as published or recorded before. "
        "It was damaged on the way, or is another file: delete it if it is still there, and fetch again.",
        exit_code=ExitCode.BAD_DATA,
    )


def unpublished(required: Sequence[RequiredFile], hashes: Mapping[str, str]) -> list[str]:
    """Name files whose published hash is known and not theirs; ``hashes`` are those of :func:`verify`."""
    paths = {f"{item.folder}/{item.file.names[-1]}": item for item in required}
    return [p for p, item in paths.items() if p in hashes and not hashes[p].startswith(_published(item))]


def _published(item: RequiredFile) -> str:
    """SHA-256 of the published file, or the first digits that are known."""
    return item.file.sha256 or item.file.sha256_start


def _fault(path: Path, item: RequiredFile, sha256: str, lock: Lock, strict: bool) -> AppError | None:
    name = _name(path, lock.root)
    recorded = lock.files.get(name, {}).get("sha256", sha256)
    if recorded != sha256:
        return changed(path, sha256, recorded, lock.place(name))
    if strict and unpublished([item], {name: sha256}):
        return not_the_published(path, sha256, _published(item))
    return None


def _record(new: dict[Path, RequiredFile], known: dict[Path, str], lock: Lock) -> None:
    """Record files that were put there by hand, or fetched by something else."""
    if not new:
        return
    place = lock.record_files(
        {
            _name(path, lock.root): {
                "sha256": known[path],
                "size": path.stat().st_size,
                "source": "put there by hand",
                "licence": item.part.licence,
            }
            for path, item in new.items()
        }
    )
    if place is None:
        LOG.warning(
            "%s: the hashes of %d files of weights are recorded nowhere, because neither this folder nor %s "
            "can be written to: a later run will not notice if they change.",
            *(lock.root, len(new), own_folder(lock.root)),
        )
    else:
        LOG.info("%d files of weights met for the first time: their hashes are in %s", len(new), place)


def _hash(paths: Sequence[Path], root: Path, full: bool) -> dict[Path, str]:
    """SHA-256 of files: read, or remembered of files that look as they did when they were read."""
    seen = {} if full else _seen(root)
    hashes = {p: seen[key] for p in paths if (key := (_name(p, root), *_look(p).values())) in seen}
    unread = [path for path in paths if path not in hashes]
    new = {}
    for path in track(unread, "hashing weights (files)") if unread else ():
        look, started = _look(path), time.time()
        hashes[path] = sha256_file(path)
        if started - look["mtime_ns"] / 1e9 > _SETTLED_S:
            new[_name(path, root)] = {"sha256": hashes[path], **look}
    _remember(new, root)
    return hashes


def _remember(new: dict[str, dict[str, Any]], root: Path) -> None:
    """Keep how files looked when they were hashed, where any place can be written to."""
    for folder in (root, own_folder(root)) if new else ():
        try:
            with locked(folder / f".{LOCK}.held"):
                write_json(folder / SEEN, {"version": 1, "files": _read_one(folder / SEEN) | new})
            return
        except AppError as error:
            if error.exit_code != ExitCode.CANNOT_CREATE:
                raise


def _seen(root: Path) -> dict[tuple[Any, ...], str]:
    """SHA-256 by a file's name and look, from both places."""
    rows = [row for folder in (root, own_folder(root)) for row in _read_one(folder / SEEN).items()]
    return {(name, *map(entry.get, _LOOK)): entry["sha256"] for name, entry in rows}


def _read_one(path: Path) -> dict[str, dict[str, Any]]:
    """Read what was seen; a file that is damaged only costs time."""
    try:
        files = read_json(path)["files"].items()
        whole = {name: {key: int(entry[key]) for key in _LOOK} for name, entry in files}
        return {n: {"sha256": e["sha256"], **whole[n]} for n, e in files if _HASH.fullmatch(e["sha256"])}
    except (AppError, LookupError, TypeError, ValueError, AttributeError):
        return {}


def _look(path: Path) -> dict[str, int]:
    """Size, times and inode: what changes when a file is written to or replaced."""
    stat = path.stat()
    return dict(zip(_LOOK, (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino), strict=True))


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
