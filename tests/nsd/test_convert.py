"""nsd2bids on a synthetic download of NSD: what it writes, and that it writes nothing twice."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from helpers.nsd_tree import LABELS, N_SESSIONS, N_SHARED, N_TRIALS, SHAPES, SPACE, NsdTree, write_nsd
from PIL import Image

from bidsapp import cli
from bidsapp.bids import inputs
from bidsapp.data.stimuli import StimulusSet
from bidsapp.nsd.files import Writer
from bidsapp.storage.nifti import load_volume
from bidsapp.storage.text import read_tsv

BETAS = "sub-{s}/ses-nsd{n:02d}/func/sub-{s}_ses-nsd{n:02d}_task-nsdcore_space-func1pt8mm_stat-effect_"


@pytest.fixture(scope="module")
def nsd(tmp_path_factory) -> NsdTree:
    return write_nsd(tmp_path_factory.mktemp("nsd") / "nsd")


@pytest.fixture(scope="module")
def bids(nsd, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "bids"
    assert run(nsd.root, folder) == 0
    return folder


def run(*words: object) -> int:
    return cli.main(["nsd2bids", *map(str, words)])


def betas(folder: Path, subject: str, session: int, extension: str = ".nii.gz") -> Path:
    return folder / (BETAS.format(s=subject, n=session) + f"desc-singletrial_statmap{extension}")


def hashes(folder: Path) -> dict[str, str]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def states(folder: Path) -> dict[str, tuple[int, int]]:
    files = [p for p in folder.rglob("*") if not p.is_dir()]
    return {p.relative_to(folder).as_posix(): (p.lstat().st_ino, p.lstat().st_mtime_ns) for p in files}


def mapped(folder: Path, subject: int, suffix: str) -> Path:
    return folder / f"sub-{subject:02d}/func/sub-{subject:02d}_task-nsdcore_space-{SPACE}_{suffix}"


@pytest.mark.parametrize("link", ["symbolic", "copy"])
def test_the_validator_passes_for_other_links_and_png(nsd, tmp_path, validate, link):
    assert run(nsd.root, tmp_path / "bids", "--stimuli", "png", "--link", link) == 0
    assert validate(tmp_path / "bids") == []


@pytest.mark.parametrize("subject", [1, 2])
def test_trials_name_the_images_of_the_design(nsd, bids, subject):
    for session in range(1, N_SESSIONS + 1):
        folder = bids / f"sub-{subject:02d}/ses-nsd{session:02d}/func"
        table = read_tsv(next(folder.glob("*_trials.tsv")))
        start = (session - 1) * N_TRIALS
        literal = [int(nsd.images[subject - 1][nsd.order[start + t] - 1]) for t in range(N_TRIALS)]
        assert table["stim_id"] == [f"stim-nsd{i:05d}" for i in literal]
        assert table["beta_index"] == [str(t) for t in range(N_TRIALS)]
        runs = [r for r in range(1, 13) for _ in range(3 if r % 2 else 2)]
        assert table["run"] == [str(r) for r in runs]
        assert set(table["session"]) == {f"nsd{session:02d}"}


def test_stimuli_of_all_of_nsd(nsd, bids):
    table = read_tsv(bids / "stimuli" / "stimuli.tsv")
    n = int(nsd.images.max())
    assert table["stimulus_id"] == [f"stim-nsd{i:05d}" for i in range(1, n + 1)]
    assert table["NSD_id"] == [str(i) for i in range(1, n + 1)]
    assert table["row"] == [str(i) for i in range(n)]
    assert table["COCO_id"] == [str(nsd.coco[i][0]) for i in range(1, n + 1)]
    assert table["COCO_split"] == [nsd.coco[i][1] for i in range(1, n + 1)]
    assert {i + 1 for i, s in enumerate(table["split"]) if s == "test"} == set(nsd.images[0, :N_SHARED])
    assert set(table["split"]) == {"train", "test"}
    stimuli = StimulusSet.open(bids)
    for image in (1, n // 2, n):
        shown = stimuli.images([f"nsd{image:05d}"])[0]
        assert np.array_equal(shown, nsd.brick[image - 1])
        assert stimuli.captions(f"nsd{image:05d}") == tuple(nsd.coco[image][2])


def test_names_and_captions_do_not_depend_on_the_subjects(nsd, bids, tmp_path):
    for label in ("2", "subj01"):
        assert run(nsd.root, tmp_path / "bids", "--participant-label", label) == 0
    assert hashes(tmp_path / "bids") == hashes(bids)


def test_two_parallel_jobs_write_the_same_as_one(nsd, bids, tmp_path):
    command = [sys.executable, "-m", "bidsapp", "nsd2bids", str(nsd.root), str(tmp_path / "bids")]
    jobs = [subprocess.Popen([*command, "--participant-label", label]) for label in ("01", "02")]
    assert [job.wait(timeout=300) for job in jobs] == [0, 0]
    assert hashes(tmp_path / "bids") == hashes(bids)


@pytest.mark.parametrize("subject", [1, 2])
def test_regions_as_the_app_reads_them(nsd, bids, subject):
    values = nib.load(nsd.roi(subject, "prf-visualrois")).get_fdata()
    faces = nib.load(nsd.roi(subject, "floc-faces")).get_fdata()
    expected = {
        "nsdgeneral": nib.load(nsd.roi(subject, "nsdgeneral")).get_fdata() > 0,
        "V1": np.isin(values, (1, 2)),
        "V2": np.isin(values, (3, 4)),
        "V3": np.isin(values, (5, 6)),
        "hV4": values == 7,
        "V3d": values == 6,
        "flocfaces": faces > 0,
        "FFA-1": faces == 2,
        "ecc4+": nib.load(nsd.roi(subject, "prf-eccrois")).get_fdata() == 5,
    }
    dataset = inputs.open_dataset(
        bids, inputs.InputSelection(participants=[f"{subject:02d}"], roi=list(expected))
    )
    assert dataset.problems == ()
    rois = dataset.rois[f"{subject:02d}"]
    for name, inside in expected.items():
        assert inside.any()
        assert np.array_equal(rois[name].inside(load_volume(rois[name].path)), inside), name


def test_nothing_outside_is_in_a_segmentation(nsd, bids):
    for name in LABELS:
        path = mapped(bids, 1, f"seg-{name.replace('-', '')}_dseg.nii.gz")
        source = nib.load(nsd.roi(1, name)).get_fdata()
        assert source.min() == -1
        assert np.array_equal(nib.load(path).get_fdata(), np.maximum(source, 0))
        table = read_tsv(mapped(bids, 1, f"seg-{name.replace('-', '')}_dseg.tsv"))
        assert table == {
            "index": [str(i + 1) for i in range(len(LABELS[name]))],
            "name": list(LABELS[name]),
        }
    assert sorted(np.unique(nib.load(mapped(bids, 1, "label-nsdgeneral_mask.nii.gz")).dataobj)) == [0, 1]


@pytest.mark.parametrize("subject", [1, 2])
def test_noise_ceiling_of_the_test_images(nsd, bids, subject):
    ncsnr = nib.load(nsd.betas(subject, 1).with_name("ncsnr.nii.gz")).get_fdata()
    shown = np.concatenate([nsd.shown(subject, s + 1) for s in range(N_SESSIONS)])
    repeats = [int((shown == i).sum()) for i in nsd.images[0, :N_SHARED]]
    a, b, c = (repeats.count(n) for n in (3, 2, 1))
    assert a + b + c == N_SHARED
    expected = 100 * ncsnr**2 / (ncsnr**2 + (a / 3 + b / 2 + c / 1) / (a + b + c))
    made = nib.load(mapped(bids, subject, "desc-noiseceiling_statmap.nii.gz")).get_fdata()
    assert np.array_equal(np.isnan(made), np.isnan(expected))
    assert np.nanmax(np.abs(made - expected)) < 1e-4
    sidecar = json.loads(mapped(bids, subject, "desc-noiseceiling_statmap.json").read_text())
    assert sidecar["Units"] == "percent"
    assert sidecar["ImagesByRepeats"] == {str(n): repeats.count(n) for n in (1, 2, 3) if repeats.count(n)}
    assert sidecar["NumberOfRepeats"] == pytest.approx(N_SHARED / (a / 3 + b / 2 + c))


def test_the_app_sees_scale_reference_and_ceiling(bids):
    dataset = inputs.open_dataset(bids)
    for subject in dataset.subjects:
        assert [s.scale for s in subject.sessions] == [300.0] * N_SESSIONS
        assert subject.noise_ceiling is not None
        assert subject.spatial_reference == (
            f"bids::sub-{subject.label}/func/sub-{subject.label}_task-nsdcore_space-func1pt8mm_"
            "label-nsdgeneral_mask.nii.gz"
        )
    table = read_tsv(bids / "participants.tsv")
    assert table["participant_id"] == ["sub-01", "sub-02"]
    assert table["n_trials"] == [str(N_SESSIONS * N_TRIALS)] * 2


def test_betas_are_hard_links_and_unchanged(nsd, bids):
    for session in range(1, N_SESSIONS + 1):
        assert betas(bids, "01", session).samefile(nsd.betas(1, session))
        assert not betas(bids, "01", session).is_symlink()
        shape = nib.load(betas(bids, "01", session)).shape
        assert shape == (*SHAPES[1], N_TRIALS)


@pytest.mark.parametrize("link", ["hard", "symbolic", "copy"])
def test_a_second_run_changes_nothing(nsd, tmp_path, link, capsys):
    folder = tmp_path / "bids"
    assert run(nsd.root, folder, "--link", link) == 0
    before, contents = states(folder), hashes(folder)
    source = betas(folder, "02", 3)
    assert source.is_symlink() == (link == "symbolic")
    assert (source.stat().st_ino == nsd.betas(2, 3).stat().st_ino) == (link != "copy")
    capsys.readouterr()
    assert run(nsd.root, folder, "--link", link) == 0
    assert "files written: 0," in capsys.readouterr().out
    assert states(folder) == before
    assert hashes(folder) == contents


def test_symbolic_links_replace_impossible_hard_links_with_a_note(nsd, tmp_path, monkeypatch, capsys):
    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source, None, target)

    monkeypatch.setattr(os, "link", refuse)
    assert run(nsd.root, tmp_path / "bids") == 0
    said = capsys.readouterr().err
    assert said.count("symbolic links were made") == 1
    assert betas(tmp_path / "bids", "01", 1).is_symlink()
    assert betas(tmp_path / "bids", "01", 1).samefile(nsd.betas(1, 1))


def test_a_betas_file_that_changed_is_copied_again(tmp_path):
    tree = write_nsd(tmp_path / "nsd")
    assert run(tree.root, tmp_path / "bids", "--link", "copy") == 0
    content = tree.betas(2, 2).read_bytes()
    tree.betas(1, 2).unlink()
    tree.betas(1, 2).write_bytes(tree.betas(1, 1).read_bytes())
    assert run(tree.root, tmp_path / "bids", "--link", "copy") == 0
    assert betas(tmp_path / "bids", "01", 2).read_bytes() == tree.betas(1, 1).read_bytes()
    assert betas(tmp_path / "bids", "02", 2).read_bytes() == content


def test_a_hard_link_to_a_symbolic_link_links_the_file(nsd, tmp_path):
    store, target = tmp_path / "store.nii.gz", tmp_path / "bids" / "x.nii.gz"
    store.symlink_to(nsd.betas(1, 1))
    Writer(tmp_path / "bids", "hard").link_or_copy(store, target)
    assert not target.is_symlink()
    assert target.samefile(nsd.betas(1, 1))


def test_png_of_the_images_shown_and_no_others(nsd, tmp_path, capsys):
    folder = tmp_path / "bids"
    words = ("--participant-label", "01", "--stimuli", "png")
    assert run(nsd.root, folder, *words) == 0
    shown = {int(i) for s in range(N_SESSIONS) for i in nsd.shown(1, s + 1)}
    there = sorted(p.name for p in (folder / "stimuli").glob("*.png"))
    assert there == [f"stim-nsd{i:05d}_image.png" for i in sorted(shown)]
    table = read_tsv(folder / "stimuli" / "stimuli.tsv")
    assert {int(i) for i, p in zip(table["NSD_id"], table["present"], strict=True) if p == "true"} == shown
    assert set(read_tsv(folder / "stimuli" / "captions.tsv")["stimulus_id"]) == {
        f"stim-nsd{i:05d}" for i in shown
    }
    for image in shown:
        path = folder / "stimuli" / f"stim-nsd{image:05d}_image.png"
        assert np.array_equal(np.asarray(Image.open(path)), nsd.brick[image - 1])
    # An interruption leaves some out; the second run writes these alone.
    lost = folder / "stimuli" / there[3]
    content = lost.read_bytes()
    lost.unlink()
    kept = (folder / "stimuli" / there[4]).stat().st_ino
    capsys.readouterr()
    assert run(nsd.root, folder, *words) == 0
    assert "files written: 1," in capsys.readouterr().out
    assert lost.read_bytes() == content
    assert (folder / "stimuli" / there[4]).stat().st_ino == kept
    # A second subject adds its own.
    assert run(nsd.root, folder, "--stimuli", "png") == 0
    shown |= {int(i) for s in range(N_SESSIONS) for i in nsd.shown(2, s + 1)}
    assert len(list((folder / "stimuli").glob("*.png"))) == len(shown)
    assert len(StimulusSet.open(folder).ids) == len(shown)


def test_without_stimpattern_the_betas_give_the_session_lengths(tmp_path):
    tree = write_nsd(tmp_path / "nsd", stimpattern=False)
    assert run(tree.root, tmp_path / "bids") == 0
    table = read_tsv(next((tmp_path / "bids/sub-02/ses-nsd03/func").glob("*_trials.tsv")))
    assert table["stim_id"] == [f"stim-nsd{i:05d}" for i in tree.shown(2, 3)]
    assert set(table["run"]) == {"n/a"}


def test_a_dry_run_writes_nothing(nsd, tmp_path, capsys):
    before = states(nsd.root)
    assert run(nsd.root, tmp_path / "bids", "--dry-run") == 0
    assert "sub-02: 3 sessions, 90 trials" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert states(nsd.root) == before


def test_captions_from_files_anywhere(nsd, bids, tmp_path):
    where = tmp_path / "coco"
    where.mkdir()
    source = nsd.root / "nsddata_stimuli/stimuli/nsd/annotations"
    for name in ("captions_train2017.json", "captions_val2017.json"):
        (where / f"my_{name}").write_bytes((source / name).read_bytes())
    files = sorted(where.iterdir())
    assert run("--captions", *files, nsd.root, tmp_path / "bids", "--participant-label", "1") == 0
    assert (tmp_path / "bids/stimuli/captions.tsv").read_bytes() == (
        bids / "stimuli/captions.tsv"
    ).read_bytes()


def test_all_betas_versions_are_converted(tmp_path):
    tree = write_nsd(tmp_path / "nsd")
    folder = tree.betas(1, 1).parent
    folder.rename(folder.with_name("betas_assumehrf"))
    assert run(tree.root, tmp_path / "bids", "--betas", "assumehrf") == 0
    assert sorted(p.name for p in (tmp_path / "bids").glob("sub-*")) == ["sub-01"]
    sidecar = json.loads(betas(tmp_path / "bids", "01", 1, ".json").read_text())
    assert sidecar["Sources"] == [
        "bids:nsd:nsddata_betas/ppdata/subj01/func1pt8mm/betas_assumehrf/betas_session01.nii.gz"
    ]


def test_the_brick_is_read_by_its_first_axis_whatever_its_size(tmp_path):
    tree = write_nsd(tmp_path / "nsd")
    path = tree.root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
    path.unlink()
    wide = np.zeros((len(tree.coco), 6, 10, 3), np.uint8)
    wide[:] = (np.arange(len(tree.coco)) % 256)[:, None, None, None]
    with h5py.File(path, "w") as file:
        file.create_dataset("imgBrick", data=wide)
    assert run(tree.root, tmp_path / "bids", "--participant-label", "2", "--stimuli", "png") == 0
    image = int(tree.shown(2, 1)[0])
    shown = np.asarray(Image.open(tmp_path / f"bids/stimuli/stim-nsd{image:05d}_image.png"))
    assert np.array_equal(shown, wide[image - 1])
