"""NSD's files through nsd2bids and both levels, against a recomputation from NSD's files alone."""

from __future__ import annotations

import tomllib
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import scipy.io
from helpers.nsd_tree import BETAS, N_SESSIONS, N_SHARED, N_TRIALS, SPACE, NsdTree, write_nsd

from bidsapp import cli
from bidsapp.bids.inputs import InputSelection, open_dataset
from bidsapp.config import RECIPES
from bidsapp.data.splits import make_split
from bidsapp.data.stimuli import StimulusSet
from bidsapp.models.suite import EMBEDDED
from bidsapp.outputs.provenance import write_settings
from bidsapp.storage.text import read_tsv

pytestmark = pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded weights are not there")


@pytest.fixture(scope="module")
def nsd(tmp_path_factory) -> NsdTree:
    return write_nsd(tmp_path_factory.mktemp("nsd") / "nsd")


@pytest.fixture(scope="module")
def run(nsd, tmp_path_factory, validate) -> Path:
    """Folder with the converted dataset, and the output and work folders of both levels."""
    folder = tmp_path_factory.mktemp("run")
    assert cli.main(["nsd2bids", str(nsd.root), str(folder / "bids")]) == 0
    assert validate(folder / "bids") == []
    words = [str(folder / "bids"), str(folder / "out"), "--device", "cpu", "--n-cpus", "1"]
    # The embedded recipe, with few steps of diffusion and few images in its controls.
    recipe = tomllib.loads((RECIPES / "embedded.toml").read_text())
    recipe["diffusion"]["steps"], recipe["controls"]["max_images"] = 4, 2
    recipe["metrics"]["networks"] = ["small_clip"]
    write_settings(folder / "quick.toml", recipe)
    options = ["--recipe", str(folder / "quick.toml"), "-w", str(folder / "work"), "--skip-bids-validation"]
    assert cli.main([*words, "participant", *options, "--keep-work"]) == 0
    assert cli.main([*words, "group"]) == 0
    return folder


def recomputed(root: Path, subject: int) -> dict[str, dict[int, np.ndarray]]:
    """Z-scored averages by nsdId (from 0), as Brain-Diffuser's prepare_nsddata.py and paper have them.

    Voxels are in the order of boolean indexing.
    """
    design = scipy.io.loadmat(root / "nsddata/experiments/nsd/nsd_expdesign.mat")
    order, images = design["masterordering"].ravel().astype(int), design["subjectim"].astype(int)
    trials: dict[str, dict[int, list[int]]] = {"train": {}, "test": {}}
    for trial in range(N_SESSIONS * N_TRIALS):
        nsd_id = images[subject - 1, order[trial] - 1] - 1
        kind = "train" if order[trial] > N_SHARED else "test"  # of NSD's 1,000 here: N_SHARED
        trials[kind].setdefault(nsd_id, []).append(trial)
    mask = nib.load(root / f"nsddata/ppdata/subj{subject:02d}/{SPACE}/roi/nsdgeneral.nii.gz").get_fdata()
    folder = root / f"nsddata_betas/ppdata/subj{subject:02d}/{SPACE}/betas_{BETAS}"
    sessions = [nib.load(folder / f"betas_session{s + 1:02d}.nii.gz") for s in range(N_SESSIONS)]
    betas = np.concatenate([s.get_fdata()[mask > 0].T for s in sessions]) / 300
    means = {k: {i: betas[sorted(t)].mean(axis=0) for i, t in own.items()} for k, own in trials.items()}
    train = np.array(list(means["train"].values()))
    centre, spread = train.mean(axis=0), train.std(axis=0, ddof=1)
    return {k: {i: (m - centre) / spread for i, m in own.items()} for k, own in means.items()}


@pytest.mark.parametrize("subject", [1, 2])
def test_responses_equal_a_recomputation_from_nsds_files(run, nsd, subject):
    label = f"{subject:02d}"
    dataset = open_dataset(run / "bids", InputSelection(participants=[label]))
    stimuli = StimulusSet.open(run / "bids")
    seen = {i for s in dataset.subjects[0].sessions for i in s.stimulus_ids}
    split = make_split(stimuli, seen)
    expected = recomputed(nsd.root, subject)
    # The app keeps voxels in Fortran order, boolean indexing in C order.
    places = np.argwhere(nib.load(nsd.roi(subject, "nsdgeneral")).get_fdata() > 0)
    fortran = np.lexsort((places[:, 0], places[:, 1], places[:, 2]))
    for kind, ids in (("train", split.train), ("test", split.test)):
        made = np.load(run / "work" / f"sub-{label}" / "zscore" / f"{kind}.npy")
        nsd_ids = [int(i.removeprefix("nsd")) - 1 for i in ids]
        assert sorted(nsd_ids) == sorted(expected[kind])
        wanted = np.array([expected[kind][i][fortran] for i in nsd_ids])
        assert made.shape == wanted.shape
        assert wanted.shape[1] == len(places) > 50
        assert np.abs(made - wanted).max() < 1e-6
        with h5py.File(nsd.root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5") as file:
            shown = file["imgBrick"][:][nsd_ids]
        assert np.array_equal(stimuli.images(ids), shown)
        for stimulus, nsd_id in zip(ids, nsd_ids, strict=True):
            assert stimuli.captions(stimulus) == tuple(nsd.coco[nsd_id + 1][2])
    assert len(split.test) == N_SHARED


def test_both_levels_ran(run, nsd):
    table = read_tsv(run / "out" / "phenotype" / "reconmetrics.tsv")
    assert table["participant_id"] == ["sub-01", "sub-02"]
    shared = [f"stim-nsd{i:05d}" for i in nsd.images[0, :N_SHARED]]
    for label in ("01", "02"):
        func = run / "out" / f"sub-{label}" / "func"
        assert len(list(func.glob("*_desc-recon_image.png"))) == N_SHARED
        scores = read_tsv(next(func.glob("*_desc-recon_metrics.tsv")))
        assert sorted(scores["stimulus_id"]) == sorted(shared)
