"""nsd2bids on parts of NSD: requested sessions, and bricks with a subset of the images."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from helpers.nsd_tree import N_SESSIONS, SIDE, NsdTree, write_nsd
from PIL import Image

from bidsapp import cli
from bidsapp.data.stimuli import StimulusSet
from bidsapp.errors import AppError
from bidsapp.storage.text import read_tsv

BRICK = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> NsdTree:
    return write_nsd(tmp_path_factory.mktemp("nsd") / "nsd")


@pytest.fixture
def nsd(whole, tmp_path) -> NsdTree:
    """A copy to change."""
    shutil.copytree(whole.root, tmp_path / "nsd")
    return NsdTree(tmp_path / "nsd", whole.order, whole.images, whole.coco, whole.brick)


def run(*words: object) -> int:
    return cli.main(["nsd2bids", *map(str, words)])


def hashes(folder: Path) -> dict[str, str]:
    found = [p for p in folder.rglob("*") if p.is_file()]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def sessions(folder: Path, subject: str) -> list[str]:
    return sorted(p.name for p in (folder / f"sub-{subject}").glob("ses-*"))


def shown(nsd: NsdTree, *subjects: int) -> list[int]:
    return sorted({int(i) for s in subjects for n in range(N_SESSIONS) for i in nsd.shown(s, n + 1)})


def keep(nsd: NsdTree, images: list[int], **how: object) -> None:
    """Replace the brick by one in which only these images (73k IDs) were written."""
    how = {"chunks": (1, SIDE, SIDE, 3), **how}
    with h5py.File(nsd.root / BRICK, "w") as file:
        brick = file.create_dataset("imgBrick", nsd.brick.shape, "u1", **how)
        for image in images:
            brick[image - 1] = nsd.brick[image - 1]


@pytest.mark.parametrize("label", ["nsd02", "2", "02", "ses-nsd02"])
def test_only_requested_sessions_are_converted_and_reported_missing(nsd, tmp_path, label, capsys):
    for session in (1, 3):
        nsd.betas(1, session).unlink()
    words = ("--participant-label", "01", "--session-label", label)
    assert run(nsd.root, tmp_path / "bids", *words) == 0
    assert "Missing" not in capsys.readouterr().err
    assert sessions(tmp_path / "bids", "01") == ["ses-nsd02"]
    assert read_tsv(tmp_path / "bids/participants.tsv")["n_sessions"] == ["1"]


def test_a_requested_session_that_is_missing_is_named(nsd, tmp_path, capsys):
    nsd.betas(1, 2).unlink()
    assert run(nsd.root, tmp_path / "bids", "--participant-label", "01", "--session-label", "1", "2") == 1
    said = capsys.readouterr().err
    assert f"Missing: {nsd.betas(1, 2)}" in said
    assert said.count("Missing:") == 1
    assert sessions(tmp_path / "bids", "01") == ["ses-nsd01"]


def test_one_session_at_a_time_writes_the_same_as_one_run(whole, tmp_path):
    assert run(whole.root, tmp_path / "one") == 0
    for session in (3, 1, 2):
        assert run(whole.root, tmp_path / "bids", "--session-label", session) == 0
    assert hashes(tmp_path / "bids") == hashes(tmp_path / "one")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--session-label", "nsd41"), "nsd01 to nsd40"),
        (("--session-label", "imagery"), "nsd01 to nsd40"),
        (("--session-label", "nsd35", "--participant-label", "02"), "session"),
    ],
)
def test_sessions_that_nsd_does_not_have(whole, tmp_path, capsys, words, says):
    assert run(whole.root, tmp_path / "bids", *words) == 18
    assert says in capsys.readouterr().err
    assert not (tmp_path / "bids").exists()


@pytest.mark.parametrize("how", [{}, {"compression": "gzip"}, {"chunks": (1, SIDE, SIDE // 2, 3)}])
def test_a_brick_with_only_the_images_shown_is_enough(nsd, tmp_path, how, capsys):
    images = shown(nsd, 1)
    keep(nsd, images, **how)
    bids = tmp_path / "bids"
    assert run(nsd.root, bids, "--participant-label", "01") == 0
    table = read_tsv(bids / "stimuli/stimuli.tsv")
    present = {int(i) for i, p in zip(table["NSD_id"], table["present"], strict=True) if p == "true"}
    assert present == set(images)
    stimuli = StimulusSet.open(bids)
    assert len(stimuli.ids) == len(images)
    for image in images[::7]:
        np.testing.assert_array_equal(stimuli.images([f"nsd{image:05d}"])[0], nsd.brick[image - 1])


def test_png_from_a_brick_with_only_the_images_shown(nsd, tmp_path):
    images = shown(nsd, 1)
    keep(nsd, images)
    bids = tmp_path / "bids"
    assert run(nsd.root, bids, "--participant-label", "01", "--stimuli", "png") == 0
    assert len(list((bids / "stimuli").glob("*.png"))) == len(images)


@pytest.mark.parametrize("stimuli", ["hdf5", "png"])
def test_images_shown_but_missing_from_the_brick_are_counted(nsd, tmp_path, stimuli, capsys):
    images = shown(nsd, 1)
    keep(nsd, images[2:])
    bids = tmp_path / "bids"
    assert run(nsd.root, bids, "--participant-label", "01", "--stimuli", stimuli) == 1
    said = capsys.readouterr().err
    assert f"Not usable: {nsd.root / BRICK}" in said
    assert f"2 of the {len(images)} images" in said
    assert str(images[0]) in said
    table = read_tsv(bids / "stimuli/stimuli.tsv")
    present = {int(i) for i, p in zip(table["NSD_id"], table["present"], strict=True) if p == "true"}
    assert present == set(images[2:])
    for path in (bids / "stimuli").glob("*.png"):
        assert np.asarray(Image.open(path)).any()


def test_the_app_refuses_a_brick_row_that_was_never_written(nsd, tmp_path):
    images = shown(nsd, 1)
    assert run(nsd.root, tmp_path / "bids", "--participant-label", "01", "--link", "copy") == 0
    nsd = NsdTree(tmp_path / "bids", nsd.order, nsd.images, nsd.coco, nsd.brick)
    with h5py.File(tmp_path / "bids/stimuli/nsd_stimuli.hdf5", "w") as file:
        brick = file.create_dataset("imgBrick", nsd.brick.shape, "u1", chunks=(1, SIDE, SIDE, 3))
        brick[images[0] - 1] = nsd.brick[images[0] - 1]
    stimuli = StimulusSet.open(tmp_path / "bids")
    label, absent = (f"nsd{i:05d}" for i in images[:2])
    assert stimuli.images([label]).any()
    assert stimuli.unreadable([label]) == []
    with pytest.raises(AppError, match=f"row {images[1] - 1} was never written"):
        stimuli.images([absent])
    assert "never written" in stimuli.unreadable([label, absent])[0].what


def test_noise_ceiling_of_the_sessions_in_the_dataset(whole, tmp_path):
    assert run(whole.root, tmp_path / "bids", "--session-label", "1") == 0
    name = "sub-01/func/sub-01_task-nsdcore_space-func1pt8mm_desc-noiseceiling_statmap.nii.gz"
    one = nib.load(tmp_path / "bids" / name).get_fdata()
    assert run(whole.root, tmp_path / "bids", "--session-label", "2") == 0
    two = nib.load(tmp_path / "bids" / name).get_fdata()
    inside = np.isfinite(one) & (one > 0)
    assert np.all(two[inside] > one[inside])  # more repeats
