"""Locks of a subject: one job at a time writes to its folders, and others learn which job that is."""

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
    """Another job is working on this subject; exit code 75."""

    exit_code = ExitCode.TRY_AGAIN


@contextmanager
def subject_lock(label: str, output_dir: Path, work_dir: Path, *, together: bool = False) -> Iterator[None]:
    """Lock a subject's output and its part of the work folder while the body runs.

    Shards of one subject hold the locks ``together``; other jobs hold them alone. The kernel releases a lock
    when its job ends, however it ends, also on another machine of the same NFS
    (:mod:`bidsapp.storage.locks`). A file next to each lock names the job that holds it.

    Raises
    ------
    Busy
        If another job holds one of the locks; there is no waiting.
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
                f"sub-{label}: another job works on this subject, with the same {kind} folder{_who(owner)}. "
                "Wait until it ends and run the same command again, or choose other folders."
            ) from error
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        who = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
        mine = json.dumps(who) + "\n"
        write_text(owner, mine)
        try:
            yield
        finally:
            if not together or _text(owner) == mine:  # of shards, the last one is named
                owner.unlink(missing_ok=True)


def _who(owner: Path) -> str:
    try:
        who = json.loads(owner.read_text(encoding="utf-8"))
        return f" (host {who['host']}, process {who['pid']}, since {who['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # the job has just begun or ended
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


@contextmanager
def turn(label: str, work_dir: Path, what: str, *, every_s: float = 2.0) -> Iterator[None]:
    """Run the body in one process at a time; a process that waits logs once ``what`` it waits for.

    Checked every ``every_s`` seconds; processes take turns in no order.
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
    """Lock a subject alone, once the shards that work on it have ended (Busy if another job holds it)."""
    with ExitStack() as stack:
        said = False
        while True:
            try:
                stack.enter_context(subject_lock(label, output_dir, work_dir))
                break
            except Busy:
                with subject_lock(label, output_dir, work_dir, together=True):
                    pass  # shards can lock it, so no job holds it alone
            if not said:
                LOG.info("sub-%s: waiting for the shards that are running", label)
                said = True
            time.sleep(every_s)
        yield


def clear_leftovers(label: str, output_dir: Path, work_dir: Path) -> list[Path]:
    """Remove, and return, the temporary files of killed jobs: of this subject, and those subjects share."""
    own = [output_dir / f"sub-{label}", output_dir / "logs" / f"sub-{label}", work_dir / f"sub-{label}"]
    folders = [Path(place) for root in own for place, _, _ in os.walk(root)]
    folders += [output_dir, output_dir / "logs", work_dir, work_dir / "canaries", *work_dir.glob("targets-*")]
    removed = [path for folder in dict.fromkeys(folders) for path in clear_partials(folder)]
    for path in removed:
        LOG.info("%s: removed; a killed run left it incomplete", path)
    return removed
