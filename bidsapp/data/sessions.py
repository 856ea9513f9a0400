"""Several sessions of betas masked at once, by threads.

Inflating and taking voxels both run outside of Python's lock, so threads are as fast as processes here
and start at once. A session's values do not depend on its neighbours, and each has a file of its own, so
the result is the same for any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path

from bidsapp.data.betas import mask_session
from bidsapp.records import Mask, Session
from bidsapp.storage.npy import Rows

Show = Callable[[Sequence["Future[Rows]"]], Iterator["Future[Rows]"]]


def mask_sessions(
    sessions: Sequence[Session], mask: Mask, outs: Sequence[Path], n_jobs: int = 1, show: Show = iter
) -> list[Rows]:
    """Mask sessions, ``n_jobs`` at a time; see :func:`bidsapp.data.betas.mask_session`.

    Memory is that of one session (a volume and a row; of HDF5 files a block of trials) times ``n_jobs``.

    Parameters
    ----------
    sessions : sequence of Session
    mask : Mask
    outs : sequence of Path
        The file to write for each session.
    n_jobs : int
        Sessions at once.
    show : callable, optional
        Gets the sessions' futures and gives them back one by one, in order; may draw a progress bar.

    Returns
    -------
    list of memmap of float32, (trials, voxels)
        In the order of the sessions.

    Raises
    ------
    AppError
        That of the first session, in their order, that cannot be masked, whichever fails first. Those
        after it are stopped, and leave no file unless they were done.
    """
    first_bad = _First()

    def work(index: int) -> Rows:
        first_bad.check(index)
        try:
            return mask_session(sessions[index], mask, outs[index], lambda: first_bad.check(index))
        except CancelledError:
            raise
        except BaseException:
            first_bad.note(index)
            raise

    with ThreadPoolExecutor(max(1, min(n_jobs, len(sessions))), thread_name_prefix="masking") as pool:
        jobs = [pool.submit(work, index) for index in range(len(sessions))]
        try:
            # Waiting in order makes the error that is raised that of the first bad session.
            return [job.result() for job in show(jobs)]
        except BaseException:  # the user's Ctrl-C too
            first_bad.note(-1)
            raise


class _First:
    """The first session that went wrong; those after it need not go on."""

    def __init__(self) -> None:
        self._noted: set[int] = set()

    def note(self, index: int) -> None:
        self._noted.add(index)

    def check(self, index: int) -> None:
        """Raise CancelledError where an earlier session went wrong."""
        if any(noted < index for noted in tuple(self._noted)):
            raise CancelledError
