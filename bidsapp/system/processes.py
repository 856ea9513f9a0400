"""Name of this process, its temporary files, and where its libraries keep caches."""

from __future__ import annotations

import functools
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar


def here() -> str:
    """Name this machine, and this container if process ids are its own.

    Letters and digits only, to be part of a file's name. Two containers of one machine may both have a
    process 7; the number of the process namespace distinguishes them.
    """
    host = "".join(c for c in socket.gethostname() if c.isalnum())[:16] or "host"
    try:
        space = "".join(c for c in str(Path("/proc/self/ns/pid").readlink()) if c.isdecimal())
    except OSError:  # not on Linux, or /proc is not mounted
        space = ""
    return f"{host}n{space}" if space else host


def is_gone(where: str, pid: int) -> bool:
    """Whether a process has certainly ended: it ran here (:func:`here`), and the system has no such id."""
    if where != here():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


_temporaries: set[Path] = set()


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Register a temporary file or folder while the body runs, and remove what is left of it."""
    _temporaries.add(path)
    try:
        yield path
    finally:
        _remove(path)
        _temporaries.discard(path)


def remove_temporaries() -> None:
    """Remove all temporary files and folders of this process, which is about to end by force."""
    for path in tuple(_temporaries):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


#: Variables that name folders: Matplotlib's list of fonts, and compiled code of torch.
_CACHES = {
    "MPLCONFIGDIR": "matplotlib",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TRITON_CACHE_DIR": "triton",
}


class HasWorkDir(Protocol):
    """Settings of a run."""

    @property
    def work_dir(self) -> Path:
        """The work folder."""


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables while the body runs."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def caches_in(folder: Path) -> Iterator[None]:
    """Make libraries keep their caches in a folder while the body runs, unless the user has set another."""
    own = {name: str(folder.absolute() / part) for name, part in _CACHES.items() if name not in os.environ}
    with environment(own):
        yield


C = TypeVar("C", bound=HasWorkDir)
P = ParamSpec("P")
R = TypeVar("R")


def caches_in_work(run: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], R]:
    """Decorate a function of settings: libraries keep their caches in ``WORK/cache``, not in the home."""

    @functools.wraps(run)
    def confined(config: C, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with caches_in(config.work_dir / "cache"):
            return run(config, *args, **kwargs)

    return confined
