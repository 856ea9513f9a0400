"""One thing wrong with a good input, in more than eighty ways: what is said of each, and the exit code."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bidsapp.config import RECIPES
from bidsapp.outputs.provenance import write_settings
from helpers.damage import (
    BETAS,
    BRICK,
    CAPTIONS,
    CEILING,
    DSEG,
    IMAGE,
    MASK,
    SIDECAR,
    STIMULI,
    TRIALS,
    declare_too_much,
    drop_column,
    drop_line,
    edit,
    edit_json,
    put,
    replace_brick,
    resave,
    rgb,
    scramble,
)


@dataclass(frozen=True)
class Case:
    """One thing that is wrong: how it comes about, what is said of it, and the exit code."""

    code: int
    words: str
    mutate: Callable[[Path], object] = lambda bids: None
    path: str = ""  # that the message names, in the dataset; "" where the words name it
    options: tuple[object, ...] = ()
    brick: bool = False


def on(path: str, change: Callable[[Path], object]) -> dict[str, object]:
    """A change of one file, which is what the message names."""
    return {"mutate": lambda bids: change(bids / path), "path": path}


def link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("annex/object")


def nan(values: np.ndarray) -> np.ndarray:
    return np.full(values.shape, np.nan, np.float32)


def split(train: list[str], test: list[str]) -> Callable[[Path], Path]:
    content = {"train_ids": train, "test_ids": test}
    return lambda bids: put(bids.parent / "split.json", json.dumps(content))


def beside(name: str, content: str) -> Callable[[Path], Path]:
    return lambda bids: put(bids.parent / name, content)


def second_task(bids: Path) -> None:
    for path in list((bids / "sub-02" / "ses-s2" / "func").iterdir()):
        path.rename(path.with_name(path.name.replace("task-tiny", "task-other")))


def another_candidate(bids: Path) -> None:
    for name in (BETAS, SIDECAR):
        shutil.copy(bids / name, bids / name.replace("desc-singletrial", "desc-singletrialB"))


def recipe(bids: Path, **changes: dict[str, object]) -> None:
    content = tomllib.loads((RECIPES / "embedded.toml").read_text())
    for section, values in changes.items():
        content[section] |= values
    write_settings(bids.parent / "own.toml", content)


def foreign_output(bids: Path) -> None:
    (bids.parent / "out").mkdir()
    put(bids.parent / "out" / "dataset_description.json", '{"GeneratedBy": [{"Name": "other"}]}')


SECOND = BETAS.replace("desc-singletrial", "desc-singletrialB")
FIRST, REST = ["pic000", "pic001"], ["pic004", "pic005", "pic012"]
SPLIT = ("--split", "{tmp}/split.json")
RAGGED = "a\tb\tc\td\te\tf\tg\n"

CASES = {
    # betas and their tables
    "betas cut": Case(65, "truncated", **on(BETAS, lambda p: put(p, p.read_bytes()[:-10]))),
    "betas of no bytes": Case(65, "truncated", **on(BETAS, lambda p: put(p, b""))),
    "betas of another kind": Case(65, "not a NIfTI file", **on(BETAS, lambda p: put(p, b"x" * 999))),
    "betas bomb": Case(65, "more than a file of", **on(BETAS, declare_too_much)),
    "betas complex": Case(65, "complex64", **on(BETAS, lambda p: resave(p, lambda v: v.astype("c8")))),
    "betas in colour": Case(65, "data type", **on(BETAS, lambda p: resave(p, rgb))),
    "betas 3-D": Case(65, "Holds 1 volume", **on(BETAS, lambda p: resave(p, lambda v: v[..., 0]))),
    "betas 5-D": Case(65, "4-D", **on(BETAS, lambda p: resave(p, lambda v: np.stack([v, v], -1)))),
    "betas cropped": Case(65, "shape is", **on(BETAS, lambda p: resave(p, lambda v: v[:-1]))),
    "betas moved": Case(
        65, "affine", **on(BETAS, lambda p: resave(p, affine=lambda a: a @ np.diag([1, 1, 1.5, 1])))
    ),
    "betas all NaN": Case(65, "are NaN", **on(BETAS, lambda p: resave(p, nan))),
    "betas constant": Case(65, "same value", **on(BETAS, lambda p: resave(p, lambda v: v * 0 + 7))),
    "betas damaged inside": Case(65, "damaged", **on(BETAS, scramble)),
    "betas a link to nowhere": Case(66, "datalad get", **on(BETAS, link_to_nowhere)),
    "two files of one session": Case(65, "Several files could be the betas", another_candidate, SECOND),
    "one trial too few": Case(65, "lists 11 trials", **on(TRIALS, drop_line)),
    "one trial too many": Case(
        65, "lists 13 trials", **on(TRIALS, lambda p: edit(p, lambda t: t + "s2\t1\t12\tstim-pic000\n"))
    ),
    "trials gone": Case(66, "No *_trials.tsv", lambda bids: (bids / TRIALS).unlink(), BETAS),
    "trials twice": Case(
        65, "appears twice", **on(TRIALS, lambda p: edit(p, lambda t: t.replace("\t1\t5\t", "\t1\t4\t")))
    ),
    "trials without stimuli": Case(65, "no column", **on(TRIALS, lambda p: drop_column(p, "stim_id"))),
    "trials ragged": Case(65, "Line 14", **on(TRIALS, lambda p: edit(p, lambda t: t + RAGGED))),
    "trial of an unknown stimulus": Case(
        65,
        "nobody",
        **on(TRIALS, lambda p: edit(p, lambda t: re.sub("stim-pic...", "stim-nobody", t, count=1))),
    ),
    "sidecar no JSON": Case(16, "not valid JSON", **on(SIDECAR, lambda p: put(p, "{"))),
    "scale zero": Case(65, "ScaleFactor", lambda bids: edit_json(bids / SIDECAR, ScaleFactor=0), BETAS),
    "scale negative": Case(65, "ScaleFactor", lambda bids: edit_json(bids / SIDECAR, ScaleFactor=-3), BETAS),
    "scale a word": Case(65, "ScaleFactor", lambda bids: edit_json(bids / SIDECAR, ScaleFactor="300"), BETAS),
    "scale of 400 digits": Case(
        65, "ScaleFactor", lambda bids: edit_json(bids / SIDECAR, ScaleFactor=10**400), BETAS
    ),
    "scale of one session lost": Case(
        65,
        "those of the subject's other sessions",
        lambda bids: edit_json(bids / SIDECAR, ScaleFactor=0.003),
        BETAS,
    ),
    # regions of interest
    "mask gone": Case(66, "no ROI 'nsdgeneral'", lambda bids: (bids / MASK).unlink(), "sub-02"),
    "unknown region": Case(66, "no ROI 'V9'", path="sub-02", options=("--roi", "V9")),
    "mask empty": Case(65, "No voxel of sub-02", **on(MASK, lambda p: resave(p, lambda v: v * 0))),
    "mask only -1": Case(
        65, "No voxel of sub-02", **on(MASK, lambda p: resave(p, lambda v: -np.ones(v.shape, np.int16)))
    ),
    "mask NaN": Case(65, "No voxel of sub-02", **on(MASK, lambda p: resave(p, nan))),
    "mask cropped": Case(65, "shape is", **on(MASK, lambda p: resave(p, lambda v: v[:-1]))),
    "mask moved": Case(
        65, "affine", **on(MASK, lambda p: resave(p, affine=lambda a: a @ np.diag([1, 1, 2, 1])))
    ),
    "mask cut": Case(65, "truncated", **on(MASK, lambda p: put(p, p.read_bytes()[:-10]))),
    "mask 4-D": Case(65, "must be 3-D", **on(MASK, lambda p: resave(p, lambda v: np.stack([v, v], -1)))),
    "labels no numbers": Case(
        65,
        "is not a number",
        options=("--roi", "V1"),
        **on(DSEG.replace(".nii.gz", ".tsv"), lambda p: edit(p, lambda t: t.replace("1\tV1v", "one\tV1v"))),
    ),
    "noise ceiling gone": Case(
        66,
        "no noise-ceiling map",
        lambda bids: (bids / CEILING).unlink(),
        "sub-02",
        ("--min-noise-ceiling", 20),
    ),
    "noise ceiling in shares": Case(
        65,
        "seems to hold fractions",
        lambda bids: (
            resave(bids / CEILING, lambda v: v / 100),
            put(bids / CEILING.replace(".nii.gz", ".json"), "{}"),
        ),
        CEILING,
        ("--min-noise-ceiling", 20),
    ),
    "noise ceiling nowhere reached": Case(
        65, "None of the", path=CEILING, options=("--min-noise-ceiling", 41)
    ),
    # stimuli and captions
    "stimuli gone": Case(66, "columns stimulus_id", **on(STIMULI, Path.unlink)),
    "stimuli without ids": Case(65, "stimulus_id", **on(STIMULI, lambda p: drop_column(p, "stimulus_id"))),
    "stimuli ragged": Case(65, "Line 22", **on(STIMULI, lambda p: edit(p, lambda t: t + RAGGED))),
    "stimulus twice": Case(
        65,
        "on line 5 and on line 22",
        **on(STIMULI, lambda p: edit(p, lambda t: t + t.split("\n")[4] + "\n")),
    ),
    "stimuli with another split": Case(
        65, "must be train, test", **on(STIMULI, lambda p: edit(p, lambda t: t.replace("train", "valid", 1)))
    ),
    "stimulus outside of the dataset": Case(
        65, "outside", **on(STIMULI, lambda p: edit(p, lambda t: t.replace("stim-pic003_im", "../../im")))
    ),
    "image gone": Case(66, "image file is missing", lambda bids: (bids / IMAGE).unlink(), IMAGE),
    "image cut": Case(65, "not a readable image", **on(IMAGE, lambda p: put(p, p.read_bytes()[:-60]))),
    "image a text": Case(65, "not a readable image", **on(IMAGE, lambda p: put(p, "no image"))),
    "names that collide": Case(
        65,
        "would both be written",
        lambda bids: [
            edit(
                path,
                lambda t: t.replace("stim-pic003\t", "stim-pic.002\t").replace(
                    "stim-pic003\n", "stim-pic.002\n"
                ),
            )
            for path in (bids / STIMULI, bids / CAPTIONS, *bids.rglob("*_trials.tsv"))
        ],
        STIMULI,
    ),
    "brick too short": Case(
        65,
        "Has 5 images",
        brick=True,
        **on(BRICK, lambda p: replace_brick(p, imgBrick=np.zeros((5, 32, 32, 3), np.uint8))),
    ),
    "brick of another type": Case(
        65,
        "encoded images",
        brick=True,
        **on(BRICK, lambda p: replace_brick(p, imgBrick=np.zeros((20, 32, 32, 3), np.float32))),
    ),
    "brick cut": Case(
        65, "not a readable HDF5", brick=True, **on(BRICK, lambda p: put(p, p.read_bytes()[:3000]))
    ),
    "captions gone": Case(65, "20 stimuli have no caption", **on(CAPTIONS, Path.unlink)),
    "caption gone": Case(
        65,
        "1 stimulus has no caption",
        **on(CAPTIONS, lambda p: edit(p, lambda t: re.sub(".*pic003.*\n", "", t))),
    ),
    "captions in another encoding": Case(
        65, "not UTF-8", **on(CAPTIONS, lambda p: put(p, p.read_bytes().replace(b"wave 3", b"wav\xe9")))
    ),
    "captions ragged": Case(65, "Line 42", **on(CAPTIONS, lambda p: edit(p, lambda t: t + RAGGED))),
    "captions without captions": Case(65, "columns", **on(CAPTIONS, lambda p: drop_column(p, "caption"))),
    # split
    "training and test overlap": Case(65, "{tmp}/split.json", split([*FIRST, *REST], FIRST), options=SPLIT),
    "test set empty": Case(65, "test set is empty", split([*FIRST, *REST], []), options=SPLIT),
    "test set of one": Case(65, "test set has one stimulus", split(REST, ["pic000"]), options=SPLIT),
    "training set of one": Case(
        65, "training set has one stimulus", split(["pic004", "pic012"], FIRST), options=SPLIT
    ),
    "split of another dataset": Case(65, "{tmp}/split.json", split(["a", "b"], ["c", "d"]), options=SPLIT),
    "split no JSON": Case(65, "{tmp}/split.json", beside("split.json", "{"), options=SPLIT),
    "split gone": Case(66, "{tmp}/split.json", options=SPLIT),
    # what is chosen
    "unknown participant": Case(18, "participant 77", path=".", options=("--participant-label", "01", "77")),
    "unknown session": Case(18, "session s9", path=".", options=("--session-label", "s9")),
    "unknown task": Case(18, "task-moon", path=".", options=("--task-label", "moon")),
    "unknown space": Case(18, "space-moon", path=".", options=("--space", "moon")),
    "two tasks": Case(64, "--task-label", second_task, "."),
    "filter of an unknown kind": Case(
        64,
        "{tmp}/filter.json",
        beside("filter.json", '{"bold": {}}'),
        options=("--bids-filter-file", "{tmp}/filter.json"),
    ),
    "filter no JSON": Case(
        65,
        "{tmp}/filter.json",
        beside("filter.json", "{"),
        options=("--bids-filter-file", "{tmp}/filter.json"),
    ),
    # the dataset
    "no description": Case(16, "is missing", **on("dataset_description.json", Path.unlink)),
    "description no JSON": Case(16, "JSON", **on("dataset_description.json", lambda p: put(p, "{"))),
    "description a list": Case(16, "JSON", **on("dataset_description.json", lambda p: put(p, "[]"))),
    "description without a name": Case(
        16, "lacks Name", **on("dataset_description.json", lambda p: put(p, '{"BIDSVersion": "1.11.1"}'))
    ),
    "no dataset": Case(66, "does not exist", lambda bids: shutil.rmtree(bids), "."),
    "dataset empty": Case(66, "is empty", lambda bids: (shutil.rmtree(bids), bids.mkdir()), "."),
    # where to write, and with what
    "work inside the input": Case(73, "work folder is inside", path="work", options=("-w", "{bids}/work")),
    "work a file": Case(73, "is a file", beside("taken", ""), options=("-w", "{tmp}/taken/work")),
    "output of another app": Case(73, "dataset of other", foreign_output),
    "weights gone": Case(
        75,
        "{tmp}/models/vdvae",
        lambda bids: recipe(bids, models={"location": "models-dir"}),
        options=("--recipe", "{tmp}/own.toml", "--models-dir", "{tmp}/models"),
    ),
    "unknown protocol": Case(
        65,
        "'moon'",
        lambda bids: recipe(bids, metrics={"protocol": "moon"}),
        options=("--recipe", "{tmp}/own.toml"),
    ),
    "too little memory": Case(75, "--mem 1.0 GB is too little", options=("--mem", "1GB")),
}
