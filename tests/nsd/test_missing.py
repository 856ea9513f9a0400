"""nsd2bids with missing, damaged or contradictory files, or another kind of folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.nsd_tree import BETAS, LABELS, N_SESSIONS, SPACE, NsdTree, write_hdf5, write_nifti, write_nsd
from scipy.io import loadmat, savemat

from bidsapp import cli
from bidsapp.nsd import files as nsd_files
from bidsapp.storage.text import read_tsv

DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
TABLE = "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
BRICK = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
VAL = "nsddata_stimuli/stimuli/nsd/annotations/captions_val2017.json"
VISUAL = f"nsddata/ppdata/subj01/{SPACE}/roi/prf-visualrois.nii.gz"
NAMES = "nsddata/freesurfer/subj01/label/floc-words.mgz.ctab"
GENERAL = f"nsddata/ppdata/subj02/{SPACE}/roi/nsdgeneral.nii.gz"
FOLDER = f"nsddata_betas/ppdata/subj01/{SPACE}/betas_{BETAS}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> NsdTree:
    return write_nsd(tmp_path_factory.mktemp("nsd") / "nsd")


@pytest.fixture(scope="module")
def converted(whole, tmp_path_factory) -> dict[str, str]:
    """Hashes of a complete conversion."""
    folder = tmp_path_factory.mktemp("bids") / "bids"
    assert run(whole.root, folder) == 0
    return hashes(folder)


@pytest.fixture
def nsd(whole, tmp_path) -> NsdTree:
    """A copy to damage."""
    root = tmp_path / "nsd"
    shutil.copytree(whole.root, root)
    return NsdTree(root, whole.order, whole.images, whole.coco, whole.brick)


def run(*words: object) -> int:
    return cli.main(["nsd2bids", *map(str, words)])


def hashes(folder: Path) -> dict[str, str]:
    found = [p for p in folder.rglob("*") if p.is_file()]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


@pytest.mark.parametrize(
    ("lost", "affected"),
    [
        (f"{FOLDER}/betas_session02.nii.gz", "ses-nsd02"),
        (f"{FOLDER}/ncsnr.nii.gz", "desc-noiseceiling"),
        (VISUAL, "seg-prfvisualrois"),
        (NAMES, "seg-flocwords"),
        (GENERAL, "label-nsdgeneral"),
        (BRICK, "nsd_stimuli.hdf5"),
        (VAL, "captions"),
    ],
)
def test_a_missing_file_is_named_and_a_later_run_completes_the_dataset(
    nsd, converted, tmp_path, capsys, lost, affected
):
    kept = (nsd.root / lost).read_bytes()
    (nsd.root / lost).unlink()
    assert run(nsd.root, tmp_path / "bids") == 1
    said = capsys.readouterr().err
    assert f"Missing: {nsd.root / lost}" in said
    assert ("annotations_trainval2017.zip" if lost == VAL else f"s3://natural-scenes-dataset/{lost}") in said
    assert said.count("Missing:") == 1
    made = hashes(tmp_path / "bids")
    changed = {name for name in converted if made.get(name) != converted[name]}
    also = ("stimuli.tsv", "noiseceiling", "participants.tsv")  # present, repeats and counts follow
    assert changed
    assert all(affected in name or any(a in name for a in also) for name in changed), changed
    assert set(made) <= set(converted)
    present = read_tsv(tmp_path / "bids/stimuli/stimuli.tsv")["present"]
    assert set(present) == {"false" if lost == BRICK else "true"}
    (nsd.root / lost).write_bytes(kept)
    assert run(nsd.root, tmp_path / "bids") == 0
    assert hashes(tmp_path / "bids") == converted


def test_all_missing_files_are_listed_at_once(nsd, tmp_path, capsys):
    lost = [f"{FOLDER}/betas_session01.nii.gz", f"{FOLDER}/betas_session03.nii.gz", VISUAL, NAMES, BRICK, VAL]
    for path in lost:
        (nsd.root / path).unlink()
    assert run(nsd.root, tmp_path / "bids", "--dry-run") == 1
    said = capsys.readouterr().err
    assert [str(nsd.root / p) in said for p in lost] == [True] * len(lost)
    assert said.count("Missing:") == len(lost)
    assert not (tmp_path / "bids").exists()


def test_a_missing_session_does_not_shift_the_next(nsd, tmp_path):
    nsd.betas(1, 1).unlink()
    assert run(nsd.root, tmp_path / "bids") == 1
    assert not (tmp_path / "bids/sub-01/ses-nsd01").exists()
    table = read_tsv(next((tmp_path / "bids/sub-01/ses-nsd02/func").glob("*_trials.tsv")))
    assert table["stim_id"] == [f"stim-nsd{i:05d}" for i in nsd.shown(1, 2)]
    assert read_tsv(tmp_path / "bids/participants.tsv")["n_sessions"] == ["2", "3"]


def test_a_participant_without_betas_is_named_and_the_others_converted(nsd, tmp_path, capsys):
    assert run(nsd.root, tmp_path / "bids", "--participant-label", "02", "03") == 1
    said = capsys.readouterr().err
    assert "subj03" in said
    assert "all sessions, 1 to 3" in said
    assert sorted(p.name for p in (tmp_path / "bids").glob("sub-*")) == ["sub-02"]


def test_files_may_leave_the_download_once_they_are_in_the_dataset(nsd, converted, tmp_path):
    assert run(nsd.root, tmp_path / "bids") == 0
    shutil.rmtree(nsd.root / "nsddata_betas/ppdata/subj01")
    shutil.rmtree(nsd.root / "nsddata/ppdata/subj01")
    (nsd.root / BRICK).unlink()
    assert run(nsd.root, tmp_path / "bids", "--participant-label", "01") == 0
    assert hashes(tmp_path / "bids") == converted


def test_captions_of_an_earlier_run_are_kept_when_a_file_is_missing(nsd, converted, tmp_path, capsys):
    train = VAL.replace("val2017", "train2017")
    kept = (nsd.root / VAL).read_bytes()
    (nsd.root / VAL).unlink()
    assert run(nsd.root, tmp_path / "bids") == 1
    (nsd.root / train).unlink()
    (nsd.root / VAL).write_bytes(kept)
    assert run(nsd.root, tmp_path / "bids") == 0
    assert hashes(tmp_path / "bids") == converted
    (nsd.root / VAL).unlink()
    assert run(nsd.root, tmp_path / "bids") == 0
    assert hashes(tmp_path / "bids") == converted


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_a_volume(path: Path) -> None:
    import nibabel as nib

    image = nib.load(path)
    write_nifti(path, np.asarray(image.dataobj)[..., :-1], image.affine)


def crop(path: Path) -> None:
    import nibabel as nib

    image = nib.load(path)
    write_nifti(path, np.asarray(image.dataobj)[1:], image.affine)


def halve_labels(path: Path) -> None:
    import nibabel as nib

    image = nib.load(path)
    write_nifti(path, np.asarray(image.dataobj) * np.float32(0.5), image.affine)


@pytest.mark.parametrize(
    ("path", "spoil", "says"),
    [
        (f"{FOLDER}/betas_session02.nii.gz", truncate, "truncated"),
        (f"{FOLDER}/betas_session02.nii.gz", drop_a_volume, "29 volumes, but session 2 has 30 trials"),
        (f"{FOLDER}/betas_session02.nii.gz", crop, "shape"),
        (f"{FOLDER}/betas_session02.nii.gz", lambda p: p.write_text("<html>404</html>"), "not a NIfTI file"),
        (f"{FOLDER}/ncsnr.nii.gz", crop, "shape"),
        (f"{FOLDER}/ncsnr.nii.gz", truncate, "truncated"),
        (GENERAL, crop, "shape"),
        (VISUAL, halve_labels, "whole numbers"),
        (NAMES, lambda p: p.write_text("0 Unknown\none OWFA\n"), "line 2"),
        (BRICK, truncate, "HDF5"),
        (VAL, truncate, "JSON"),
        (VAL, lambda p: p.write_text('{"annotations": [{"image_id": 3}]}'), "annotation 0"),
        (VAL, lambda p: p.write_text('{"annotations": {}}'), "annotations"),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_converted(
    nsd, converted, tmp_path, capsys, path: str, spoil: Callable[[Path], object], says: str
):
    spoil(nsd.root / path)
    assert run(nsd.root, tmp_path / "bids") == 1
    said = capsys.readouterr().err
    assert "Not usable: " in said
    assert Path(path).name in said
    assert says.lower() in said.lower()
    made = hashes(tmp_path / "bids")
    assert len(made) >= len(converted) - 4
    assert list((tmp_path / "bids").rglob("*partial*")) == []


def spoil_design(root: Path, **changes: object) -> None:
    content = {k: v for k, v in loadmat(root / DESIGN).items() if not k.startswith("_")}
    content.update(changes)
    savemat(root / DESIGN, {k: v for k, v in content.items() if v is not None})


def shift_table(root: Path) -> None:
    """Like a table that counts from 1 instead of 0."""
    lines = (root / TABLE).read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    place = 5 + 3  # nsdId, behind the four parts of cropBox
    tails = [row[place + 1 :] for row in rows]
    rows = [[*row[: place + 1], *tail] for row, tail in zip(rows, tails[-1:] + tails[:-1], strict=True)]
    (root / TABLE).write_text("\n".join([lines[0], *(",".join(r) for r in rows)]) + "\n")


def count_trials_from_zero(root: Path) -> None:
    """Like a table whose trials count from 0; its shared images are right."""
    lines = (root / TABLE).read_text().splitlines()
    first = lines[0].split(",").index("subject1_rep0") + 3  # cropBox has commas of its own
    rows = [line.split(",") for line in lines[1:]]
    for row in rows:
        row[first:] = [str(int(cell) - 1) if int(cell) else "0" for cell in row[first:]]
    (root / TABLE).write_text("\n".join([lines[0], *(",".join(r) for r in rows)]) + "\n")


CELLS = np.empty((1, 90), object)
CELLS[:] = "x"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda r: truncate(r / DESIGN), "nsd_expdesign.mat"),
        (lambda r: (r / DESIGN).write_bytes(b"\x80\x04."), "MATLAB"),
        (lambda r: h5py.File(r / DESIGN, "w").close(), "MATLAB"),
        (lambda r: spoil_design(r, masterordering=None), "no variable masterordering"),
        (lambda r: spoil_design(r, masterordering=CELLS), "masterordering is a cell"),
        (lambda r: spoil_design(r, masterordering=np.full((1, 90), 37.0)), "masterordering"),
        (lambda r: spoil_design(r, masterordering=np.full((1, 90), 0.0)), "masterordering"),
        (lambda r: spoil_design(r, masterordering=np.full((1, 90), 1.5)), "whole numbers"),
        (lambda r: spoil_design(r, masterordering=np.full((1, 90), np.nan)), "whole numbers"),
        (lambda r: spoil_design(r, sharedix=np.array([[1.0, 2.0]])), "sharedix"),
        (lambda r: spoil_design(r, subjectim=np.ones((8, 36))), "twice"),
        (lambda r: spoil_design(r, masterordering=np.full((1, 90), 1e300)), "whole numbers"),
        (shift_table, "nsd_expdesign.mat"),
        (count_trials_from_zero, "on trial"),
        (lambda r: (r / TABLE).write_text("nsdId,cocoId\n0,1\n"), "cocoSplit"),
        (lambda r: (r / TABLE).write_text("nsdId,cocoId,cocoSplit,shared1000\n0,x,val2017,True\n"), "line 2"),
        (lambda r: (r / TABLE).write_text("nsdId,cocoId,cocoSplit,shared1000\n0,1,../x,True\n"), "line 2"),
        (lambda r: (r / TABLE).write_text("nsdId,cocoId,cocoSplit,shared1000\n0\n"), "line 2"),
        (lambda r: (r / TABLE).write_bytes(b"\xff\xfe\x00"), "CSV"),
        (lambda r: (r / TABLE).write_text((r / TABLE).read_text().replace("True", "False", 1)), "shared1000"),
    ],
)
def test_a_design_that_cannot_be_trusted_stops_everything(nsd, tmp_path, capsys, spoil, says):
    spoil(nsd.root)
    assert run(nsd.root, tmp_path / "bids") == 65
    assert says in capsys.readouterr().err
    assert not (tmp_path / "bids").exists()


@pytest.mark.parametrize("path", [DESIGN, TABLE])
def test_without_the_design_nothing_is_converted(nsd, tmp_path, capsys, path):
    (nsd.root / path).unlink()
    assert run(nsd.root, tmp_path / "bids") == 66
    said = capsys.readouterr().err
    assert str(nsd.root / path) in said
    assert f"s3://natural-scenes-dataset/{path}" in said
    assert not (tmp_path / "bids").exists()


def test_sessions_of_unknown_length_that_do_not_divide_the_design(tmp_path, capsys):
    tree = write_nsd(tmp_path / "nsd", stimpattern=False)
    for subject in (1, 2):
        for session in range(1, N_SESSIONS + 1):
            drop_a_volume(tree.betas(subject, session))
    assert run(tree.root, tmp_path / "bids") == 65
    assert "do not divide" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--participant-label", "09"), 18, "01 to 08"),
        (("--participant-label", "two"), 18, "01 to 08"),
        (("--participant-label", "05"), 66, "subj05"),
        (("--betas", "fithrf"), 66, "betas_fithrf/betas_session01.nii.gz"),
        (("--space", "func1mm"), 66, "func1mm"),
        (("--captions", "nowhere.json"), 66, "nowhere.json"),
        (("--betas", "best"), 64, "best"),
        (("--link", "soft"), 64, "soft"),
    ],
)
def test_what_cannot_be_converted_at_all(whole, tmp_path, capsys, words, code, says):
    assert run(whole.root, tmp_path / "bids", *words) == code
    assert says in capsys.readouterr().err
    assert not (tmp_path / "bids").exists()


def test_a_missing_folder(tmp_path, capsys):
    assert run(tmp_path / "nowhere", tmp_path / "bids") == 66
    assert "nowhere" in capsys.readouterr().err


def test_only_its_own_datasets_are_completed(whole, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    assert run(whole.root, other) == 73
    assert "does not hold a dataset made by nsd2bids" in capsys.readouterr().err
    assert [p.name for p in other.iterdir()] == ["thesis.tex"]
    assert run(whole.root, other / "thesis.tex") == 73
    assert run(whole.root, whole.root / "bids") == 73
    assert run(whole.root, whole.root) == 73
    assert not (whole.root / "bids").exists()
    assert run(whole.root, tmp_path / "bids", "--participant-label", "1") == 0
    before = hashes(tmp_path / "bids")
    capsys.readouterr()
    assert run(whole.root, tmp_path / "bids", "--stimuli", "png") == 73
    assert "stimuli as hdf5" in capsys.readouterr().err
    assert hashes(tmp_path / "bids") == before


def test_nothing_is_written_through_links_out_of_the_dataset(whole, tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert run(whole.root, tmp_path / "bids", "--participant-label", "1") == 0
    (tmp_path / "bids" / "sub-02").symlink_to(elsewhere)
    assert run(whole.root, tmp_path / "bids") == 73
    assert "sub-02" in capsys.readouterr().err
    assert list(elsewhere.iterdir()) == []


def test_an_interrupted_run_leaves_no_partial_files_and_the_next_completes_it(
    whole, converted, tmp_path, monkeypatch
):
    place, calls = nsd_files.Writer.link_or_copy, []

    def break_off(self: nsd_files.Writer, source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 5:
            raise KeyboardInterrupt
        place(self, source, target)

    monkeypatch.setattr(nsd_files.Writer, "link_or_copy", break_off)
    assert run(whole.root, tmp_path / "bids") == 130
    made = hashes(tmp_path / "bids")
    assert 0 < len(made) < len(converted)
    assert {k: v for k, v in converted.items() if k in made} == made
    monkeypatch.undo()
    assert run(whole.root, tmp_path / "bids") == 0
    assert hashes(tmp_path / "bids") == converted


def test_a_full_disk_leaves_no_partial_files(whole, tmp_path, monkeypatch, capsys):
    import errno
    import os

    def full(source: object, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    assert run(whole.root, tmp_path / "bids", "--link", "copy") == 74
    assert "No space left" in capsys.readouterr().err
    assert list((tmp_path / "bids").rglob("*statmap.nii.gz")) == []


def test_copies_that_do_not_fit_on_the_disk_are_refused(whole, tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert run(whole.root, tmp_path / "bids", "--link", "copy") == 74
    assert "Nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "bids").exists()


def test_hdf5_betas_are_used_until_nifti_exists(nsd, converted, tmp_path, capsys):
    content = nsd.betas(1, 2).read_bytes()
    write_hdf5(nsd.betas(1, 2, ".hdf5"), nsd.betas(1, 2))
    nsd.betas(1, 2).unlink()
    folder = tmp_path / "bids"
    assert run(nsd.root, folder) == 0
    assert "1 of 3 sessions have only .hdf5 betas" in capsys.readouterr().err
    found = [p.name for p in (folder / "sub-01/ses-nsd02/func").iterdir() if "statmap" in p.name]
    assert sorted(Path(n).suffix for n in found) == [".hdf5", ".json"]
    nsd.betas(1, 2).write_bytes(content)
    assert run(nsd.root, folder) == 0
    assert hashes(folder) == converted


def test_nifti_in_the_dataset_is_kept_if_nsd_has_only_hdf5(nsd, converted, tmp_path):
    assert run(nsd.root, tmp_path / "bids") == 0
    write_hdf5(nsd.betas(1, 2, ".hdf5"), nsd.betas(1, 2))
    nsd.betas(1, 2).unlink()
    assert run(nsd.root, tmp_path / "bids") == 0
    assert hashes(tmp_path / "bids") == converted


def test_a_subject_with_only_hdf5_betas_has_the_affine_of_the_mask(nsd, converted, tmp_path):
    for session in range(1, N_SESSIONS + 1):
        write_hdf5(nsd.betas(2, session, ".hdf5"), nsd.betas(2, session))
        nsd.betas(2, session).unlink()
    assert run(nsd.root, tmp_path / "bids", "--participant-label", "2") == 0
    made = hashes(tmp_path / "bids")
    maps = [name for name in made if name.endswith(("mask.nii.gz", "dseg.nii.gz", "ceiling_statmap.nii.gz"))]
    assert len(maps) == 1 + len(LABELS) + 1
    assert all(made[name] == converted[name] for name in maps)


def test_hdf5_betas_of_another_form_are_refused(nsd, tmp_path, capsys):
    with h5py.File(nsd.betas(1, 2, ".hdf5"), "w") as file:
        file["betas"] = h5py.ExternalLink("/etc/passwd", "betas")
    nsd.betas(1, 2).unlink()
    assert run(nsd.root, tmp_path / "bids") == 1
    assert "betas_session02.hdf5" in capsys.readouterr().err
    assert not (tmp_path / "bids/sub-01/ses-nsd02").exists()


def test_maps_get_the_affine_of_the_betas(nsd, converted, tmp_path, capsys):
    import nibabel as nib

    path = nsd.roi(1, "nsdgeneral")
    image = nib.load(path)
    write_nifti(path, np.asarray(image.dataobj), np.eye(4))
    assert run(nsd.root, tmp_path / "bids") == 0
    assert "its affine differs" in capsys.readouterr().err
    assert hashes(tmp_path / "bids") == converted


def test_labels_without_a_name_are_kept(nsd, tmp_path, capsys):
    (nsd.root / NAMES).write_text("0 Unknown 0 0 0 0\n1 Word form area, left 255 0 0 0\n")
    assert run(nsd.root, tmp_path / "bids", "--participant-label", "1") == 0
    assert "label<n>" in capsys.readouterr().err
    table = read_tsv(next((tmp_path / "bids/sub-01/func").glob("*_seg-flocwords_dseg.tsv")))
    assert table == {"index": ["1", "2", "3"], "name": ["Word form area, left", "label2", "label3"]}


def test_images_without_captions_are_counted(nsd, tmp_path, capsys):
    content = json.loads((nsd.root / VAL).read_text())
    lost = content["annotations"][0]["image_id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != lost]
    (nsd.root / VAL).write_text(json.dumps(content))
    assert run(nsd.root, tmp_path / "bids") == 0
    said = capsys.readouterr().err
    assert ("1 images have no caption" in said) == (lost != 999_999_000)
    if lost == 999_999_000:
        assert "no caption" not in said
