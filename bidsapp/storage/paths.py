"""Where things lie around a dataset that may be another's derivative."""

from __future__ import annotations

import os
from pathlib import Path


def datasets_around(folder: Path) -> tuple[Path, ...]:
    """Give a dataset, and the one whose ``derivatives`` folder it lies in, if it does.

    Parameters
    ----------
    folder : Path
        A dataset's root, or ``<root>/derivatives/<name>``; need not exist.
    """
    # Not resolve(): what a link is called here says where it belongs, not what it points to.
    whole = Path(os.path.abspath(folder))
    return (folder, whole.parent.parent) if whole.parent.name == "derivatives" else (folder,)
