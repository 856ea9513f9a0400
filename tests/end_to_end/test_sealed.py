"""Both levels without a network, writing nowhere but into their own folders, on words that are scripts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.damage import snapshot
from helpers.output_tree import Page

from bidsapp.config import RECIPES
from bidsapp.models.suite import EMBEDDED
from bidsapp.outputs.provenance import write_settings
from bidsapp.storage.text import read_tsv

pytestmark = pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded weights are not there")

SCRIPT = "<script>alert(1)</script>\"'><img src=http://evil.example/x.png onerror=alert(2)>"
PROGRAM = Path(__file__).parents[1] / "helpers" / "sealed_run.py"


class Run(NamedTuple):
    root: Path
    done: subprocess.CompletedProcess[str]
    report: dict[str, list[str]]
    before: dict[str, tuple[object, ...]]
    namespace: bool


def spoil(bids: Path) -> None:
    """Captions, an id and the dataset's name become scripts; the data stay as they are."""
    captions = bids / "stimuli" / "captions.tsv"
    captions.write_text(captions.read_text().replace("wave", f"=HYPERLINK('x') {SCRIPT} \x1b[2J wave"))
    for path in (captions, bids / "stimuli" / "stimuli.tsv", *bids.rglob("*_trials.tsv")):
        path.write_text(re.sub(r"stim-pic000(?=[\t\n])", "stim-<b>0", path.read_text()))
    description = bids / "dataset_description.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | {"Name": SCRIPT}))


def unshare() -> list[str]:
    """What begins a command in a network of its own that has no way out; nothing where that is forbidden."""
    command = ["unshare", "--net", "--map-root-user"]
    if shutil.which("unshare") is None:
        return []
    return command if subprocess.run([*command, "true"], capture_output=True).returncode == 0 else []


@pytest.fixture(scope="module")
def ran(tiny_dataset, tmp_path_factory) -> Run:
    root = tmp_path_factory.mktemp("sealed")
    shutil.copytree(tiny_dataset(n_subjects=1, n_sessions=1, n_trials=6), root / "bids")
    spoil(root / "bids")
    recipe = tomllib.loads((RECIPES / "embedded.toml").read_text())
    recipe["diffusion"] |= {"steps": 2}
    recipe["metrics"] |= {"networks": ["small_clip"]}
    recipe["controls"] |= {"max_images": 2}
    write_settings(root / "quick.toml", recipe)
    for name in ("home", "tmp", "here"):
        (root / name).mkdir()
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "PYTHONPATH", "LANG")}
    own = {"HOME": str(root / "home"), "TMPDIR": str(root / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    words = [str(root / "bids"), str(root / "out"), "participant", "-w", str(root / "work")]
    words += [
        "--recipe",
        str(root / "quick.toml"),
        "--device",
        "cpu",
        "--n-cpus",
        "1",
        "--ladder-images",
        "0",
    ]
    levels = [*words, "--dry-run", "--then", *words, "--then", str(root / "bids"), str(root / "out"), "group"]
    before = snapshot(root)
    prefix = unshare()
    done = subprocess.run(
        [*prefix, sys.executable, str(PROGRAM), str(root / "report.json"), *levels],
        cwd=root / "here",
        env={"PYTHONPATH": str(Path(RECIPES).parents[1])} | kept | own,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((root / "report.json").read_text())
    return Run(root, done, report, before, bool(prefix))


def test_no_network_is_wished_for(ran):
    assert ran.report["wished"] == []


def test_nothing_is_written_elsewhere(ran):
    """What Python opened for writing, and what is there after the run, whoever wrote it."""
    own = tuple(str(ran.root / name) + os.sep for name in ("out", "work"))
    own += (str(ran.root / "out"), str(ran.root / "work"), str(ran.root / "tmp") + os.sep, os.devnull)
    own += (str(ran.root / ".bidsapp-recon-"),)  # folders made beside those that are to be made, and removed
    assert [path for path in ran.report["written"] if not path.startswith(own)] == []
    after = {
        name: entry
        for name, entry in snapshot(ran.root).items()
        if not name.startswith(("out", "work")) and name != "report.json"
    }
    assert after == ran.before  # home, temporary folder and the folder it was started in stay empty


def test_the_watch_sees_what_is_written(ran):
    """Guards the test above against a watch that sees nothing."""
    assert any(path.endswith("done.json") or ".partial-" in path for path in ran.report["written"])
    assert (ran.root / "work" / "cache" / "matplotlib").is_dir()


@pytest.mark.parametrize("name", ["sub-01.html", "group.html"])
def test_words_of_the_dataset_are_text_in_the_reports(ran, name):
    text = (ran.root / "out" / name).read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert not page.handlers
    assert not [address for address in page.addresses if "evil" in address]
    if name == "sub-01.html":
        assert "&lt;script&gt;alert(1)" in text


def test_words_of_the_dataset_name_no_file_and_are_no_formula(ran):
    out = ran.root / "out"
    assert all(re.fullmatch(r"[\w.+-]+", p.name) for p in out.rglob("*"))
    for path in out.rglob("sub-*.tsv"):
        cells = [c for column in read_tsv(path).values() for c in column]
        formulas = [c for c in cells if c[:1] in "=+@\t" and c[:1]]
        assert formulas == [], path
    assert "\x1b" not in ran.done.stderr


def test_a_network_of_its_own_was_to_be_had(ran):
    if not ran.namespace:
        pytest.skip("this system gives no process a network of its own; sockets were refused all the same")
    assert ran.done.returncode == 0
