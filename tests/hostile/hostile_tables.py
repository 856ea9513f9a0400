"""Hostile tables, JSON files, split and filter files, recipes."""

from __future__ import annotations

import io
import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from helpers.damage import edit, edit_json, put
from hostile.hostile_case import (
    CAPTIONS,
    IMAGE,
    LABELS,
    SIDECAR,
    STIMULI,
    TRIALS,
    Case,
    Trap,
    mark,
    participant,
    trap,
)

from bidsapp.config import RECIPES
from bidsapp.outputs.provenance import write_settings

Make = Callable[[Path], object]
DESCRIPTION = "dataset_description.json"
DEEP = b"[" * 200_000


def on(path: str, content: bytes | str | Callable[[Path], object]) -> Make:
    """Replace a file of the dataset, or change it."""
    if callable(content):
        return lambda tmp: content(tmp / "bids" / path)
    return lambda tmp: put(tmp / "bids" / path, content)


def beside(name: str, content: bytes | str) -> Make:
    return lambda tmp: put(tmp / name, content)


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    """40 GB that take no room."""
    content = path.read_bytes() if path.is_file() else b""
    with put(path, content).open("r+b") as stream:
        stream.truncate(40 << 30)


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def file_of_first(name: str) -> Make:
    """The table of stimuli with another file for its second stimulus."""
    return on(STIMULI, lambda p: edit(p, lambda t: t.replace("stim-pic001_image.png", name)))


def folder_that_leads_out(tmp: Path) -> None:
    (tmp / "elsewhere").mkdir()
    put(tmp / "elsewhere" / "a.png", (tmp / "bids" / IMAGE).read_bytes())
    (tmp / "bids" / "stimuli" / "inner").symlink_to(tmp / "elsewhere", target_is_directory=True)
    file_of_first("inner/a.png")(tmp)


def pickled_array(tmp: Path) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([Trap(mark(tmp))], dtype=object), allow_pickle=True)
    return stream.getvalue()


def recipe(**changes: dict[str, object]) -> Make:
    def make(tmp: Path) -> None:
        content = tomllib.loads((RECIPES / "embedded.toml").read_text())
        for section, values in changes.items():
            content[section] |= values
        write_settings(tmp / "own.toml", content)

    return make


def recipe_text(change: Callable[[str], str]) -> Make:
    return lambda tmp: put(tmp / "own.toml", change((RECIPES / "embedded.toml").read_text()))


MANY_ROWS = "beta_index\tstim_id\n" + "7\tpic001\n" * 99_000
MANY_COLUMNS = "\t".join(f"c{i}" for i in range(1_000_000)) + "\n"
FILTER = participant("--bids-filter-file", "{tmp}/f.json")
RECIPE = participant("--recipe", "{tmp}/own.toml")
SPLIT_JSON = participant("--split", "{tmp}/s.json")

CASES = {
    # tables
    "trials with a NUL byte": Case(65, "NUL byte", on(TRIALS, "stim_id\npic\0001\n")),
    "trials that are no text": Case(65, "not UTF-8", on(TRIALS, b"stim_id\npic\xff\xfe\n")),
    "trials of a million columns": Case(65, "1000000 columns", on(TRIALS, MANY_COLUMNS)),
    "trials that repeat one number": Case(65, "appears twice", on(TRIALS, MANY_ROWS)),
    "trials with a cell of 10 MB": Case(
        65, "not listed in", on(TRIALS, "stim_id\n" + "x" * 10_000_000 + "\n" + "pic001\n" * 5)
    ),
    "trials that steer the terminal": Case(
        65, r"\x1b]0;owned\x07", on(TRIALS, "stim_id\n\x1b]0;owned\x07\x1b[2J\n" + "pic001\n" * 5)
    ),
    "trials that turn the writing": Case(
        65, r"\u202egnp.exe", on(TRIALS, "stim_id\npic\u202egnp.exe\n" + "pic001\n" * 5)
    ),
    "trials that are a pipe": Case(66, "is a pipe", on(TRIALS, pipe)),
    "trials that are an endless device": Case(66, "is a device", on(TRIALS, endless)),
    "sidecar of 40 GB": Case(16, "bytes; files of this kind", on(SIDECAR, sparse)),
    "sidecar of many keys, one twice": Case(
        16, "'k0' twice", on(SIDECAR, "{" + "".join(f'"k{i}": 1, ' for i in range(30_000)) + '"k0": 2}')
    ),
    "trials of 40 GB": Case(65, "bytes; files of this kind", on(TRIALS, sparse)),
    "captions that are a pipe": Case(66, "is a pipe", on("p", pipe), participant("--captions", "{bids}/p")),
    "captions whose quote never closes": Case(
        65,
        "not valid CSV",
        beside("c.csv", 'stimulus_id,caption\npic001,"' + "x\n" * 1_000_000),
        participant("--captions", "{tmp}/c.csv"),
    ),
    "captions that are pickled": Case(65, "not UTF-8", lambda tmp: put(tmp / "bids" / CAPTIONS, trap(tmp))),
    "labels that are an endless number": Case(
        65,
        "is not a number",
        on(LABELS, "index\tname\n" + "9" * 5000 + "\tV1v\n"),
        participant("--roi", "V1"),
    ),
    # paths out of the dataset
    "image by an absolute path": Case(65, "is outside", file_of_first("/etc/passwd")),
    "image above the dataset": Case(65, "is outside", file_of_first("../../../../etc/passwd")),
    "image above, in the middle of a path": Case(65, "is outside", file_of_first("images/../../x.png")),
    "image above, by backslashes": Case(65, "is outside", file_of_first("..\\\\..\\\\secret.png")),
    "image on a drive": Case(65, "is outside", file_of_first("C:\\\\secret.png")),
    "image on another machine": Case(65, "is outside", file_of_first("\\\\\\\\host\\\\share\\\\a.png")),
    "image by a file URL": Case(65, "is outside", file_of_first("file:///etc/passwd")),
    "image by a web address": Case(65, "is outside", file_of_first("http://evil.example/a.png")),
    "image behind a folder that leads out": Case(65, "is a link to a folder outside", folder_that_leads_out),
    "image that links to itself": Case(66, "image file is missing", on(IMAGE, loop)),
    "image that is a pipe": Case(66, "image file is missing", on(IMAGE, pipe)),
    "image that is an endless device": Case(66, "image file is missing", on(IMAGE, endless)),
    "stimuli that link to themselves": Case(66, "columns stimulus_id", on(STIMULI, loop)),
    # JSON
    "sidecar of 200,000 brackets": Case(16, "cannot be read as JSON", on(SIDECAR, DEEP)),
    "sidecar with a number of 10,000 digits": Case(
        16, "cannot be read as JSON", on(SIDECAR, '{"ScaleFactor": ' + "9" * 10_000 + "}")
    ),
    "sidecar with NaN": Case(65, "not a number above 0", on(SIDECAR, '{"ScaleFactor": NaN}')),
    "sidecar with an infinite number": Case(
        65, "not a number above 0", on(SIDECAR, '{"ScaleFactor": 1e999}')
    ),
    "sidecar that says it twice": Case(
        16, "'ScaleFactor' twice", on(SIDECAR, '{"ScaleFactor": 300, "ScaleFactor": 1}')
    ),
    "sidecar with a text of 10 MB": Case(
        65, "not a number above 0", on(SIDECAR, lambda p: edit_json(p, ScaleFactor="9" * 10_000_000))
    ),
    "sidecar that is a pipe": Case(16, "is a pipe", on(SIDECAR, pipe)),
    "sidecar that is an endless device": Case(16, "is a device", on(SIDECAR, endless)),
    "description of 200,000 brackets": Case(16, "cannot be read as JSON", on(DESCRIPTION, DEEP)),
    "description that is a pipe": Case(16, "is a pipe", on(DESCRIPTION, pipe)),
    "description that is an endless device": Case(16, "is a device", on(DESCRIPTION, endless)),
    # splits
    "split that is a pickled array": Case(
        65,
        "not UTF-8",
        lambda tmp: put(tmp / "s.npy", pickled_array(tmp)),
        participant("--split", "{tmp}/s.npy"),
    ),
    "split that is a pickle": Case(65, "s.json", lambda tmp: put(tmp / "s.json", trap(tmp)), SPLIT_JSON),
    "split that is a MATLAB file": Case(
        65,
        "s.mat",
        beside("s.mat", b"MATLAB 5.0 MAT-file" + b" " * 105 + b"\0\1IM" + b"\xff" * 99),
        participant("--split", "{tmp}/s.mat"),
    ),
    "split of 200,000 brackets": Case(65, "cannot be read as JSON", beside("s.json", DEEP), SPLIT_JSON),
    "split with ids of 10 MB": Case(
        65,
        "s.json",
        beside("s.json", json.dumps({"train_ids": ["x" * 10_000_000], "test_ids": ["y"]})),
        SPLIT_JSON,
    ),
    "split that is a pipe": Case(66, "is a pipe", lambda tmp: pipe(tmp / "s.json"), SPLIT_JSON),
    "split that never ends": Case(66, "is a device", lambda tmp: endless(tmp / "s.json"), SPLIT_JSON),
    # filter files
    "filter with an expression that never ends": Case(
        18,
        "f.json",
        beside("f.json", json.dumps({"betas": {"desc": "(s+)+$", "space": "^(([a-z])+.)+[A-Z]([a-z])+$"}})),
        FILTER,
    ),
    "filter by what is no entity": Case(
        64, "unknown entity", beside("f.json", '{"betas": {"__class__": "x"}}'), FILTER
    ),
    "filter that asks for an object": Case(
        64, "must be a string", beside("f.json", '{"betas": {"desc": {"a": 1}}}'), FILTER
    ),
    "filter that is a pipe": Case(66, "is a pipe", lambda tmp: pipe(tmp / "f.json"), FILTER),
    "filter that is a folder": Case(64, "is a directory", lambda tmp: (tmp / "f.json").mkdir(), FILTER),
    "filter that never ends": Case(66, "is a device", lambda tmp: endless(tmp / "f.json"), FILTER),
    # what is chosen
    "participant above the dataset": Case(
        18, "No betas of participant", lambda tmp: None, participant("--participant-label", "../../etc")
    ),
    "session above the dataset": Case(
        18, "No betas of session", lambda tmp: None, participant("--session-label", "../../etc")
    ),
    # recipes
    "recipe with weights anywhere": Case(
        65, "models.vdvae should be", recipe(models={"vdvae": "/etc"}), RECIPE
    ),
    "recipe with weights above": Case(
        65, "models.diffusion should be", recipe(models={"diffusion": "a/../../b"}), RECIPE
    ),
    "recipe with a NUL byte": Case(65, "models.vdvae should be", recipe(models={"vdvae": "a\0b"}), RECIPE),
    "recipe with types exchanged": Case(65, "be a whole number", recipe(vdvae={"layers": "five"}), RECIPE),
    "recipe with an infinite number": Case(
        65, "finite", recipe_text(lambda t: t.replace("guidance = ", "guidance = inf #")), RECIPE
    ),
    "recipe with a number of 5,000 digits": Case(
        65,
        "not a recipe",
        recipe_text(lambda t: t.replace("steps = ", "steps = " + "9" * 5000 + " #")),
        RECIPE,
    ),
    "recipe with a number of 400 digits": Case(
        65, "64 bits", recipe_text(lambda t: t.replace("steps = ", "steps = " + "9" * 400 + " #")), RECIPE
    ),
    "recipe of 200,000 brackets": Case(65, "not a recipe", beside("own.toml", b"a = " + DEEP), RECIPE),
    "recipe that is a pipe": Case(64, "no file of this name", lambda tmp: pipe(tmp / "own.toml"), RECIPE),
}
