"""Runs of the command that faults are brought to, and what they leave."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
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
from bidsapp.outputs.provenance import write_settings

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
        """Start a run; ``how`` is given to the server (``at_line``, ``gate``)."""
        pid = int(self.ask({"words": [str(w) for w in words], "log": str(log), **how}))
        return Run(self, pid, log)

    def ask(self, asked: dict[str, Any]) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(asked), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())


@dataclass(frozen=True)
class Run:
    """A run that was started; it must be waited for once."""

    runs: Runs
    pid: int
    log: Path

    def wait(self) -> int:
        """Exit code; a signal's number, negative, where that ended it."""
        return int(self.end()[0])

    def end(self) -> tuple[int, float]:
        """Exit code as :meth:`wait` has it, and the processor time of the whole run in seconds."""
        code, seconds = self.runs.ask({"wait": self.pid})
        return code, seconds

    def used(self) -> float:
        """Processor time so far, in seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

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


class Case:
    """One dataset, what an undisturbed run makes of it, and further runs to compare with that.

    Every run's folder holds ``out`` and ``work``.

    Attributes
    ----------
    folder : Path
        Of the undisturbed run, its work folder kept.
    expected : dict of str to str
        Its outputs, see :func:`tree`; those of the group level too.
    """

    def __init__(self, runs: Runs, bids: Path, folder: Path, **changes: dict[str, Any]) -> None:
        self.runs, self.bids, self.folder = runs, bids, folder
        content = tomllib.loads((RECIPES / "embedded.toml").read_text())
        quick = {"diffusion": {"steps": 2}, "metrics": {"networks": ["small_clip"]}}
        quick["controls"] = {"max_images": 2}
        for section, values in (*quick.items(), *changes.items()):
            content[section] |= values
        folder.mkdir()
        self.recipe = folder.with_name("quick.toml")  # its path is the same for all runs
        write_settings(self.recipe, content)
        self.labels = sorted(path.name.removeprefix("sub-") for path in bids.glob("sub-*"))
        self.log = self.finish(folder, "--keep-work")
        self.expected = tree(folder / "out")

    def start(self, folder: Path, *words: object, **how: Any) -> Run:
        """Start a participant level, with the models' check of the undisturbed run where it is known."""
        options = ["--recipe", self.recipe, "--device", "cpu", "--n-cpus", 1, "--skip-bids-validation"]
        return self._start(folder, "participant", *options, "-w", folder / "work", *words, **how)

    def start_group(self, folder: Path, **how: Any) -> Run:
        return self._start(folder, "group", **how)

    def _start(self, folder: Path, *words: object, **how: Any) -> Run:
        log = folder / f"log-{secrets.token_hex(4)}"
        return self.runs.start([self.bids, folder / "out", *words], log, **how)

    def fresh(self, *, knowing_models: bool = True) -> Path:
        """Make a run's folder beside the undisturbed one, so that relative paths are the same.

        The models' check is known there or not.
        """
        folder = self.folder.with_name(f"run-{secrets.token_hex(4)}")
        folder.mkdir()
        if knowing_models:
            shutil.copytree(self.folder / "work" / "canaries", folder / "work" / "canaries")
        return folder

    def finish(self, folder: Path, *words: object) -> str:
        """Run both levels to the end; give the first one's log."""
        run = self.start(folder, *words)
        assert run.wait() == 0, run.said()
        group = self.start_group(folder)
        assert group.wait() == 0, group.said()
        return run.said()

    def stages(self) -> list[str]:
        """Stages in the order in which they come."""
        return list(dict.fromkeys(re.findall(r"(\w+): computing$", self.log, re.MULTILINE)))

    def pages(self, part: str) -> int:
        """Bytes that a part of the undisturbed run's folders takes on a file system of pages of 4 kB."""
        return sum(
            -(-p.stat().st_size // 4096) * 4096 for p in (self.folder / part).rglob("*") if p.is_file()
        )

    def check_what_is_there(self, folder: Path) -> None:
        """Nothing half written under a final name."""
        for name, content in tree(folder / "out").items():
            if name.startswith("participants.") or name.endswith(".html"):
                continue  # another subject's row may be there or not; a report may carry an error
            assert content == self.expected[name], name

    def check_resumes(self, folder: Path) -> None:
        """The same command goes on, finds nothing damaged and makes what an undisturbed run makes."""
        self.check_what_is_there(folder)
        log = self.finish(folder)
        assert "damaged" not in log
        made = tree(folder / "out")
        assert made.keys() == self.expected.keys(), made.keys() ^ self.expected.keys()
        different = [name for name in made if made[name] != self.expected[name]]
        assert different == [], different
        assert leftovers(folder) == []


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
            # The undisturbed run alone keeps its work folder.
            content = _TIMES.sub(
                "TIME", content.decode().replace(str(out.parent), "FOLDER").replace(" --keep-work", "")
            ).encode()
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
