"""Everything that can be wrong with a good input is found before anything is computed.

Each case changes one thing in a good dataset and runs the command: the problem is named with its path
and the documented exit code, nothing is computed, nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.damage import BETAS, IMAGE, MASK, copy_by_links, put, snapshot
from helpers.damaged_inputs import CASES

from bidsapp import cli
from bidsapp.bids import folders
from bidsapp.models.suite import EMBEDDED

pytestmark = pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded weights are not there")


@pytest.fixture(scope="module")
def good(tiny_dataset: Callable[..., Path]) -> dict[bool, Path]:
    """A dataset with images, and one with a brick of images."""
    return {brick: tiny_dataset(n_subjects=2, n_trials=12, brick=brick) for brick in (False, True)}


@pytest.fixture(scope="module", autouse=True)
def _good_ones_stay_good(good: dict[bool, Path]) -> object:
    before = {brick: snapshot(path) for brick, path in good.items()}
    yield
    assert {brick: snapshot(path) for brick, path in good.items()} == before


def run(tmp: Path, *options: object, out: object = "out") -> int:
    given = [str(o).format(tmp=tmp, bids=tmp / "bids") for o in options]
    words = [] if "-w" in given else ["-w", str(tmp / "work")]
    words += [] if "--recipe" in given else ["--recipe", "embedded"]
    words += ["--skip-bids-validation", "--device", "cpu", "--n-cpus", "1"]
    return cli.main([str(tmp / "bids"), str(tmp / out), "participant", *words, *given])  # type: ignore[operator]


def test_good_datasets_pass(good, tmp_path, capsys):
    for brick, source in good.items():
        (tmp_path / str(brick)).mkdir()
        copy_by_links(source, tmp_path / str(brick) / "bids")
        for options in ((), ("--roi", "V1"), ("--min-noise-ceiling", "40")):
            assert run(tmp_path / str(brick), "--dry-run", *options) == 0, capsys.readouterr().err


def test_number_of_cases_and_their_exit_codes():
    assert len(CASES) >= 60
    assert {case.code for case in CASES.values()} == {16, 18, 64, 65, 66, 73, 75}


@pytest.mark.parametrize("name", CASES)
def test_one_thing_wrong(good, tmp_path, capsys, name):
    case = CASES[name]
    bids = copy_by_links(good[case.brick], tmp_path / "bids")
    case.mutate(bids)
    before = snapshot(tmp_path)
    code = run(tmp_path, *case.options)
    said = capsys.readouterr().err
    assert case.words.format(tmp=tmp_path).lower() in said.lower()
    assert str(bids / case.path) in said or not case.path
    assert code == case.code, said
    assert "Traceback" not in said
    assert "please report" not in said
    assert snapshot(tmp_path) == before


class _Usage(NamedTuple):
    free: int


def test_too_little_space_on_the_disk(good, tmp_path, capsys, monkeypatch):
    copy_by_links(good[False], tmp_path / "bids")
    before = snapshot(tmp_path)
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda _: _Usage(10_000))
    assert run(tmp_path) == 74
    said = capsys.readouterr().err
    assert str(tmp_path / "work") in said
    assert "0.0 MB are free" in said
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("out", ["bids", "bids/out", "bids/derivatives", "taken/out", "/proc/out"])
def test_folders_that_cannot_be_written(good, tmp_path, capsys, out):
    copy_by_links(good[False], tmp_path / "bids")
    put(tmp_path / "taken", "")
    before = snapshot(tmp_path)
    assert run(tmp_path, out=out) == 73
    assert str(tmp_path / out) in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def test_what_the_validator_finds_is_listed_with_the_rest(good, tmp_path, capsys, validate):
    bids = copy_by_links(good[False], tmp_path / "bids")
    put(bids / "sub-01" / "func" / "holiday.txt", "not BIDS")
    (bids / IMAGE).unlink()
    assert validate(bids)
    words = ["--recipe", "embedded", "-w", str(tmp_path / "work")]
    assert cli.main([str(bids), str(tmp_path / "out"), "participant", *words]) == 16
    said = capsys.readouterr().err
    general, own = said.split("sub-01:\n")
    assert "holiday.txt" in own
    assert IMAGE in general


def test_all_at_once_by_subject(good, tmp_path, capsys):
    bids = copy_by_links(good[False], tmp_path / "bids")
    chosen = ("betas cut", "mask only -1", "image cut", "captions in another encoding", "sidecar no JSON")
    for name in chosen:
        CASES[name].mutate(bids)
    put(bids / BETAS.replace("02", "01").replace("s2", "s1"), b"")
    before = snapshot(tmp_path)
    assert run(tmp_path, "--mem", "1GB", out="/proc/out") == 16
    said = capsys.readouterr().err
    assert "8 problems found, nothing was computed" in said
    for name in chosen:
        assert str(bids / CASES[name].path) in said
        assert CASES[name].words.lower() in said.lower()
    general, rest = said.split("sub-01:\n")
    first, second = rest.split("sub-02:\n")
    assert "/proc/out" in general
    assert str(bids / IMAGE) in general
    assert "sub-01/ses-s1" in first
    assert second.count("To fix: ") == 3
    assert MASK in second
    assert snapshot(tmp_path) == before
