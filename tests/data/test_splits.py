"""Split files: their variants, how their ids are spelled, and what they count."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from bidsapp.data.captions import same_ids
from bidsapp.data.splits import make_split, split_path
from bidsapp.errors import AppError, ExitCode, InputProblems

IDS = ("shared_1_i0.jpg", "shared_2_i0.jpg", "ood_a.png", "ood_a.jpg", "unique_7_i1.jpg", "plain")


@pytest.fixture
def stimuli(tmp_path: Path) -> SimpleNamespace:
    table = tmp_path / "stimuli.tsv"
    table.write_text("stimulus_id\tsplit\n")
    return SimpleNamespace(ids=IDS, split_column=dict.fromkeys(IDS[:3], "train"), table=table)


def write(path: Path, train: list[str], test: list[str], **more: object) -> Path:
    path.write_text(json.dumps({"name": path.stem, "train_ids": train, "test_ids": test, **more}))
    return path


def test_ids_with_and_without_the_images_suffix(stimuli: SimpleNamespace, tmp_path: Path) -> None:
    path = write(tmp_path / "tau.json", ["shared_1_i0", "stim-plain.png"], ["unique_7_i1.jpg", "ood_a.png"])
    split = make_split(stimuli, IDS, path)
    assert split.train == ("plain", "shared_1_i0.jpg")
    assert split.test == ("ood_a.png", "unique_7_i1.jpg")
    assert split.unknown == ()


def test_unknown_and_unseen_stimuli_are_counted(stimuli: SimpleNamespace, tmp_path: Path) -> None:
    # "ood_a" could be either of two, and a PNG is not the JPEG of the same name.
    path = write(
        tmp_path / "ood.json", [IDS[0], "nobody.jpg", "ood_a"], [IDS[1], IDS[4], "plain", "ood_a.tif"]
    )
    split = make_split(stimuli, IDS[:2], path)
    assert (split.train, split.test) == ((IDS[0],), (IDS[1],))
    assert split.unknown == ("nobody.jpg", "ood_a", "ood_a.tif")
    assert split.unseen == 2
    assert split.file == path
    assert split.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_variants_are_named_as_the_file_names_them(stimuli: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "random.json"
    variants = [
        {"variant_id": name, "train_ids": [IDS[i]], "test_ids": [IDS[i + 1]]}
        for i, name in enumerate(["fold-a", 0, 1])
    ]
    path.write_text(json.dumps({"name": "random", "variants": variants}))
    chosen = make_split(stimuli, IDS, path)
    assert (chosen.name, chosen.variant, chosen.train) == ("random variant 0", "0", (IDS[1],))
    assert make_split(stimuli, IDS, path, variant="fold-a").train == (IDS[0],)
    assert (
        make_split(stimuli, IDS, path, variant="1").train == make_split(stimuli, IDS, path, variant=1).train
    )
    with pytest.raises(AppError, match="exactly one variant 2; its variants are fold-a, 0, 1") as caught:
        make_split(stimuli, IDS, path, variant="2")
    assert caught.value.exit_code == ExitCode.BAD_DATA


def test_a_variant_without_a_split_file_is_refused(stimuli: SimpleNamespace) -> None:
    with pytest.raises(AppError, match="needs a split file") as caught:
        make_split(stimuli, IDS, variant="0")
    assert caught.value.exit_code == ExitCode.USAGE


def test_overlap_is_found_under_any_spelling(stimuli: SimpleNamespace, tmp_path: Path) -> None:
    for train, test in ((["shared_1_i0"], ["shared_1_i0.jpg"]), (["nobody"], ["nobody"])):
        path = write(tmp_path / "s.json", [*train, IDS[1]], [*test, IDS[4]])
        with pytest.raises(InputProblems, match="1 stimulus is in both") as caught:
            make_split(stimuli, IDS, path)
        assert caught.value.exit_code == ExitCode.BAD_DATA


def test_a_split_of_another_dataset_is_refused(stimuli: SimpleNamespace, tmp_path: Path) -> None:
    path = write(tmp_path / "nsd.json", ["nsd00001"], ["nsd00002", "nsd00003"])
    with pytest.raises(InputProblems) as caught:
        make_split(stimuli, IDS, path)
    texts = [p.what for p in caught.value.problems]
    assert "training set" in texts[0]
    assert "test set" in texts[1]
    assert all("3 of the split's ids are unknown, e.g. 'nsd00001'" in text for text in texts)


def test_one_path_for_all_subjects(tmp_path: Path) -> None:
    assert split_path(tmp_path / "sub-{subject}" / "tau.json", "03") == tmp_path / "sub-03" / "tau.json"
    assert split_path("all.tsv", "03") == Path("all.tsv")
    assert split_path(None, "03") is None


def test_same_ids() -> None:
    known = ["a.jpg", "b.png", "b.jpg", "c"]
    given = ["a", "a.jpg", "a.png", "b", "b.png", "c", "c.JPEG", "d"]
    assert same_ids(given, known) == {
        "a": "a.jpg",
        "a.jpg": "a.jpg",
        "b.png": "b.png",
        "c": "c",
        "c.JPEG": "c",
    }
