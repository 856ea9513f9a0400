"""A headless Chromium driven through the DevTools protocol's pipe (JSON texts that end with a zero byte)."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
    "--proxy-server=127.0.0.1:9",  # nobody listens there: what is asked of the network fails
)
_SECONDS = 120.0
#: Becomes the browser, whose pipes are the descriptors 3 (to it) and 4 (from it).
_START = """
import fcntl, os, sys
theirs = [fcntl.fcntl(int(n), fcntl.F_DUPFD, 10) for n in sys.argv[1:3]]
for number, mine in zip(theirs, (3, 4)):
    os.dup2(number, mine)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find() -> str | None:
    """Path of an installed Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Visit:
    """What happened while a page was shown.

    Attributes
    ----------
    complaints : list of str
        Errors and warnings of the console, exceptions, and what the page's policy refused.
    requests : list of str
        Addresses that were asked for, the page's own first.
    facts : dict
        What the probe returned.
    """

    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class Browser:
    """One running Chromium; see :func:`launched`."""

    def __init__(self, process: subprocess.Popen[bytes], write: int, read: int) -> None:
        self._process, self._write, self._read = process, write, read
        self._buffer, self._number = b"", 0
        self._events: list[dict[str, Any]] = []

    def visit(self, page: Path, width: int, probe: str, dark: bool = False) -> Visit:
        """Show a page in a window of some width, with all its pictures, and evaluate a script in it.

        Parameters
        ----------
        page : Path
        width : int
            CSS pixels.
        probe : str
            A JavaScript expression whose value can be JSON.
        dark : bool
            Ask for the dark scheme.
        """
        target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable", {}, session)
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", size, session)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", {"features": scheme}, session)
        self._events.clear()
        self._call("Page.navigate", {"url": page.resolve().as_uri()}, session)
        self._wait_for("Page.loadEventFired")
        self._evaluate(
            "Promise.all([...document.images].map(i => { i.loading = 'eager'; "
            "return i.complete ? 0 : new Promise(r => { i.onload = i.onerror = r }) })).then(() => 0)",
            session,
        )
        facts = self._evaluate(probe, session)
        seen = Visit(facts=facts)
        for event in self._events:
            self._sort(event["method"], event["params"], seen)
        self._call("Target.closeTarget", {"targetId": target})
        return seen

    @staticmethod
    def _sort(method: str, params: dict[str, Any], seen: Visit) -> None:
        if method == "Network.requestWillBeSent":
            seen.requests.append(params["request"]["url"])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            seen.complaints.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            seen.complaints.append(str(params["args"]))
        elif method == "Runtime.exceptionThrown":
            seen.complaints.append(str(params["exceptionDetails"]))

    def _evaluate(self, script: str, session: str) -> Any:
        wanted = {"expression": script, "awaitPromise": True, "returnByValue": True}
        found = self._call("Runtime.evaluate", wanted, session)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def _call(self, method: str, params: dict[str, Any], session: str = "") -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        deadline = time.monotonic() + _SECONDS
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _wait_for(self, method: str) -> None:
        deadline = time.monotonic() + _SECONDS
        while all(event["method"] != method for event in self._events):
            self._next(deadline)

    def _next(self, deadline: float) -> dict[str, Any]:
        """Read one message; events are kept."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(self._read, 1 << 16) if ready else b""
            if not part:
                raise TimeoutError(f"Chromium does not answer (exit status {self._process.poll()})")
            self._buffer += part
        text, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self._events.append(message)
        return message


@contextmanager
def launched(command: str, profile: Path) -> Iterator[Browser]:
    """Start a Chromium with a profile folder of its own; it ends with the block."""
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", _START, str(theirs_in), str(theirs_out)),
            *(command, *_FLAGS, f"--user-data-dir={profile}"),
        ],
        pass_fds=(theirs_in, theirs_out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(process, ours_out, ours_in)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(ours_out)
        os.close(ours_in)
