"""Why a stage is computed again: what the log says, --force, and what killed runs left."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bidsapp.storage import stages as module
from bidsapp.storage.stages import Stages, changes, flat_inputs
from bidsapp.system.processes import here, is_gone

FOUR = ", ".join(f"{c} (0, now 1)" for c in "abcd")
NO_PROCESS = 4194999  # above the largest Linux pid


class Drawn:
    """A stage that comes out differently each time, as on a device whose sums have no fixed order."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, _: Path) -> dict[str, np.ndarray]:
        self.runs += 1
        return {"a": np.array([self.runs])}


def ones(_: Path) -> dict[str, np.ndarray]:
    return {"a": np.ones(3)}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ({"seed": 0}, {"seed": 1}, "seed (0, now 1)"),
        ({"of": {"steps": 50, "eta": 0}}, {"of": {"steps": 20, "eta": 0}}, "of.steps (50, now 20)"),
        ({"after": "x"}, {"after": "y"}, "an earlier stage"),
        ({"ids": ["a"] * 99}, {"ids": ["a"] * 98}, "ids"),
        ({}, {"rows": [1]}, "rows (new)"),
        ({"rows": [1]}, {}, "rows (no longer given)"),
        (dict.fromkeys("abcde", 0), dict.fromkeys("abcde", 1), FOUR + " and 1 more"),
        ({"t": (1, 2)}, {"t": [1, 2]}, ""),
    ],
)
def test_what_changed_is_named(old, new, says):
    assert changes(flat_inputs(old), flat_inputs(new)) == says


def test_long_inputs_are_kept_as_hashes():
    kept = flat_inputs({"ids": [f"pic{i}" for i in range(9000)]})
    assert len(str(kept)) < 60


def test_the_log_says_found_changed_or_another_version(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "bidsapp")

    def said(**inputs: object) -> str:
        caplog.clear()
        Stages(tmp_path).run("mean", inputs, ones)
        return caplog.messages[0]

    assert said(seed=0) == "mean: computing"
    assert said(seed=0) == "mean: found from an earlier run"
    assert said(seed=1) == "mean: recomputing, changed since an earlier run: seed (0, now 1)"
    monkeypatch.setattr(module, "__version__", "999")
    assert "version of this app (" in said(seed=1)


@pytest.mark.parametrize("force", [{"stage1"}, {"stage1_brain"}, {"all"}, {"stage1", "ridge"}])
def test_force_computes_once_more_though_it_is_there(tmp_path, force, caplog):
    drawn = Drawn()
    Stages(tmp_path).run("stage1_brain", {}, drawn)
    with caplog.at_level(logging.INFO, "bidsapp"):
        got = Stages(tmp_path, force).run("stage1_brain", {}, drawn)
    assert got["a"] == drawn.runs == 2
    assert "stage1_brain: computing, because of --force" in caplog.messages


def test_force_of_another_stage_leaves_it(tmp_path):
    drawn = Drawn()
    for force in ((), {"stage2"}, {"stage1_null"}):
        Stages(tmp_path, force).run("stage1_brain", {}, drawn)
    assert drawn.runs == 1


def test_stages_after_one_that_came_out_differently_are_computed_again(tmp_path):
    first, same, after = Drawn(), ones, Drawn()

    def chain(*force: str) -> None:
        stages = Stages(tmp_path, force)
        before = stages.run("ridge", {}, first)
        fixed = stages.run("alphas", {}, same)
        stages.run("latents_brain", {"after": before.key}, after)
        stages.run("stage1_brain", {"after": fixed.key}, ones)

    chain()
    chain("alphas")
    assert (first.runs, after.runs) == (1, 1)
    chain("ridge")
    assert (first.runs, after.runs) == (2, 2)
    # A damaged stage that can't be made the same again is as good as another one.
    (tmp_path / "ridge" / "a.npy").write_bytes(b"")
    chain()
    assert (first.runs, after.runs) == (3, 3)
    assert not list(tmp_path.glob("*partial*"))


def test_half_made_stages_of_killed_runs_are_removed(tmp_path):
    made = {
        "dead": tmp_path / f"ridge.partial-{here()}-{NO_PROCESS}",
        "living": tmp_path / f"betas.partial-{here()}-{os.getpid()}",
        "elsewhere": tmp_path / f"ridge.partial-{here()}x-{NO_PROCESS}",
        "long ago": tmp_path / "ridge.partial-123",
        "complete": tmp_path / "zscore",
    }
    for path in made.values():
        path.mkdir()
        (path / "a.npy").write_bytes(b"half")
    os.utime(made["long ago"], (0, 0))
    Stages(tmp_path)
    assert {name for name, path in made.items() if path.exists()} == {"living", "elsewhere", "complete"}
    os.utime(made["elsewhere"], (0, 0))
    Stages(tmp_path)
    assert not made["elsewhere"].exists()


def test_a_run_killed_within_a_stage_leaves_what_the_next_one_removes(tmp_path):
    code = (
        "import os, signal, sys, pathlib, numpy as np; from bidsapp.storage.stages import Stages\n"
        "def half(folder):\n"
        "    np.save(folder / 'a.npy', np.ones(9)); os.kill(os.getpid(), signal.SIGKILL)\n"
        "Stages(pathlib.Path(sys.argv[1])).run('ridge', {}, half)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("ridge.partial-")
    drawn = Drawn()
    Stages(tmp_path).run("ridge", {}, drawn)
    assert drawn.runs == 1
    assert [p.name for p in tmp_path.iterdir()] == ["ridge"]


def test_processes_elsewhere_are_not_called_gone():
    assert is_gone(here(), NO_PROCESS)
    assert not is_gone(here(), os.getpid())
    assert not is_gone(here(), 1)  # another user's: the system refuses the question, or it is there
    assert not is_gone(here(), 2**70)
    assert not is_gone("elsewhere", NO_PROCESS)
    assert here().isalnum()
