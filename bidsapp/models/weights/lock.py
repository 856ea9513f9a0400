"""The lock of a models folder: each file's SHA-256 and each model's canary answer, once recorded.

It is in the folder (``weights.lock.json``). If the folder is not writable, what a run finds is kept in a
file in the user's cache, which adds to the folder's and never overrides it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.locks import locked
from bidsapp.storage.text import read_json, write_json

LOCK = "weights.lock.json"
Entries = dict[str, dict[str, Any]]


def user_cache() -> Path:
    """Give this app's folder in the user's cache; for a user without a home, one that can't be created."""
    from platformdirs import user_cache_path

    name = "bidsapp-recon"
    try:
        folder = user_cache_path(name, appauthor=False)
    except RuntimeError:  # as for unknown user numbers in containers
        folder = Path("~")
    return Path(os.devnull) / name if folder.parts[0].startswith("~") else folder  # "~" of older platformdirs


def own_folder(root: Path) -> Path:
    """Where the user's own records of a models folder are kept, by the folder's path."""
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return user_cache() / "locks" / name


@dataclass
class Lock:
    """What is recorded of the files and models of one models folder."""

    root: Path
    #: by path in the folder: ``sha256``, ``size``, ``source``, ``licence``
    files: Entries = field(default_factory=dict)
    #: what models answered, by folder, ``#`` and question; with the hash of the weights that did
    canaries: Entries = field(default_factory=dict)
    #: names in ``files`` that only the user's own record has
    own: frozenset[str] = frozenset()

    @classmethod
    def read(cls, root: Path) -> Lock:
        """Read what is recorded of a models folder; empty if nothing is.

        Raises
        ------
        AppError
            Exit code 65 for a file that is not a lock.
        """
        there, own = _read(root / LOCK), _read(own_folder(root) / LOCK)
        files = own["files"] | there["files"]
        return cls(root, files, own["canaries"] | there["canaries"], frozenset(files) - set(there["files"]))

    def place(self, name: str) -> Path:
        """Where the record of a file is, for messages."""
        return (own_folder(self.root) if name in self.own else self.root) / LOCK

    def record_files(self, entries: Mapping[str, Mapping[str, Any]]) -> Path | None:
        """Record files.

        Returns where they are recorded now; None if no place is writable.

        Raises
        ------
        AppError
            Exit code 65 if another process has recorded another hash in the meantime.
        """

        def change(files: Entries, _: Entries) -> None:
            for name, entry in entries.items():
                before = files.get(name, {}).get("sha256")
                if before not in (None, entry["sha256"]):
                    raise changed(self.root / name, entry["sha256"], before, self.place(name))
                files[name] = dict(entry)

        return self._change(change)

    def record_canary(self, name: str, answer: Mapping[str, Any]) -> Path | None:
        """Record what a model answered; ``name`` is its folder, ``#``, and the question."""
        return self._change(lambda _, canaries: canaries.update({name: dict(answer)}))

    def _change(self, change: Callable[[Entries, Entries], None]) -> Path | None:
        """Read again while other processes wait, change, and write: here or in the user's cache."""
        for folder in (self.root, own_folder(self.root)):
            try:
                with locked(folder / f".{LOCK}.held"):
                    content = _read(folder / LOCK)
                    change(content["files"], content["canaries"])
                    write_json(folder / LOCK, {"version": 1, **content})
            except AppError as error:
                if error.exit_code != ExitCode.CANNOT_CREATE:
                    raise
                continue
            fresh = Lock.read(self.root)
            self.files, self.canaries, self.own = fresh.files, fresh.canaries, fresh.own
            return folder / LOCK
        return None


def changed(path: Path, found: str, recorded: str, record: Path) -> AppError:
    """Give the error of a file that is not the recorded one."""
    return AppError(
        f"{path}: these are not the weights that were recorded (SHA-256 {found[:12]}..., recorded "
        f"{recorded[:12]}... in {record}). The file is damaged or was replaced: delete it and fetch it "
        "again. If the change was intended, delete its entry there.",
        exit_code=ExitCode.BAD_DATA,
    )


def _read(path: Path) -> dict[str, Entries]:
    content = read_json(path) if path.is_file() else {}
    parts = {name: content.get(name, {}) for name in ("files", "canaries")}
    for name, is_entry in (("files", _is_file), ("canaries", _is_answer)):
        entries = parts[name]
        wrong = [k for k, v in entries.items() if not is_entry(v)] if isinstance(entries, dict) else [name]
        if wrong:
            raise AppError(
                f"{path}: this is not what the app writes, at {', '.join(wrong[:3])}. Delete the file: the "
                "next run or fetch-models writes it again.",
                exit_code=ExitCode.BAD_DATA,
            )
    return parts


def _is_file(entry: object) -> bool:
    """Whether this is the record of a file."""
    return isinstance(entry, dict) and bool(re.fullmatch("[0-9a-f]{64}", str(entry.get("sha256"))))


def _is_answer(entry: object) -> bool:
    """Whether this is the record of a canary's answer."""
    if not isinstance(entry, dict) or not isinstance(entry.get("device"), str):
        return False
    lists = entry.get("shape"), entry.get("values")
    return all(isinstance(values, list) and all(map(_is_number, values)) for values in lists)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
