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
from bidsapp.io import clear_partials, locked, write_text

LOG = logging.getLogger("bidsapp")


class Busy(AppError):
    """Another job is at this subject; exit code 75."""

    exit_code = ExitCode.TRY_AGAIN


@contextmanager
def subject_lock(label: str, output_dir: Path, work_dir: Path) -> Iterator[None]:
    """Hold a subject's output and its part of the work folder while the body runs.

    The locks are the kernel's (:func:`bidsapp.io.locked`): the system gives them up when the job ends,
    however it ends, also on another machine of the same NFS. Beside each lies who holds it.

    Raises
    ------
    Busy
        Where another job holds one of them; nothing is waited for.
    """
    with ExitStack() as stack:
        for folder, kind in ((output_dir / "logs", "output"), (work_dir, "work")):
            stack.enter_context(_hold(folder, kind, label))
        yield


@contextmanager
def _hold(folder: Path, kind: str, label: str) -> Iterator[None]:
    owner = folder / f".sub-{label}.owner"
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / f".sub-{label}.lock", timeout=0))
        except AppError as error:
            if error.exit_code != ExitCode.TRY_AGAIN:
                raise
            raise Busy(
                f"sub-{label}: another job is at it, with the same {kind} folder{_who(owner)}. Wait for it "
                "to end and run the same command again, or choose other folders."
            ) from error
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        who = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
        write_text(owner, json.dumps(who) + "\n")
        try:
            yield
        finally:
            owner.unlink(missing_ok=True)


def _who(owner: Path) -> str:
    try:
        who = json.loads(owner.read_text(encoding="utf-8"))
        return f" (host {who['host']}, process {who['pid']}, since {who['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # it has just begun, or is just ending
        return ""


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
