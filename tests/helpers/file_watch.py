"""Which files of a folder are opened, whoever opens them: Python, a library's C++ or its Rust."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_IN_OPEN, _IN_NONBLOCK, _IN_ISDIR = 0x20, 0o4000, 0x40000000
_EVENT = struct.Struct("iIII")


@contextmanager
def opened(root: Path) -> Iterator[set[str]]:
    """Fill a set with the paths of files that are opened while the body runs (Linux's inotify)."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        start = libc.inotify_init1
    except (OSError, AttributeError):
        pytest.skip("this system has no inotify")
    found: set[str] = set()
    handle = start(_IN_NONBLOCK)
    if handle < 0:
        pytest.skip("no inotify handle to be had")
    try:
        folders = {}
        for folder in [root, *(p for p in root.rglob("*") if p.is_dir())]:
            watch = libc.inotify_add_watch(handle, os.fsencode(folder), _IN_OPEN)
            if watch < 0:
                raise OSError(ctypes.get_errno(), "inotify_add_watch", str(folder))
            folders[watch] = folder
        yield found
        while content := _read(handle):
            place = 0
            while place < len(content):
                watch, mask, _, length = _EVENT.unpack_from(content, place)
                place += _EVENT.size + length
                name = os.fsdecode(content[place - length : place].rstrip(b"\0"))
                if not mask & _IN_ISDIR:
                    found.add((folders[watch] / name).relative_to(root).as_posix())
    finally:
        os.close(handle)


def _read(handle: int) -> bytes:
    try:
        return os.read(handle, 1 << 16)
    except BlockingIOError:
        return b""
