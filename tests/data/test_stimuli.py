"""Stimuli, captions and splits."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from bidsapp.data import _pixels
from bidsapp.data.captions import read_captions
from bidsapp.data.splits import make_split
from bidsapp.data.stimuli import StimulusSet
from bidsapp.errors import AppError, ExitCode, InputProblems

Make = Callable[..., Path]


@pytest.fixture
def tiny(tiny_dataset: Make) -> Path:
    return tiny_dataset(n_subjects=1)


def _edit(root: Path, old: str, new: str, name: str = "stimuli.tsv") -> None:
    path = root / "stimuli" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_files_and_bricks_hold_the_same(tiny: Path, tiny_dataset: Make) -> None:
    files, brick = StimulusSet.open(tiny), StimulusSet.open(tiny_dataset(n_subjects=1, brick=True))
    assert files.ids == brick.ids
    assert len(files.ids) == 12
    assert files.split_column == brick.split_column
    assert sum(v == "test" for v in files.split_column.values()) == 4
    order = files.ids[::-1]
    images = files.images(order)
    assert images.dtype == np.uint8
    assert images.shape == (12, 32, 32, 3)
    assert np.array_equal(images, brick.images(order))
    for i, stimulus in enumerate(order):
        assert np.array_equal(
            images[i], np.asarray(Image.open(tiny / "stimuli" / f"stim-{stimulus}_image.png"))
        )
    assert files.captions("pic003") == brick.captions("pic003") == ("wave 3 one", "wave 3 two")
    assert files.images([]).shape == (0, 0, 0, 3)


def test_resizing_is_pils_bilinear(tiny: Path) -> None:
    stimuli = StimulusSet.open(tiny)
    source = Image.open(tiny / "stimuli" / "stim-pic002_image.png")
    expected = np.asarray(source.resize((20, 20), Image.Resampling.BILINEAR))
    assert np.array_equal(stimuli.images(["pic002"], size=20)[0], expected)
    Image.new("L", (50, 40), 7).save(tiny / "stimuli" / "stim-pic003_image.png")
    assert (stimuli.images(["pic002", "pic003"], size=20)[1] == 7).all()
    with pytest.raises(AppError, match="50 x 40 pixels, others have 32 x 32"):
        stimuli.images(["pic002", "pic003"])


def test_progress_is_shown(tiny: Path) -> None:
    seen: list[str] = []

    def show(items: Sequence[str], what: str) -> Iterator[str]:
        seen.append(what)
        yield from items

    assert StimulusSet.open(tiny).images(["pic001"], show=show).shape[0] == 1
    assert seen == ["Reading stimuli"]


def test_digest_covers_pixels_and_captions(tiny: Path, tiny_dataset: Make) -> None:
    stimuli = StimulusSet.open(tiny)
    raw = (tiny / "stimuli" / "stim-pic000_image.png").read_bytes()
    expected = hashlib.sha256(raw + b"\0wave 0 one\0wave 0 two").hexdigest()
    assert stimuli.digest("pic000") == expected
    assert len({stimuli.digest(i) for i in stimuli.ids}) == 12
    _edit(tiny, "wave 0 two", "wave 0 three", "captions.tsv")
    assert StimulusSet.open(tiny).digest("pic000") != expected
    brick = StimulusSet.open(tiny_dataset(n_subjects=1, brick=True))
    row = brick.images(["pic000"])[0].tobytes()
    assert brick.digest("pic000") == hashlib.sha256(row + b"\0wave 0 one\0wave 0 two").hexdigest()


def test_missing_files(tiny: Path) -> None:
    stimuli = StimulusSet.open(tiny)
    assert stimuli.files_missing() == []
    gone = tiny / "stimuli" / "stim-pic001_image.png"
    gone.unlink()
    gone.symlink_to("annex/object")
    assert stimuli.files_missing() == [str(gone)]
    assert stimuli.files_missing(["pic000"]) == []
    with pytest.raises(AppError, match="datalad get") as caught:
        stimuli.images(["pic001"])
    assert caught.value.exit_code == ExitCode.NO_INPUT
    with pytest.raises(AppError, match="no stimulus 'nix'"):
        stimuli.images(["nix"])


@pytest.mark.parametrize(
    "name",
    ["../x.png", "/etc/passwd", "a/../../x.png", "..\\x.png", "C:\\x.png", "http://x/y.png", "out/x.png"],
)
def test_paths_do_not_leave_the_dataset(tiny: Path, tmp_path: Path, name: str) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    (tiny / "stimuli" / "out").symlink_to(tmp_path, target_is_directory=True)
    _edit(tiny, "stim-pic001_image.png", name)
    with pytest.raises(InputProblems, match="Line 3") as caught:
        StimulusSet.open(tiny)
    assert caught.value.exit_code == ExitCode.BAD_DATA


def test_all_bad_ids_at_once(tiny: Path) -> None:
    _edit(tiny, "stim-pic001\t", "stim-pic000\t")
    _edit(tiny, "stim-pic005\t", "n/a\t")
    with pytest.raises(InputProblems) as caught:
        StimulusSet.open(tiny)
    assert [p.what for p in caught.value.problems] == [
        "Stimulus pic000 is listed on line 2 and on line 3.",
        "Line 7 has no stimulus_id.",
    ]


def test_stimuli_that_are_not_present_are_left_out(tiny: Path) -> None:
    lines = (tiny / "stimuli" / "stimuli.tsv").read_text().rstrip("\n").split("\n")
    lines = [lines[0] + "\tpresent\tNSD_id", *(f"{x}\t{int(i > 1)}\t{i}" for i, x in enumerate(lines[1:]))]
    (tiny / "stimuli" / "stimuli.tsv").write_text("\n".join(lines) + "\n")
    stimuli = StimulusSet.open(tiny)
    assert stimuli.ids[0] == "pic002"
    assert len(stimuli.ids) == 10
    assert set(stimuli.split_column) == set(stimuli.ids)


def test_stimuli_of_the_dataset_around_a_derivative(tiny: Path) -> None:
    inner = tiny / "derivatives" / "glm"
    inner.mkdir(parents=True)
    assert StimulusSet.open(inner).ids == StimulusSet.open(tiny).ids
    with pytest.raises(AppError, match=r"stimuli\.tsv is missing"):
        StimulusSet.open(tiny / "sub-01")


def test_images_named_by_label(tiny: Path) -> None:
    """LAION-fMRI: no column for the file, the image is ``images/<label>``."""
    folder = tiny / "stimuli"
    (folder / "images").mkdir()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "images" / "shared_1_i0.png")
    (folder / "stimuli.tsv").write_text("image_name\tdataset\nshared_1_i0.png\tshared\n")
    stimuli = StimulusSet.open(tiny)
    assert stimuli.ids == ("shared_1_i0.png",)
    assert (stimuli.images(stimuli.ids) == (1, 2, 3)).all()


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_png(9000, 9000), "limit of 64000000"),
        (_png(60000, 60000), "not a readable image"),
        (_png(32, 32), "not a readable image"),
        (b"GIF89a", "not a readable image"),
        (b"", "not a readable image"),
    ],
)
def test_images_that_are_refused(tiny: Path, content: bytes, words: str) -> None:
    (tiny / "stimuli" / "stim-pic000_image.png").write_bytes(content)
    with pytest.raises(AppError, match=words) as caught:
        StimulusSet.open(tiny).images(["pic000"])
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert "stim-pic000_image.png" in str(caught.value)


def test_bricks_that_are_refused(tiny_dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tiny_dataset(n_subjects=1, brick=True)
    path = root / "stimuli" / "bricks.hdf5"
    good = path.read_bytes()

    def refused(words: str) -> None:
        with pytest.raises(AppError, match=words) as caught:
            StimulusSet.open(root).images(["pic000"])
        assert caught.value.exit_code == ExitCode.BAD_DATA

    path.write_bytes(good[:100])
    refused("not a readable HDF5")
    (tmp_path / "other.h5").write_bytes(good)
    with h5py.File(path, "w") as file:
        file["imgBrick"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "imgBrick")
    refused("exactly one array")
    with h5py.File(path, "w") as file:
        raw = [(str(tmp_path / "other.h5"), 0, 12 * 32 * 32 * 3)]
        file.create_dataset("imgBrick", (12, 32, 32, 3), np.uint8, external=raw)
    refused("in other files")
    with h5py.File(path, "w") as file:
        file.create_dataset("imgBrick", (2, 100_000, 100_000, 3), np.uint8, chunks=(1, 100, 100, 3))
    refused("more than the limit")
    path.write_bytes(good)
    monkeypatch.setattr(_pixels, "MAX_CHUNK", 100)
    refused("chunks of 3072 bytes")
    monkeypatch.undo()
    _edit(root, "bricks.hdf5\t0\t", "bricks.hdf5\t12\t")
    refused(r"row 12 \(from 0\) is requested")
    _edit(root, "bricks.hdf5\t12\t", "bricks.hdf5\t-1\t")
    with pytest.raises(InputProblems, match="'-1' is not a row"):
        StimulusSet.open(root)


def test_captions(tmp_path: Path) -> None:
    path = tmp_path / "captions.tsv"
    path.write_text('stimulus_id\tcaption\nstim-a\t"a ""big"" dog"\na\t <b>x</b> \nb\t"x" and "y"\nc\tn/a\n')
    assert read_captions(path) == {"a": ('a "big" dog', "<b>x</b>"), "b": ('"x" and "y"',)}
    path.write_text("stimulus_id\ttext\n")
    with pytest.raises(AppError, match="stimulus_id and caption"):
        read_captions(path)


def test_split_of_the_table_keeps_to_what_was_seen(tiny: Path) -> None:
    stimuli = StimulusSet.open(tiny)
    split = make_split(stimuli, ["pic000", "pic003", "pic009", "pic004", "pic009", "", "unknown"])
    assert (split.name, split.train, split.test) == (
        "stimuli.tsv",
        ("pic004", "pic009"),
        ("pic000", "pic003"),
    )


def test_split_files(tiny: Path, tmp_path: Path) -> None:
    stimuli = StimulusSet.open(tiny)
    table = tmp_path / "odd.tsv"
    table.write_text("stimulus_id\tsplit\nstim-pic000\ttrain\npic001\ttest\npic002\tn/a\n")
    split = make_split(stimuli, stimuli.ids, table)
    assert (split.name, split.train, split.test) == ("odd.tsv", ("pic000",), ("pic001",))
    variants = [
        {"variant_id": 1, "train_ids": ["pic001"], "test_ids": ["pic000"]},
        {"variant_id": 0, "train_ids": ["pic005", "pic004"], "test_ids": ["pic003"]},
    ]
    path = tmp_path / "tau.json"
    path.write_text(json.dumps({"name": "tau", "variants": variants}))
    split = make_split(stimuli, stimuli.ids, path)
    assert (split.name, split.train, split.test) == ("tau variant 0", ("pic004", "pic005"), ("pic003",))
    assert make_split(stimuli, stimuli.ids, path, variant=1).train == ("pic001",)
    path.write_text(json.dumps({"name": "tau", "variants": variants[:1]}))
    assert make_split(stimuli, stimuli.ids, path).name == "tau"
    path.write_text(json.dumps(variants[0]))
    assert make_split(stimuli, stimuli.ids, path).test == ("pic000",)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "s.tsv",
            "stimulus_id\tsplit\npic000\ttrain\npic000\ttest\n",
            "both the training and the test set: pic000",
        ),
        ("s.tsv", "stimulus_id\tsplit\npic000\ttrain\n", "test set is empty"),
        (
            "s.tsv",
            "stimulus_id\tsplit\npic000\tTrain\nx\ttest\n",
            "no stimulus of this dataset; 1 of the split's ids is unknown, e.g. 'x'",
        ),
        ("s.tsv", "stimulus_id\tsplit\npic000\tvalid\n", "line 2: split is 'valid'"),
        ("s.tsv", "id\tset\n1\ttrain\n", "stimulus_id and split"),
        ("s.json", '{"variants": []}', "at least one"),
        (
            "s.json",
            '{"variants": [{"variant_id": 3, "train_ids": []}, {"variant_id": 4}]}',
            "variants are 3, 4",
        ),
        ("s.json", '{"train_ids": [1], "test_ids": ["a"]}', "needs train_ids"),
        ("s.json", '{"train_ids": ["pic001"]}', "needs test_ids"),
        ("s.json", "{", "not valid JSON"),
    ],
)
def test_splits_that_are_refused(tiny: Path, tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    stimuli = StimulusSet.open(tiny)
    with pytest.raises(AppError, match=words) as caught:
        make_split(stimuli, stimuli.ids, tmp_path / name)
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert name in str(caught.value)
