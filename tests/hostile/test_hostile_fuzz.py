"""Good texts spoiled at random: whatever comes of them, a reader returns or refuses by name.

The corpus is one good file a reader and the pieces that have broken readers before; Hypothesis cuts, repeats
and mixes them. A few seconds in everyday use, `-m slow` takes fifty times as many.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest
from helpers.output_tree import record_complete
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bidsapp.bids._filters import read_filters
from bidsapp.bids._rois import read_labels
from bidsapp.bids._trials import read_trials
from bidsapp.config import RECIPES, load_recipe
from bidsapp.data.captions import read_captions
from bidsapp.data.splits import make_split
from bidsapp.data.stimuli import StimulusSet
from bidsapp.errors import AppError, ExitCode
from bidsapp.group.level import run_group
from bidsapp.models.weights.lock import LOCK, Lock
from bidsapp.storage.text import read_json, read_tsv

#: What has broken readers, of this app or of others.
PIECES = (
    b"\0", b"\r", b"\r\n", b"\n\n", b"\t", b"\t\t\t", b'"', b'""', b"'", b",", b"\\", b"\xff\xfe",
    b"\xef\xbb\xbf", b"\xed\xa0\x80", "\u2028\u202e٣".encode(), b"\x1b[2J", b"n/a", b"NaN", b"-Infinity",
    b"1e999", b"-1", b"0x10", b"9" * 400, b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"[[a]]\n",
    b"[models]\n", b"=", b"= {}", b"null", b"true", b'"\\ud800"', b"../../", b"/etc/passwd", b"file:///",
    b"C:\\", b"__class__", b"<script>", b"train", b"test", b"stim-", b"x" * 200_000, b"\t" * 20_000,
)  # fmt: skip


class _Stimuli:
    ids = ("a", "b")
    split_column: ClassVar[dict[str, str]] = {"a": "train", "b": "test"}
    table = Path("stimuli.tsv")


def _split(path: Path) -> object:
    return make_split(_Stimuli(), ["a", "b"], path)


class Reader(NamedTuple):
    """A reader, where it looks in a folder, and a good file."""

    place: str
    read: Callable[[Path], object]
    good: bytes


SETS = {"train_ids": ["a"], "test_ids": ["stim-b"]}
METRICS = "sub-01/func/sub-01_task-t_desc-recon_metrics.tsv"
READERS = {
    "trials": Reader("x.tsv", read_trials, b"beta_index\tstim_id\trun\n1\tstim-a\t1\n0\tstim-b\tn/a\n"),
    "captions": Reader("x.tsv", read_captions, b'stimulus_id\tcaption\na\t"a ""dog"""\nb\ta cat\n'),
    "captions in CSV": Reader(
        "x.csv", read_captions, b'image_name,caption,source\na.jpg,"a, dog",ai\nb,cat,\n'
    ),
    "stimuli": Reader(
        "d/stimuli/stimuli.tsv",
        lambda p: StimulusSet.open(p.parents[1]),
        b"stimulus_id\tfile\trow\tsplit\tpresent\na\tx/a.png\tn/a\ttrain\t1\nb\tb.hdf5\t3\ttest\t1\n",
    ),
    "labels": Reader(
        "x.tsv", lambda p: read_labels(p.with_name("x.nii.gz")), b"index\tname\n1\tV1v\n2\tV1d\n"
    ),
    "split": Reader("x.tsv", _split, b"stimulus_id\tsplit\na\ttrain\nb\ttest\n"),
    "split in JSON": Reader("x.json", _split, json.dumps({"variants": [{"variant_id": 0, **SETS}]}).encode()),
    "filter": Reader(
        "x.json",
        read_filters,
        b'{"betas": {"desc": "singletrial", "run": [1, "02"]}, "mask": {"space": null}, "trials": {}}',
    ),
    "sidecar": Reader("x.json", read_json, b'{"ScaleFactor": 300, "Sources": ["bids::a"], "x": {"y": 1.5}}'),
    "lock": Reader(
        LOCK,
        lambda p: Lock.read(p.parent),
        b'{"files": {"a/b": {"sha256": "' + b"0f" * 32 + b'"}}, "canaries": {}}',
    ),
    "recipe": Reader("x.toml", lambda p: load_recipe(str(p)), (RECIPES / "embedded.toml").read_bytes()),
    "scores": Reader(
        f"o/{METRICS}",
        lambda p: run_group(record_complete(p.parents[2]), dry_run=True),
        b"stimulus_id\tstage1_pixcorr\tstage2_pixcorr\nstim-a\t0.1\tn/a\nstim-b\t-0.3\t1e-4\n",
    ),
    "participants": Reader("x.tsv", read_tsv, b"participant_id\tage\nsub-01\t30\nsub-02\tn/a\n"),
}


@st.composite
def edits(draw: st.DrawFn) -> list[tuple[float, float, bytes]]:
    """Up to four cuts: from where to where, as shares of the text, and what takes the place."""
    place = st.floats(0, 1)
    piece = st.one_of(st.sampled_from(PIECES), st.binary(max_size=4), st.just(b""))
    return draw(st.lists(st.tuples(place, place, piece), min_size=1, max_size=4))


def spoiled(good: bytes, cuts: list[tuple[float, float, bytes]]) -> bytes:
    for start, length, piece in cuts:
        i = int(start * len(good))
        # most cuts are short: of the rest of the text the share is taken to the eighth power
        good = good[:i] + piece + good[i + int(length**8 * (len(good) - i)) :]
    return good


def refusal(read: Callable[[Path], object], path: Path) -> AppError | None:
    """The named error that reading ends in; any other exception fails the test."""
    try:
        read(path)
    except AppError as error:
        return error
    return None


def meet(name: str, cuts: list[tuple[float, float, bytes]], folder: Path) -> None:
    reader = READERS[name]
    path = folder / reader.place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(spoiled(reader.good, cuts))
    error = refusal(reader.read, path)
    if error is not None:
        assert error.exit_code in (ExitCode.BAD_DATA, ExitCode.USAGE, ExitCode.NO_INPUT)
        assert path.parent.name in str(error)
        assert len(str(error)) < 50_000
        assert "\x1b" not in str(error)


@pytest.mark.parametrize("name", READERS)
def test_the_good_ones_are_read(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / READERS[name].place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(READERS[name].good)
    READERS[name].read(path)


@pytest.mark.parametrize("name", READERS)
def test_each_piece_alone(name, tmp_path):
    for piece in PIECES:
        for start in (0.0, 0.5, 1.0):
            meet(name, [(start, 0.0, piece)], tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(READERS)), cuts=edits())
@example(name="recipe", cuts=[(1.0, 0.0, b"\nx = " + b"[" * 3000)])
def test_spoiled(name, cuts, tmp_path):
    meet(name, cuts, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_spoiled_at_length(name, tmp_path):
    @settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
    @given(cuts=edits())
    def spoil(cuts: list[tuple[float, float, bytes]]) -> None:
        meet(name, cuts, tmp_path)

    spoil()
