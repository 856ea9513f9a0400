"""SIGTERM, SIGINT and SIGHUP end a run within seconds: by an exception while Python runs, else by force."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from bidsapp.system.processes import remove_temporaries

AGAIN = "Run the same command again to resume."
#: Schedulers kill 30 s after SIGTERM, some after 10.
GRACE_S = 7.0
#: SIGHUP is sent when a terminal or connection closes; `nohup` makes a run ignore it.
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(SystemExit):
    """A signal asked the run to end; not an ``Exception``, so no code mistakes it for a failure.

    ``code`` is the exit code: 128 and the signal's number (143 for SIGTERM, 130 for SIGINT, 129 for SIGHUP).
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        return f"Stopped by {signal.Signals(self.number).name}. {AGAIN}"


_received: list[int] = []


def received() -> Stopped | None:
    """Give the exception of the signal received, if there was one."""
    return Stopped(_received[0]) if _received else None


@contextmanager
def ending_cleanly(grace_s: float = GRACE_S) -> Iterator[None]:
    """Turn SIGTERM, SIGINT and SIGHUP into :class:`Stopped`, raised in the main thread, while the body runs.

    Python runs its handlers between two instructions, and a long library call (one factorisation, one pass
    of a network) is a single one. A thread that the system wakes therefore measures time: if the run has not
    ended ``grace_s`` seconds after the signal, temporary files are removed and the process ends with the same
    exit code. That is safe at any moment, since results are renamed when complete.

    Has no effect outside the main thread. A signal that was ignored stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _received.clear()
    before = {number: signal.getsignal(number) for number in _HANDLED}
    ours = [number for number in _HANDLED if before[number] is not signal.SIG_IGN]
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    ended = threading.Event()

    def stop(number: int, _: FrameType | None) -> None:
        if not _received:  # a second signal must not interrupt the cleanup
            _received.append(number)
            raise Stopped(number)

    def watch() -> None:
        while number := woken.recv(1):
            if number[0] in ours:
                if not ended.wait(grace_s):
                    _end_now(number[0])
                return

    old_waker = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    for number in ours:
        signal.signal(number, stop)
    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    try:
        yield
    except Stopped as asked:
        remove_temporaries()  # of threads too
        with contextlib.suppress(OSError):  # its reader may be gone
            print(f"\n{asked}", file=sys.stderr, flush=True)  # still within the grace period
        raise
    finally:
        ended.set()
        signal.set_wakeup_fd(old_waker)
        for number in ours:
            signal.signal(number, before[number])
        waker.close()
        watcher.join()
        woken.close()


def leave(code: int) -> NoReturn:
    """End the process; at once if a signal asked for it.

    The interpreter's own shutdown waits for threads and frees memory piece by piece, which nothing of the run
    depends on. A signal that arrives while a finished run ends this way does not change its exit code.
    """
    if not _received:
        for number in _HANDLED:
            signal.signal(number, signal.SIG_IGN)
        sys.exit(code)
    _for_a_second(_flush)
    os._exit(code)


def _flush() -> None:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _for_a_second(do: Callable[[], object]) -> None:
    """Write a last message for at most a second: a full pipe that no process reads would block forever."""
    worker = threading.Thread(target=do, daemon=True)
    worker.start()
    worker.join(1.0)


def _end_now(number: int) -> None:
    with contextlib.suppress(Exception):
        remove_temporaries()
    with contextlib.suppress(Exception):
        _for_a_second(lambda: print(Stopped(number), file=sys.stderr, flush=True))
    os._exit(128 + number)
