"""Locks on file systems without them, and lock files of other users."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.locks import locked, locked_together


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """NFS without lockd gives ENOLCK, some FUSE and Lustre mounts ENOTSUP or ENOSYS."""

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / "x.lock", timeout=0):
        refused = pytest.raises(AppError, match=r"x\.lock.*another process holds this lock")
        with refused as caught, locked(tmp_path / "x.lock", timeout=0):
            pass
        assert caught.value.exit_code == ExitCode.TRY_AGAIN
        left = [path for path in tmp_path.iterdir() if f"delete {path} and" in str(caught.value)]
        assert len(left) == 1
    with locked(tmp_path / "x.lock", timeout=0):
        pass  # given up by the one before
    with pytest.raises(AppError, match="no locks that processes can share"), locked_together(tmp_path / "y"):
        pass


@pytest.mark.parametrize("hold", [locked, locked_together])
def test_the_umask_decides_who_else_may_lock(tmp_path: Path, hold) -> None:
    before = os.umask(0o002)
    try:
        with hold(tmp_path / "x.lock"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.lock").stat().st_mode) == 0o664


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write files of other users")
@pytest.mark.parametrize("hold", ["locked", "locked_together"])
def test_a_lock_file_of_another_user(tmp_path: Path, hold: str) -> None:
    lock = tmp_path / "x.lock"
    lock.touch(0o644)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    tmp_path.chmod(0o777)
    code = (
        f"import os, sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); import filelock\n"
        f"from pathlib import Path; from bidsapp.storage.locks import {hold} as hold\n"
        f"with hold(Path({str(tmp_path)!r}) / 'first'): pass\n"  # imports all that is needed
        f"os.setgid(65534); os.setuid(65534)\nwith hold(Path({str(lock)!r})): pass"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "belongs to root" in done.stderr, done.stderr
    assert "umask 002" in done.stderr
