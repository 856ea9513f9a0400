"""Run the command's words with no network, and say which paths the process wrote to or wanted to reach.

As a program: ``python sealed_run.py REPORT WORDS... [--then WORDS...]``; the report is JSON. Python's audit
events tell of every socket and of every file that Python opens, whoever calls; a wish to reach the network
is refused as well as written down.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
#: Events whose arguments from the first or second on are paths that change.
_CHANGES = {"os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1}
_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostby", "socket.send", "urllib.Request")


def watch(written: set[str], wished: list[str]) -> None:
    """Begin to watch this process; it can't be stopped."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(_NETWORK):
            wished.append(f"{event} {args[1:]!r}")
            raise ConnectionRefusedError(f"no network here: {event}")
        path: Any = None
        if event == "open" and isinstance(args[2], int) and args[2] & _WRITES:
            path = args[0]
        elif event in _CHANGES and not any(isinstance(a, int) and 0 < a < 1000 for a in args[1:]):
            path = args[_CHANGES[event]]  # not one that is relative to an open folder, or a mode
        if isinstance(path, (str, bytes, os.PathLike)):
            written.add(os.path.abspath(os.fsdecode(path)))

    sys.addaudithook(hook)


def main(report: str, words: list[str]) -> int:
    written: set[str] = set()
    wished: list[str] = []
    watch(written, wished)
    from bidsapp import cli

    code = 0
    while words and not code:
        end = words.index("--then") if "--then" in words else len(words)
        code, words = cli.main(words[:end]), words[end + 1 :]
    found = {"written": sorted(written), "wished": wished}
    Path(report).write_text(json.dumps(found), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
