"""Closed or broken standard streams change no exit code."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys

import pytest

from bidsapp.errors import ExitCode

pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")


@pytest.mark.parametrize(
    ("words", "code", "where"),
    [
        ("--help", ExitCode.OK, ">&-"),
        ("--help", ExitCode.OK, "| true"),
        ("a b no-level", ExitCode.UNKNOWN_LEVEL, ">&- 2>&- <&-"),
        ("/no-such-folder out participant", ExitCode.NO_INPUT, "2>&-"),
        ("/no-such-folder out participant", ExitCode.NO_INPUT, "2>&1 | true"),
        ("/no-such-folder out participant", ExitCode.NO_INPUT, "2>/dev/full"),
    ],
)
def test_closed_streams_change_no_exit_code(words, code, where, tmp_path):
    command = f"set -o pipefail; {shlex.quote(sys.executable)} -m bidsapp {words} {where}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_output_that_cannot_be_written_is_an_error(tmp_path):
    done = subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} -m bidsapp --help > /dev/full"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.IO_ERROR
    assert "No space left" in done.stderr


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_terminal_that_was_closed_changes_no_exit_code(stream, tmp_path):
    ours, theirs = os.openpty()
    code = (
        "import os, sys\nos.read(0, 1)\nsys.argv[1:] = ['--help']\nfrom bidsapp.cli import entry\nentry()\n"
    )
    other = {"stdout": "stderr", "stderr": "stdout"}[stream]
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        **{stream: theirs, other: subprocess.PIPE},
    )
    os.close(theirs)
    os.close(ours)
    _, said = process.communicate(b"x")
    assert process.returncode == ExitCode.OK, said
