"""A process that has read the libraries once and forks a run of the command whenever it is asked to.

A run is then a process of its own, with its own exit code and signals, but without the seconds that imports
take. Asked on standard input, a JSON object a line; answers on standard output (see ``fault_runs.Runs``).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from bidsapp import cli
from bidsapp.system.signals import leave


def read_libraries() -> None:
    """Import what a run imports."""
    import bids  # noqa: F401
    import h5py  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import nibabel  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch  # noqa: F401

    from bidsapp.group import level as group  # noqa: F401
    from bidsapp.models import startup, suite  # noqa: F401
    from bidsapp.outputs import subject as derivatives  # noqa: F401
    from bidsapp.participant import level as levels  # noqa: F401


def fill(disk: str, left: int) -> None:
    """Fill a file system so that ``left`` bytes are free, or a page more; no further file if negative."""
    folder = Path(disk, "filler")
    folder.mkdir()
    free = os.statvfs(disk)
    if left < 0:
        for number in range(free.f_ffree - 1):
            (folder / str(number)).touch()
        return
    with (folder / "bytes").open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(1, free.f_bavail * free.f_frsize - left))


def damage(pattern: str, do: str, out: str) -> None:
    """Remove or empty the first output whose path matches."""
    path = sorted(Path(out).glob(pattern))[0]
    path.unlink() if do == "remove" else path.write_bytes(b"")


class AtLine(logging.Handler):
    """Does something at the first line of the log that begins with a text."""

    def __init__(self, text: str, **what: Any) -> None:
        super().__init__()
        self.text, self.what, self.done = text, what, False

    def emit(self, record: logging.LogRecord) -> None:
        if not self.done and record.getMessage().startswith(self.text):
            self.done = True
            (fill if "disk" in self.what else damage)(**self.what)


def run(asked: dict[str, Any]) -> None:
    """Be the command, from here to the end of this process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if asked.get("at_line"):
        logging.getLogger("bidsapp").addHandler(AtLine(**asked["at_line"]))
    while not Path(asked["gate"]).exists() if asked.get("gate") else False:
        time.sleep(0.001)
    sys.argv = ["bidsapp-recon", *asked["words"]]
    leave(cli.main(asked["words"]))


def main() -> None:
    read_libraries()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        asked = json.loads(line)
        if "words" in asked:
            pid = os.fork()
            if not pid:
                answers.close()
                run(asked)
            answer: Any = pid
        else:
            _, status, used = os.wait4(asked["wait"], 0)
            answer = [os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime]
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
