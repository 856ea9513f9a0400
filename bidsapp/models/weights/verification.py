"""Whether weights are still the same: hashed, compared with the record, and recorded once they have worked.

Hashing gigabytes takes a while, so a file whose size, times and inode are those of the last hashing counts
as unchanged. Its hash and these marks are kept next to the lock.
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
#: Marks of files when they were hashed.
SEEN = "weights.seen.json"
#: A file as young as this when it is hashed may change again under the same time stamp.
_SETTLED_S = 2.0
#: State of a file without a record and without a published hash.
NOT_RECORDED = "not recorded yet: the first run does that, once its models work"
_HASH = re.compile("[0-9a-f]{64}")
_MARKS = ("size", "mtime_ns", "ctime_ns", "inode")
#: Beginnings of files that stand for weights, what they are, and how to get the weights.
_STAND_INS = {
    rb"version https://git-lfs\.": ("a Git LFS pointer", "run `git lfs pull` in that folder"),
    rb"(?:\.\./|\.git)*/annex/objects/": (
        "a git-annex pointer",
        "run `datalad get` (or `git annex get`) on it",
    ),
    rb"(?i)<!doctype html|<html|<\?xml": ("a web page", "delete it and fetch the weights again"),
}


def verify(required: Sequence[RequiredFile], root: Path, *, full: bool = False) -> dict[str, str]:
    """Compare the files that exist with what is recorded.

    Returns the SHA-256 by path in the folder.

    Parameters
    ----------
    required : sequence of RequiredFile
        Missing files are skipped.
    root : Path
        The models folder.
    full : bool
        Hash every file, even if it looks unchanged, and refuse files that are not the published ones.

    Raises
    ------
    AppError
        Exit code 65, naming every file that is not the recorded one, or only a pointer or a web page.
    """
    found = {path: item for item in required if (path := item.found(root)) is not None}
    if not found:
        return {}
    if stand_ins := [message for path in found if (message := stand_in(path))]:
        raise AppError("\n".join(stand_ins), exit_code=ExitCode.BAD_DATA)
    lock = Lock.read(root)
    hashes = _hash(list(found), root, full)
    faults = [f for path, item in found.items() if (f := _fault(path, item, hashes[path], lock, full))]
    if faults:
        raise AppError("\n".join(map(str, faults)), exit_code=ExitCode.BAD_DATA)
    return {_name(path, root): hashes[path] for path in found}


def stand_in(path: Path) -> str:
    """Explain that a file is a pointer or a web page in place of weights; "" if it is neither."""
    with path.open("rb") as stream:
        start = stream.read(200).lstrip()
    for pattern, (what, fix) in _STAND_INS.items():
        if re.match(pattern, start):
            return f"{path}: this is {what}, not the file itself: {fix}."
    return ""


def hash_files(required: Sequence[RequiredFile], root: Path) -> dict[str, str]:
    """SHA-256 of the files that exist, by path in the folder, compared with nothing."""
    paths = [path for item in required if (path := item.found(root)) is not None]
    return {_name(path, root): sha256_file(path) for path in paths}


def not_the_published(what: object, sha256: str, expected: str) -> AppError:
    """Give the error of a file that is not the published one."""
    return AppError(
        f"{what}: its SHA-256 is {sha256[:12]}..., not {expected[:12]}... as published or recorded before. "
        "It was damaged on the way, or is another file: delete it if it still exists, and fetch it again.",
        exit_code=ExitCode.BAD_DATA,
    )


def unpublished(required: Sequence[RequiredFile], hashes: Mapping[str, str]) -> list[str]:
    """Name files that differ from the published ones, if known; ``hashes`` as :func:`verify` gives them."""
    paths = {f"{item.folder}/{item.file.names[-1]}": item for item in required}
    return [p for p, item in paths.items() if p in hashes and not hashes[p].startswith(_published(item))]


def is_published(item: RequiredFile, hashes: Mapping[str, str]) -> bool:
    """Whether a file is the published one, as far as its hash is known; ``hashes`` as of :func:`verify`."""
    name = f"{item.folder}/{item.file.names[-1]}"
    return bool(_published(item)) and hashes.get(name, "").startswith(_published(item))


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


def record(required: Sequence[RequiredFile], root: Path, hashes: Mapping[str, str]) -> None:
    """Record files that have no record: put there by hand, or fetched by another program.

    Only files that were loaded and passed their self-test should be recorded: a record refuses all others.

    Raises
    ------
    AppError
        Exit code 65 if another process has recorded another hash in the meantime.
    """
    lock = Lock.read(root)
    found = {_name(path, root): item for item in required if (path := item.found(root)) is not None}
    new = {name: item for name, item in found.items() if name in hashes and name not in lock.files}
    if not new:
        return
    place = lock.record_files(
        {
            name: {
                "sha256": hashes[name],
                "size": (root / name).stat().st_size,
                "source": "put there by hand",
                "licence": item.part.licence,
            }
            for name, item in new.items()
        }
    )
    if place is None:
        LOG.warning(
            "%s: the hashes of %d files of weights are recorded nowhere, because neither this folder nor %s "
            "is writable. A later run will not notice if they change.",
            *(root, len(new), own_folder(root)),
        )
    else:
        LOG.info("%d files of weights were used for the first time: their hashes are in %s", len(new), place)


def _hash(paths: Sequence[Path], root: Path, full: bool) -> dict[Path, str]:
    """SHA-256 of files: read, or remembered if the file looks as it did when it was read."""
    seen = {} if full else _seen(root)
    hashes = {p: seen[key] for p in paths if (key := (_name(p, root), *_marks(p).values())) in seen}
    unread = [path for path in paths if path not in hashes]
    new = {}
    for path in track(unread, "hashing weights (files)") if unread else ():
        marks, started = _marks(path), time.time()
        hashes[path] = sha256_file(path)
        if started - marks["mtime_ns"] / 1e9 > _SETTLED_S:
            new[_name(path, root)] = {"sha256": hashes[path], **marks}
    _remember(new, root)
    return hashes


def _remember(new: dict[str, dict[str, Any]], root: Path) -> None:
    """Keep the marks of hashed files, in the first place that is writable."""
    for folder in (root, own_folder(root)) if new else ():
        try:
            with locked(folder / f".{LOCK}.held"):
                write_json(folder / SEEN, {"version": 1, "files": _read_one(folder / SEEN) | new})
            return
        except AppError as error:
            if error.exit_code != ExitCode.CANNOT_CREATE:
                raise


def _seen(root: Path) -> dict[tuple[Any, ...], str]:
    """SHA-256 by a file's name and marks, from both places."""
    rows = [row for folder in (root, own_folder(root)) for row in _read_one(folder / SEEN).items()]
    return {(name, *map(entry.get, _MARKS)): entry["sha256"] for name, entry in rows}


def _read_one(path: Path) -> dict[str, dict[str, Any]]:
    """Read marks; a damaged file only costs time."""
    try:
        files = read_json(path)["files"].items()
        whole = {name: {key: int(entry[key]) for key in _MARKS} for name, entry in files}
        return {n: {"sha256": e["sha256"], **whole[n]} for n, e in files if _HASH.fullmatch(e["sha256"])}
    except (AppError, LookupError, TypeError, ValueError, AttributeError):
        return {}


def _marks(path: Path) -> dict[str, int]:
    """Size, times and inode: what changes when a file is written to or replaced."""
    stat = path.stat()
    return dict(zip(_MARKS, (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino), strict=True))


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
