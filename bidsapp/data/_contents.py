"""What makes the betas of a whole session useless, told from its trials as they go by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

#: Trials that a message names.
_NAMED = 5
MEND_SESSION = (
    "Make the session's betas again, leave it out (--session-label), or give such trials the stimulus n/a."
)


class Contents:
    """Looks at the trials of a session one by one.

    Parameters
    ----------
    stimulus_ids : sequence of str
        The stimulus of every trial, "" where it has none; such a trial is used for nothing, and so is
        not looked at.
    """

    def __init__(self, stimulus_ids: Sequence[str]) -> None:
        self._ids = stimulus_ids
        self._index = 0
        self._seen = 0
        self._dead: list[int] = []
        self._first: npt.NDArray[np.float32] | None = None
        self._varies = False

    def see(self, row: npt.NDArray[np.float32]) -> None:
        """Look at the next trial, (voxels,)."""
        index, self._index = self._index, self._index + 1
        if not self._ids[index]:
            return
        self._seen += 1
        if not np.isfinite(row).any():
            self._dead.append(index)
        elif self._first is None:
            self._first = row.copy()
        elif not self._varies:
            # NaN differs from everything, which is no variation.
            self._varies = bool((np.isfinite(row) & np.isfinite(self._first) & (row != self._first)).any())

    def fault(self) -> str:
        """Say in a sentence what is wrong, "" where nothing is."""
        if self._dead and len(self._dead) == self._seen:
            return f"All {self._seen} trials are NaN or infinite in every voxel of the region of interest."
        if self._dead:
            named = ", ".join(map(str, self._dead[:_NAMED])) + (" ..." if len(self._dead) > _NAMED else "")
            what = f"trials (counted from 0: {named}) are" if len(self._dead) > 1 else f"trial ({named}) is"
            return f"{len(self._dead)} {what} NaN or infinite in every voxel of the region of interest."
        if self._seen > 1 and not self._varies:
            return f"Every voxel of the region of interest has one value in all {self._seen} trials."
        return ""
