"""nsd2bids and files that look right at first: the message, its path, and what is left out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from helpers.nsd_tree import BETAS, SPACE, NsdTree, write_hdf5, write_nifti, write_nsd
from scipy.io import loadmat, savemat

from bidsapp import cli
from bidsapp.storage.text import read_tsv

DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
TABLE = "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
COCO = "nsddata_stimuli/stimuli/nsd/annotations"
NAMES = "nsddata/freesurfer/subj01/label/floc-words.mgz.ctab"
FOLDER = f"nsddata_betas/ppdata/subj01/{SPACE}/betas_{BETAS}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> NsdTree:
    return write_nsd(tmp_path_factory.mktemp("nsd") / "nsd")


@pytest.fixture
def nsd(whole, tmp_path) -> NsdTree:
    """A copy to damage."""
    shutil.copytree(whole.root, tmp_path / "nsd")
    return NsdTree(tmp_path / "nsd", whole.order, whole.images, whole.coco, whole.brick)


def run(*words: object) -> int:
    return cli.main(["nsd2bids", *map(str, words)])


def entry(said: str, path: Path) -> str:
    """The message about the one file that is not usable."""
    entries = said.split("Not usable: ")[1:]
    assert len(entries) == 1, said
    assert entries[0].startswith(f"{path}\n"), said
    return entries[0]


def as_percent(path: Path) -> None:
    image = nib.load(path)
    write_nifti(path, (np.asarray(image.dataobj) / 300).astype(np.float32), image.affine)


def as_percent_in_hdf5(path: Path) -> None:
    as_percent(path)
    write_hdf5(path.with_suffix("").with_suffix(".hdf5"), path)
    path.unlink()


@pytest.mark.parametrize(("spoil", "suffix"), [(as_percent, ".nii.gz"), (as_percent_in_hdf5, ".hdf5")])
def test_betas_that_were_divided_already_are_refused(nsd, tmp_path, capsys, spoil, suffix):
    spoil(nsd.betas(1, 2))
    assert run(nsd.root, tmp_path / "bids") == 1
    assert "float32" in entry(capsys.readouterr().err, nsd.betas(1, 2, suffix))
    assert not (tmp_path / "bids/sub-01/ses-nsd02").exists()
    assert (tmp_path / "bids/sub-01/ses-nsd03").is_dir()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: b'{"annotations": {}}', "annotations"),
        (lambda b: b.replace(b"seen", b"se\xe9n"), "UTF-8"),
        (lambda b: b.replace(b"seen", b"\\ud800"), "not valid Unicode"),
    ],
)
def test_a_damaged_caption_file_is_named_and_the_other_is_used(
    nsd, tmp_path, capsys, change: Callable[[bytes], bytes], says
):
    path = nsd.root / COCO / "captions_val2017.json"
    path.write_bytes(change(path.read_bytes()))
    assert run(nsd.root, tmp_path / "bids") == 1
    said = capsys.readouterr().err
    assert says in entry(said, path)
    assert "Missing: " not in said
    having = {
        int(i.removeprefix("stim-nsd"))
        for i in read_tsv(tmp_path / "bids/stimuli/captions.tsv")["stimulus_id"]
    }
    assert having == {i for i, (_, split, _) in nsd.coco.items() if split == "train2017"}


def test_a_damaged_table_of_names_is_named(nsd, tmp_path, capsys):
    path = nsd.root / NAMES
    path.write_bytes(path.read_bytes().replace(b"OWFA", b"OW\xc4"))
    assert run(nsd.root, tmp_path / "bids") == 1
    assert "UTF-8" in entry(capsys.readouterr().err, path)


def test_tables_with_windows_line_ends_and_a_mark(nsd, whole, tmp_path):
    for name in (TABLE, NAMES):
        path = nsd.root / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert run(nsd.root, tmp_path / "bids") == run(whole.root, tmp_path / "whole") == 0
    for path in (tmp_path / "whole").rglob("*.tsv"):
        assert (tmp_path / "bids" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()


def test_a_design_of_fewer_subjects_is_refused(nsd, tmp_path, capsys):
    content = {k: v for k, v in loadmat(nsd.root / DESIGN).items() if not k.startswith("_")}
    savemat(nsd.root / DESIGN, {**content, "subjectim": content["subjectim"][:1]})
    assert run(nsd.root, tmp_path / "bids") == 65
    said = capsys.readouterr().err
    assert str(nsd.root / DESIGN) in said
    assert "1 of NSD's 8 subjects" in said
    assert not (tmp_path / "bids").exists()


def test_a_table_that_cannot_be_compared_with_the_design_is_noted(nsd, tmp_path, capsys):
    lines = (nsd.root / TABLE).read_text().splitlines()
    place = 24  # columns of repeats, the last ones
    (nsd.root / TABLE).write_text("".join(",".join(line.split(",")[:-place]) + "\n" for line in lines))
    assert run(nsd.root, tmp_path / "bids") == 0
    assert "could not be compared" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
def test_a_ceiling_that_is_not_a_number_is_unknown(nsd, tmp_path):
    path = nsd.root / FOLDER / "ncsnr.nii.gz"
    image = nib.load(path)
    values = np.asarray(image.dataobj).copy()
    values[3, 3, 3], values[4, 4, 4] = np.inf, -0.5
    write_nifti(path, values, image.affine)
    assert run(nsd.root, tmp_path / "bids") == 0
    made = nib.load(
        next((tmp_path / "bids/sub-01/func").glob("*_desc-noiseceiling_statmap.nii.gz"))
    ).get_fdata()
    assert np.isnan(made[[3, 4], [3, 4], [3, 4]]).all()
    assert np.isnan(made).sum() == np.isnan(values).sum() + 2


@pytest.mark.parametrize("link", ["copy", "hard"])
def test_symbolic_links_are_replaced_by_what_is_requested_now(nsd, tmp_path, capsys, link):
    bids = tmp_path / "bids"
    assert run(nsd.root, bids, "--link", "symbolic") == 0
    placed = [p for p in bids.rglob("*") if p.is_symlink()]
    assert len(placed) == 7  # two subjects' sessions and the brick
    assert run(nsd.root, bids, "--link", link) == 0
    assert "files written: 7," in capsys.readouterr().out
    assert not any(p.is_symlink() for p in placed)
    shutil.rmtree(nsd.root)
    with h5py.File(bids / "stimuli/nsd_stimuli.hdf5") as file:
        assert np.array_equal(file["imgBrick"][:], nsd.brick)


def test_a_folder_that_cannot_be_created(whole, capsys):
    assert run(whole.root, "/proc/nothing/bids") == 73
    assert "/proc/nothing/bids cannot be created" in capsys.readouterr().err


def test_a_dataset_without_its_images_is_reported(nsd, tmp_path, capsys):
    (nsd.root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5").unlink()
    bids = tmp_path / "bids"
    assert run(nsd.root, bids) == 1
    words = [bids, tmp_path / "out", "participant", "--recipe", "embedded", "--skip-bids-validation"]
    assert cli.main(list(map(str, words))) in (65, 66)
    said = capsys.readouterr().err
    assert f"{bids / 'stimuli/stimuli.tsv'}: the images of all 246 stimuli are missing" in said


def test_hdf5_betas_with_reversed_axes_are_named(nsd, tmp_path, capsys):
    path = nsd.betas(1, 2, ".hdf5")
    with h5py.File(path, "w") as file:
        file["betas"] = np.asarray(nib.load(nsd.betas(1, 2)).dataobj)
    nsd.betas(1, 2).unlink()
    assert run(nsd.root, tmp_path / "bids") == 1
    assert "order (x, y, z, trials)" in entry(capsys.readouterr().err, path)
    assert not (tmp_path / "bids/sub-01/ses-nsd02").exists()
