"""One job at a time for a subject: another one that writes to the same place is told who is at it."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.atomic import clear_partials
from bidsapp.storage.locks import locked, locked_together
from bidsapp.storage.text import write_text

LOG = logging.getLogger("bidsapp")


class Busy(AppError):
    """Another job is at this subject; exit code 75."""

    exit_code = ExitCode.TRY_AGAIN


@contextmanager
def subject_lock(label: str, output_dir: Path, work_dir: Path, *, together: bool = False) -> Iterator[None]:
    """Hold a subject's output and its part of the work folder while the body runs.

    Jobs that make parts of one subject hold them ``together``; all others hold them alone.

    The locks are the kernel's (:mod:`bidsapp.storage.locks`): the system gives them up when the job ends,
    however it ends, also on another machine of the same NFS. Beside each lies who holds it.

    Raises
    ------
    Busy
        Where another job holds one of them; nothing is waited for.
    """
    with ExitStack() as stack:
        for folder, kind in ((output_dir / "logs", "output"), (work_dir, "work")):
            stack.enter_context(_hold(folder, kind, label, together))
        yield


@contextmanager
def _hold(folder: Path, kind: str, label: str, together: bool) -> Iterator[None]:
    owner, lock = folder / f".sub-{label}.owner", folder / f".sub-{label}.lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(locked_together(lock) if together else locked(lock, timeout=0))
        except AppError as error:
            if error.exit_code != ExitCode.TRY_AGAIN:
                raise
            raise Busy(
                f"sub-{label}: another job is at it, with the same {kind} folder{_who(owner)}. Wait for it "
                "to end and run the same command again, or choose other folders."
            ) from error
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        who = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
        mine = json.dumps(who) + "\n"
        write_text(owner, mine)
        try:
            yield
        finally:
            if not together or _text(owner) == mine:  # of those that hold it together, the last is named
                owner.unlink(missing_ok=True)


def _who(owner: Path) -> str:
    try:
        who = json.loads(owner.read_text(encoding="utf-8"))
        return f" (host {who['host']}, process {who['pid']}, since {who['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # it has just begun, or is just ending
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


@contextmanager
def turn(label: str, work_dir: Path, what: str, *, every_s: float = 2.0) -> Iterator[None]:
    """Let one process at a time through, in no order; those that wait say so once.

    Parameters
    ----------
    label : str
        Of the subject.
    work_dir : Path
    what : str
        What the others are waited for, for the log.
    every_s : float
        Seconds between two looks.
    """
    lock = work_dir / f".sub-{label}.prepare.lock"
    with ExitStack() as stack:
        said = False
        while True:
            try:
                stack.enter_context(locked(lock, timeout=0))
                break
            except AppError as error:
                if error.exit_code != ExitCode.TRY_AGAIN:
                    raise
            if not said:
                LOG.info("sub-%s: waiting: %s", label, what)
                said = True
            time.sleep(every_s)
        yield


@contextmanager
def alone_after_shards(
    label: str, output_dir: Path, work_dir: Path, *, every_s: float = 2.0
) -> Iterator[None]:
    """Hold a subject alone, when those that hold it together have ended.

    Raises
    ------
    Busy
        Where a job holds it alone.
    """
    with ExitStack() as stack:
        said = False
        while True:
            try:
                stack.enter_context(subject_lock(label, output_dir, work_dir))
                break
            except Busy:
                with subject_lock(label, output_dir, work_dir, together=True):
                    pass  # it can be held together, so no job holds it alone
            if not said:
                LOG.info("sub-%s: waiting for the shards that are at work", label)
                said = True
            time.sleep(every_s)
        yield


def clear_leftovers(label: str, output_dir: Path, work_dir: Path) -> list[Path]:
    """Remove temporary files that killed jobs left: of this subject, and of what subjects share.

    Returns
    -------
    list of Path
        What was removed.
    """
    own = [output_dir / f"sub-{label}", output_dir / "logs" / f"sub-{label}", work_dir / f"sub-{label}"]
    folders = [Path(place) for root in own for place, _, _ in os.walk(root)]
    folders += [output_dir, output_dir / "logs", work_dir, work_dir / "canaries", *work_dir.glob("targets-*")]
    removed = [path for folder in dict.fromkeys(folders) for path in clear_partials(folder)]
    for path in removed:
        LOG.info("%s: removed, a killed run left it half written", path)
    return removed
