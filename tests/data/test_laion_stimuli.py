"""Stimuli as LAION-fMRI publishes them: a CSV, encoded images in an HDF5 file, a CSV of captions."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from bidsapp.data import _pixels
from bidsapp.data._tables import read_table
from bidsapp.data.captions import read_captions
from bidsapp.data.stimuli import StimulusSet
from bidsapp.errors import AppError, ExitCode

NAMES = ("shared_12rep_LAION_cluster_1_i0.jpg", "shared_4rep_OOD_cropped_1.png", "unique_LAION_2_i0.jpg")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def cutout() -> Image.Image:
    """Red on the left, transparent on the right, half transparent between."""
    pixels = np.zeros((16, 24, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[:, :8, 3], pixels[:, 8:16, 3] = 255, 128
    return Image.fromarray(pixels)


def write_brick(path: Path, files: list[bytes]) -> None:
    with h5py.File(path, "w") as file:
        images = file.create_dataset("images", (len(files),), dtype=h5py.vlen_dtype(np.uint8))
        for row, content in enumerate(files):
            images[row] = np.frombuffer(content, np.uint8)


@pytest.fixture
def files() -> list[bytes]:
    rng = np.random.default_rng(0)
    photographs = [Image.fromarray(rng.integers(0, 255, (16, 24, 3), np.uint8)) for _ in range(2)]
    return [
        encoded(photographs[0], "JPEG", quality=95),
        encoded(cutout(), "PNG"),
        encoded(photographs[1], "JPEG", quality=60),
    ]


@pytest.fixture
def laion(tmp_path: Path, files: list[bytes]) -> Path:
    folder = tmp_path / "data" / "stimuli"
    folder.mkdir(parents=True)
    (tmp_path / "data" / "derivatives" / "glmsingle-tedana").mkdir(parents=True)
    rows = [f"{name},LAION,sub-01;sub-03,shared,4" for name in NAMES]
    header = "image_name,dataset,participant,unique_or_shared,n_reps"
    (folder / "task-images_metadata.csv").write_text("\n".join([header, *rows]) + "\n")
    write_brick(folder / "task-images_stimuli.h5", files)
    (folder / "task-images_desc-captions.csv").write_text(
        "image_name,caption_idx,source,caption,origin_collection,participant_id,ai_model\n"
        f'{NAMES[0]},1,human,"a hand, with ""pink"" nails",main3,p1,\n'
        f'{NAMES[0]},2,human,"two lines\nof text",main3,p2,\n'
        f"{NAMES[0]},0,ai,A hand with pale pink nails.,gpt-5.1,,gpt-5.1\n"
        f"{NAMES[1]},1,human,a red bar,main3,p3,\n"
    )
    return tmp_path / "data"


def test_the_published_files_are_read(laion: Path, files: list[bytes]) -> None:
    stimuli = StimulusSet.open(laion)
    assert stimuli.ids == NAMES
    assert stimuli.split_column == {}
    order = NAMES[::-1]
    images = stimuli.images(order)
    expected = [np.asarray(Image.open(io.BytesIO(files[i]))) for i in (2, 0)]
    assert np.array_equal(images[0], expected[0])
    assert np.array_equal(images[2], expected[1])
    assert stimuli.files_missing() == []
    assert stimuli.digests(order) == [stimuli.digest(i) for i in order]
    assert stimuli.digest(NAMES[2]) == hashlib.sha256(files[2]).hexdigest()
    inner = laion / "derivatives" / "glmsingle-tedana"
    for folder in (inner, inner / ".." / "glmsingle-tedana"):
        assert StimulusSet.open(folder).table == stimuli.table


def test_transparent_pixels_are_placed_on_grey(laion: Path) -> None:
    image = StimulusSet.open(laion).images([NAMES[1]])[0]
    assert (image[:, :8] == (200, 0, 0)).all()
    mixed = np.rint(np.array([200, 0, 0]) * 128 / 255 + 128 * 127 / 255)
    assert (np.abs(image[:, 8:16] - mixed) <= 1).all()
    assert (image[:, 16:] == 128).all()


@pytest.mark.parametrize("mode", ["LA", "P", "RGBA"])
def test_transparency_of_every_kind(tmp_path: Path, mode: str) -> None:
    (tmp_path / "stimuli").mkdir()
    (tmp_path / "stimuli" / "stimuli.tsv").write_text("stimulus_id\tfile\na\ta.png\n")
    hidden = {"LA": (255, 0), "RGBA": (255, 0, 0, 0), "P": 0}[mode]
    Image.new(mode, (8, 8), hidden).save(
        tmp_path / "stimuli" / "a.png", **({"transparency": 0} if mode == "P" else {})
    )
    assert (StimulusSet.open(tmp_path).images(["a"]) == 128).all()


def test_peoples_captions_are_used(laion: Path) -> None:
    stimuli = StimulusSet.open(laion)
    assert stimuli.captions(NAMES[0]) == ('a hand, with "pink" nails', "two lines\nof text")
    assert stimuli.captions(NAMES[1]) == ("a red bar",)
    assert stimuli.captions(NAMES[2]) == ()
    other = laion / "mine.tsv"
    other.write_text("stimulus_id\tcaption\nunique_LAION_2_i0\ta lake\nunique_LAION_2_i0.jpg\ta pond\n")
    given = StimulusSet.open(laion, captions=other)
    assert given.captions(NAMES[2]) == ("a lake", "a pond")
    assert given.captions(NAMES[0]) == ()
    assert given.captions_path == other
    with pytest.raises(AppError, match="no such file") as caught:
        StimulusSet.open(laion, captions=laion / "none.tsv")
    assert caught.value.exit_code == ExitCode.NO_INPUT


def test_without_the_images_the_file_that_is_missing_is_named(laion: Path) -> None:
    brick = laion / "stimuli" / "task-images_stimuli.h5"
    brick.unlink()
    assert StimulusSet.open(laion).files_missing() == [str(brick)]
    (laion / "stimuli" / "task-images_metadata.csv").unlink()
    with pytest.raises(AppError, match="laion-fmri download-stimuli") as caught:
        StimulusSet.open(laion)
    assert caught.value.exit_code == ExitCode.NO_INPUT


def test_image_files_are_preferred_if_they_exist(laion: Path) -> None:
    (laion / "stimuli" / "images").mkdir()
    Image.new("RGB", (24, 16), (1, 2, 3)).save(laion / "stimuli" / "images" / NAMES[0], quality=100)
    stimuli = StimulusSet.open(laion)
    assert stimuli.path(NAMES[0]).parent.name == "images"
    assert stimuli.path(NAMES[1]).suffix == ".h5"


def test_the_older_layout(tmp_path: Path) -> None:
    folder = tmp_path / "stimuli"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (20, 20), (9, 9, 9)).save(folder / "images" / "a_i0.jpg")
    for text in ("stimulus_id\tshared\na_i0.jpg\tTrue\n", "stimulus_id\tfilename\na_i0\ta_i0.jpg\n"):
        (folder / "stimuli.tsv").write_text(text)
        stimuli = StimulusSet.open(tmp_path)
        assert stimuli.files_missing() == []
        assert stimuli.images(stimuli.ids).shape == (1, 20, 20, 3)


def test_images_of_several_sizes(tmp_path: Path) -> None:
    folder = tmp_path / "stimuli"
    (folder / "images").mkdir(parents=True)
    sizes = {"a.jpg": (40, 30), "b.png": (24, 50), "c.jpg": (40, 30)}
    for name, size in sizes.items():
        Image.new("RGB", size, (50, 60, 70)).save(folder / "images" / name)
    (folder / "stimuli.tsv").write_text("stimulus_id\n" + "\n".join(sizes) + "\n")
    stimuli = StimulusSet.open(tmp_path)
    assert stimuli.common_side(["a.jpg", "c.jpg"]) is None
    assert stimuli.common_side(list(sizes)) == 24
    assert stimuli.images(list(sizes), size=24).shape == (3, 24, 24, 3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "row 1 is not a readable image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 20, "row 1 is not a readable image"),
        (b"not an image", "row 1 is not a readable image"),
    ],
)
def test_damaged_images_are_refused(laion: Path, files: list[bytes], content: bytes, words: str) -> None:
    write_brick(laion / "stimuli" / "task-images_stimuli.h5", [files[0], content, files[2]])
    stimuli = StimulusSet.open(laion)
    for read in (stimuli.images, stimuli.common_side):
        with pytest.raises(AppError, match=words) as caught:
            read([NAMES[1]])
        assert caught.value.exit_code == ExitCode.BAD_DATA
        assert "task-images_stimuli.h5" in str(caught.value)


def test_bombs_are_refused(laion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pixels, "MAX_PIXELS", 16 * 24 - 1)
    with pytest.raises(AppError, match="row 0 declares 24 x 16 pixels") as caught:
        StimulusSet.open(laion).images([NAMES[0]])
    assert caught.value.exit_code == ExitCode.BAD_DATA


def test_bricks_that_are_too_short_or_of_another_kind(laion: Path, files: list[bytes]) -> None:
    brick = laion / "stimuli" / "task-images_stimuli.h5"
    write_brick(brick, files[:1])
    with pytest.raises(AppError, match=r"has 1 images, but row 2"):
        StimulusSet.open(laion).images([NAMES[2]])
    with h5py.File(brick, "w") as file:
        file["images"] = np.arange(3)
    with pytest.raises(AppError, match="or N encoded images"):
        StimulusSet.open(laion).images([NAMES[0]])


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes('\ufeff,a,b\r\n0,"x, ""y""","1\r\n2"\r\n1,\u2028z,\r\n'.encode())
    assert read_table(path) == {"a": ['x, "y"', "\u2028z"], "b": ["1\n2", ""]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no header row"),
        ("a,\n1,2\n", "column 2 has no name"),
        ("a,a\n1,2\n", "two columns named 'a'"),
        ("a,b\n1\n", "line 2: has 1 cell where the header has 2"),
        ('a,b\n1,"2\n', "not valid CSV"),
        ("a\n\0\n", "line 2: holds a NUL byte"),
        (f'a,b\n1,"{"x" * (1 << 17)}y"\n', "not valid CSV"),
    ],
)
def test_csv_that_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(AppError, match=words) as caught:
        read_captions(path)
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert str(path) in str(caught.value)
