"""Several sessions of betas masked in parallel, by threads.

Decompression and indexing both release Python's lock, so threads are as fast as processes here and start
at once. Sessions are independent and have separate files, so the result does not depend on the number of
threads.
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

    Memory is that of one session (a volume and a row; for HDF5, a block of trials) times ``n_jobs``.

    Parameters
    ----------
    sessions, outs
        The sessions, and the file to write for each.
    n_jobs : int
        Sessions masked at the same time.
    show : callable, optional
        Takes the sessions' futures and yields them in order; may draw a progress bar.

    Returns
    -------
    list of memmap of float32, (trials, voxels)
        In the order of the sessions.

    Raises
    ------
    AppError
        That of the first session, in their order, that cannot be masked, whichever fails first. Later
        sessions are stopped, and leave no file unless they were complete.
    """
    failed = _EarliestFailure()

    def work(index: int) -> Rows:
        failed.stop_after(index)
        try:
            return mask_session(sessions[index], mask, outs[index], lambda: failed.stop_after(index))
        except CancelledError:
            raise
        except BaseException:
            failed.note(index)
            raise

    with ThreadPoolExecutor(max(1, min(n_jobs, len(sessions))), thread_name_prefix="masking") as pool:
        jobs = [pool.submit(work, index) for index in range(len(sessions))]
        try:
            # Waiting in order raises the error of the first session that failed.
            return [job.result() for job in show(jobs)]
        except BaseException:  # Ctrl-C too
            failed.note(-1)
            raise


class _EarliestFailure:
    """The sessions that failed; those after the first of them can stop."""

    def __init__(self) -> None:
        self._noted: set[int] = set()

    def note(self, index: int) -> None:
        self._noted.add(index)

    def stop_after(self, index: int) -> None:
        """Raise CancelledError if a session before ``index`` failed."""
        if any(noted < index for noted in tuple(self._noted)):
            raise CancelledError
