"""A run that is killed, stopped or started twice goes on with the same command, to the same outputs."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.output_tree import outputs

from bidsapp.config import RECIPES
from bidsapp.models.suite import EMBEDDED
from bidsapp.outputs.provenance import write_settings

pytestmark = pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded weights are not there")


@pytest.fixture(scope="module")
def command(tiny_dataset, tmp_path_factory) -> list[str]:
    """A quick run of one tiny subject, without its output folder."""
    folder = tmp_path_factory.mktemp("killed")
    content = tomllib.loads((RECIPES / "embedded.toml").read_text())
    content["diffusion"] |= {"steps": 2}
    content["metrics"] |= {"networks": ["small_clip"]}
    content["controls"] |= {"max_images": 2}
    write_settings(folder / "quick.toml", content)
    bids = tiny_dataset(n_subjects=1, n_trials=12)
    options = ["participant", "--recipe", folder / "quick.toml", "--device", "cpu", "--n-cpus", "1"]
    return [sys.executable, "-m", "bidsapp", *map(str, (bids, *options)), "--skip-bids-validation"]


def with_output(command: list[str], out: Path) -> list[str]:
    place = command.index("participant")
    return [*command[:place], str(out), *command[place:]]


def run(command: list[str], out: Path, *words: str) -> str:
    done = subprocess.run([*with_output(command, out), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@contextmanager
def started(command: list[str], out: Path, until: str) -> Iterator[subprocess.Popen[str]]:
    """A run that has come as far as a line of its log."""
    with subprocess.Popen(with_output(command, out), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if until in line:
                break
        else:
            pytest.fail(f"the run never said {until!r}")
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run(command, out)
    return out


def leftovers(out: Path) -> list[Path]:
    return [p for p in out.rglob("*") if "partial" in p.name or p.suffix == ".owner"]


def test_killed_stopped_and_started_twice(command, undisturbed, tmp_path):
    out = tmp_path / "out"
    with started(command, out, "ridge: computing") as process:
        process.kill()
    with started(command, out, "stage1_brain: computing") as process:
        process.send_signal(signal.SIGSTOP)  # it must not be done before the second has come
        second = subprocess.run(with_output(command, out), capture_output=True, text=True, check=False)
        assert second.returncode == 75
        assert f"process {process.pid}, since" in second.stderr
        process.terminate()
        process.send_signal(signal.SIGCONT)
        assert process.wait() == 143
    assert leftovers(out) == []
    assert not (out / "sub-01.html").exists()  # nothing failed
    damaged = next((out / ".work" / "sub-01" / "zscore").glob("mean.npy"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    said = run(command, out)
    for line in ("betas: found from", "zscore: the result of an earlier run is damaged", "ridge: found from"):
        assert line in said
    assert outputs(out) == outputs(undisturbed)
    assert not (out / ".work" / "sub-01").exists()


def test_what_is_done_is_not_done_again_unless_something_changed(command, undisturbed, tmp_path):
    before = outputs(undisturbed)
    said = run(command, undisturbed)
    assert "sub-01: already done by run" in said
    assert "computing" not in said
    image = next((undisturbed / "sub-01" / "func").glob("*_image.png"))
    image.write_bytes(b"")
    assert "ridge: computing" in run(command, undisturbed, "--keep-work")
    assert outputs(undisturbed) == before
    said = run(command, undisturbed, "--force", "stage1")
    assert "ridge: found from an earlier run" in said
    assert "stage1_brain: computing, because of --force" in said
    assert "stage2_brain: found from an earlier run" in said
    assert outputs(undisturbed) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "SIGTERM"])
def test_at_many_random_moments(command, undisturbed, tmp_path, number):
    """25 times: interrupted at any time of its run, then run to the end."""
    begin = time.monotonic()
    run(command, tmp_path / "timed")
    whole, rng = time.monotonic() - begin, random.Random(0)
    for moment in range(25):
        out = tmp_path / f"{moment}"
        with subprocess.Popen(with_output(command, out), stderr=subprocess.DEVNULL) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=rng.random() * whole)
            process.send_signal(number)
            code = process.wait()
        assert code in (0, -number, 143)  # before the handlers are there, SIGTERM ends it as well
        assert code != 143 or leftovers(out) == []
        run(command, out)
        assert outputs(out) == outputs(undisturbed), moment
        assert leftovers(out) == []
