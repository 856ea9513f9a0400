"""Runs of the command that faults are brought to, and what they leave."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bidsapp.config import RECIPES
from bidsapp.runlog import write_settings

SERVER = Path(__file__).with_name("fault_server.py")
#: What two undisturbed runs differ in, within reports: the run's id and how long things took.
_TIMES = re.compile(r"\d{8}T\d{6}-[0-9a-f]{6}|\d+(\.\d+)? (s|min|h)\b")


class Runs:
    """Starts runs of the command, each a process of its own, forked from one that holds the libraries."""

    def __init__(self) -> None:
        environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        words = [sys.executable, str(SERVER)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._server = subprocess.Popen(words, env=environment, text=True, **pipes)

    def close(self) -> None:
        self._server.communicate(timeout=60)

    def start(self, words: list[object], log: Path, **how: Any) -> Run:
        """Start a run; ``how`` is given to the server (``full``, ``gate``)."""
        pid = self.ask({"words": [str(w) for w in words], "log": str(log), **how})
        return Run(self, pid, log)

    def ask(self, asked: dict[str, Any]) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(asked), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())


@dataclass(frozen=True)
class Run:
    """A run that was started; it must be waited for once."""

    runs: Runs
    pid: int
    log: Path

    def wait(self) -> int:
        """Exit code; a signal's number, negative, where that ended it."""
        return self.runs.ask({"wait": self.pid})

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def until(self, text: str, number: int = 1) -> bool:
        """Wait for the nth line with a text; False where the run ended without it."""
        state = Path(f"/proc/{self.pid}/stat")
        while True:
            ended = state.read_text().rpartition(")")[2].split()[0] == "Z"
            if self.said().count(text) >= number:
                return True
            if ended:
                return False
            time.sleep(0.002)

    def kill(self, number: int) -> None:
        """Send a signal; nothing happens where the run has ended, since it was not waited for yet."""
        os.kill(self.pid, number)


def quick_recipe(folder: Path, **changes: dict[str, Any]) -> Path:
    """The embedded recipe with few steps of diffusion and one judging network."""
    content = tomllib.loads((RECIPES / "embedded.toml").read_text())
    quick = {"diffusion": {"steps": 2}, "metrics": {"networks": ["small_clip"]}}
    quick["controls"] = {"max_images": 2}
    for section, values in (*quick.items(), *changes.items()):
        content[section] |= values
    write_settings(folder / "quick.toml", content)
    return folder / "quick.toml"


def tree(out: Path) -> dict[str, str]:
    """Content of every output by its path, hashed; of reports without the run's id and times.

    The command that reports name is left out by replacing the folder that ``out`` lies in. Not compared:
    the logs but ``CITATION.md``, since their names and contents are of one run; locks; the work folder.
    """
    found = {}
    for path in out.rglob("*"):
        name = path.relative_to(out).as_posix()
        own = name.startswith(("logs/", ".work/")) and name != "logs/CITATION.md"
        if own or not path.is_file() or path.suffix == ".lock":
            continue
        content = path.read_bytes()
        if path.suffix == ".html":
            content = _TIMES.sub("TIME", content.decode().replace(str(out.parent), "FOLDER")).encode()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def leftovers(*folders: Path) -> list[Path]:
    """Temporary names, and marks of a running job."""
    found = (p for folder in folders for p in folder.rglob("*"))
    return [p for p in found if "partial" in p.name or p.suffix == ".owner" or "claim-" in p.name]


@contextmanager
def small_disk(place: Path, options: str = "size=64m") -> Iterator[Path]:
    """Mount a small file system in memory; the test is skipped where that is not allowed."""
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"FULL DISKS ARE NOT TESTED: mounting is not allowed here ({done.stderr.strip()})")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
