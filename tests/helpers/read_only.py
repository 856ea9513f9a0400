"""A folder that cannot be written to, for the time of a test, whoever runs it."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

#: linux/capability.h: version 3, and the two capabilities that let root write and read anything.
_VERSION, _DAC_OVERRIDE, _DAC_READ_SEARCH = 0x20080522, 1, 2


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Take the right to write from a folder and all below it, and from root the right to write anyway."""
    paths = [folder, *folder.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(modes[path] & ~0o222)
    try:
        with _no_root_rights():
            if os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
                pytest.skip("this user may write everywhere")
            yield
    finally:
        for path, mode in modes.items():
            if path.exists():
                path.chmod(mode)


@contextmanager
def _no_root_rights() -> Iterator[None]:
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the same for the upper half
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    before = sets[0]
    try:
        sets[0] = before & ~(1 << _DAC_OVERRIDE | 1 << _DAC_READ_SEARCH)
        if libc.capset(header, sets):
            raise OSError(ctypes.get_errno(), "capset")
        yield
    finally:
        sets[0] = before
        libc.capset(header, sets)
