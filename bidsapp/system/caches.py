"""Where libraries keep what they make for themselves: in the work folder, not in the user's home."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

#: Variables that name a folder of Matplotlib's (fonts found), and of torch's (compiled code).
_FOLDERS = {
    "MPLCONFIGDIR": "matplotlib",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TRITON_CACHE_DIR": "triton",
}


class HasWorkDir(Protocol):
    """What of a run's settings is asked."""

    @property
    def work_dir(self) -> Path:
        """The work folder."""


@contextmanager
def caches_in(folder: Path) -> Iterator[None]:
    """Have libraries keep their caches in a folder while the body runs; what the user has set stays."""
    own = {name: str(folder.absolute() / part) for name, part in _FOLDERS.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            os.environ.pop(name, None)


C = TypeVar("C", bound=HasWorkDir)
P = ParamSpec("P")
R = TypeVar("R")


def caches_in_work(run: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], R]:
    """Run a function whose first argument has a work folder with libraries' caches in ``WORK/cache``."""

    @functools.wraps(run)
    def confined(config: C, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with caches_in(config.work_dir / "cache"):
            return run(config, *args, **kwargs)

    return confined
