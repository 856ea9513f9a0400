"""SIGTERM, SIGINT and SIGHUP end a process with their codes and no temporary file, also in a long call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bidsapp import cli
from bidsapp.cli import bids_app
from bidsapp.system import signals
from bidsapp.system.signals import Stopped, ending_cleanly

BEGIN = (
    "import hashlib, pathlib, signal, sys, time\n"
    "from bidsapp.system import signals; from bidsapp.storage.atomic import atomic_path\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
    "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # nohup ignores it
)
PATIENT = BEGIN + (
    "with signals.ending_cleanly(), atomic_path(pathlib.Path(sys.argv[1]) / 'a.txt') as path:\n"
    "    path.write_text('half'); print('go', flush=True)\n"
    "    while True: time.sleep(0.05)\n"
)
# One call of a library that knows nothing of signals, for an hour.
DEAF = BEGIN + (
    "with signals.ending_cleanly(0.1), atomic_path(pathlib.Path(sys.argv[1]) / 'a.txt') as path:\n"
    "    path.write_text('half'); print('go', flush=True)\n"
    "    hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2_000_000_000)\n"
)


@pytest.mark.parametrize("code", [PATIENT, DEAF], ids=["between instructions", "within a long call"])
@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_the_process_without_leftovers(tmp_path: Path, code: str, number: int, expected: int):
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == expected
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in said


def test_the_command_reports_how_to_resume(monkeypatch, capsys):
    monkeypatch.setattr(bids_app, "make_config", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert cli.main(["bids", "out", "participant"]) == 143
    assert "Stopped by SIGTERM. Run the same command again to resume." in capsys.readouterr().err


def test_a_second_signal_does_not_interrupt_the_cleanup():
    cleaned = []

    def run() -> None:
        with ending_cleanly():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                cleaned.append(True)

    with pytest.raises(Stopped) as caught:
        run()
    assert cleaned
    assert caught.value.code == 143


def test_handlers_are_restored_and_a_signal_is_not_a_failure():
    before = signal.getsignal(signal.SIGTERM)
    assert not issubclass(Stopped, Exception)
    with pytest.raises(Stopped), ending_cleanly():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signals.received() is not None
    assert signal.getsignal(signal.SIGTERM) is before
    with ending_cleanly():
        assert signals.received() is None


# A thread that never ends, which the interpreter's own end waits for; and an error output that nobody reads.
THREAD = BEGIN + (
    "import threading; from bidsapp.cli import bids_app, command\n"
    "threading.Thread(target=threading.Event().wait).start()\n"
    "bids_app.make_config = lambda _: (print('go', flush=True), time.sleep(3600))\n"
    "sys.argv[1:] = ['bids', 'out', 'participant']; command.entry()\n"
)
PIPE = BEGIN + (
    "import os\n"
    "os.set_blocking(2, False)\n"
    "try:\n    while True: os.write(2, b'x' * 4096)\n"
    "except BlockingIOError: os.set_blocking(2, True)\n"
    "with signals.ending_cleanly(0.1):\n"
    "    print('go', flush=True)\n"
    "    time.sleep(3600)\n"
)


@pytest.mark.parametrize("code", [THREAD, PIPE], ids=["a thread", "a full pipe"])
def test_the_end_does_not_wait_for_threads(code: str):
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    limit = threading.Timer(300, process.kill)  # a command that fails before "go" waits for its thread
    limit.start()
    try:
        assert process.stdout.readline() == "go\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        limit.cancel()
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_after_the_run_does_not_change_the_exit_code(name: str):
    late = f"import atexit; atexit.register(signal.raise_signal, signal.{name}); signals.leave(0)"
    done = subprocess.run([sys.executable, "-c", BEGIN + late], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_lost_connection_does_not_end_a_job_started_by_nohup(tmp_path: Path):
    code = "import os; from bidsapp.system.signals import ending_cleanly\nwith ending_cleanly():\n"
    code += "    os.kill(os.getpid(), 1)\nprint('finished')\n"
    command = ["nohup", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout == "finished\n"
