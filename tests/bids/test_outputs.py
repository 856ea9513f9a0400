"""Names, sidecars and descriptions of the output dataset."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bidsapp.bids import descriptions, outputs
from bidsapp.bids.inputs import open_dataset
from bidsapp.bids.outputs import OutputTree
from bidsapp.errors import AppError, ExitCode
from bidsapp.records import Mask
from bidsapp.storage.text import read_tsv

Make = Callable[..., Path]


def write_all(source: Path, out: Path) -> None:
    """All kinds of output of all subjects, with made-up contents."""
    dataset = open_dataset(source)
    descriptions.write_dataset_files(out, source_dir=source, version="0.1.0", container={"Type": "docker"})
    rng = np.random.default_rng(0)
    for subject in dataset.subjects:
        tree = OutputTree(out, subject.label, subject.task, subject.space)
        mask = nib.load(subject.masks["nsdgeneral"])
        outputs.write_mask(
            tree,
            "nsdgeneral",
            Mask(np.asarray(mask.dataobj) > 0, mask.affine),
            sources=[outputs.source_uri(subject.masks["nsdgeneral"], source)],
            spatial_reference=subject.spatial_reference,
        )
        tree.path("model").write_bytes(b"\x89HDF")
        outputs.write_model_sidecar(tree, {"Alpha": {"vdvae": np.float64(50)}})
        stimuli = ["pic000", "pic_001.png"]
        model = "bids::" + tree.path("model").relative_to(out).as_posix()
        for desc in ("recon", "vdvae", "null", "oracle"):
            images = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
            outputs.write_images(
                tree,
                stimuli,
                images,
                {"Sources": [model]},
                desc=desc,
            )
            if desc != "vdvae":
                columns = {"stimulus_id": stimuli, "pixcorr": [0.5, np.nan]}
                meta = {"stimulus_id": "The stimulus.", "pixcorr": {"Description": "r", "Chance": 0.0}}
                outputs.write_metrics(tree, columns, meta, desc=desc)
        tree.path("report").write_text("<!doctype html><title>x</title>")
        for path in (
            tree.path("figure", name="grid"),
            tree.path("log", run_id="r"),
            tree.path("settings", run_id="r"),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        descriptions.update_participants(out, [subject.label], source_dir=source)
    (out / "group.html").write_text("<!doctype html><title>x</title>")
    (out / "logs" / "CITATION.md").write_text("# How to cite\n")
    (out / "phenotype").mkdir()
    (out / "phenotype" / "reconmetrics.tsv").write_text("participant_id\tpixcorr\nsub-01\t0.5\nsub-02\t0.4\n")
    (out / "phenotype" / "reconmetrics.json").write_text('{"pixcorr": {"Description": "r"}}')


@pytest.fixture(scope="module")
def source(tiny_dataset: Make) -> Path:
    return tiny_dataset()


def test_the_validator_passes_the_output(
    source: Path, tmp_path: Path, validate: Callable[[Path], list[str]]
) -> None:
    write_all(source, tmp_path / "out")
    assert validate(tmp_path / "out") == []
    description = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    # The validator does not miss these, and resolving sources needs them.
    assert description["DatasetType"] == "derivative"
    assert description["BIDSVersion"] == "1.11.1"
    assert description["GeneratedBy"] == [
        {"Name": "bidsapp-recon", "Version": "0.1.0", "Container": {"Type": "docker"}}
    ]
    link = description["DatasetLinks"]["source"]
    assert (tmp_path / "out" / link).resolve() == source.resolve()
    assert description["SourceDatasets"] == [{"URL": link}]
    assert "null" not in (tmp_path / "out" / "dataset_description.json").read_text()
    sidecar = json.loads(next((tmp_path / "out").rglob("sub-01*nsdgeneral_mask.json")).read_text())
    assert sidecar["Type"] == "ROI"
    for uri in (*sidecar["Sources"], sidecar["SpatialReference"]):
        assert (source / uri.removeprefix("bids:source:")).is_file(), uri
    described = read_tsv(tmp_path / "out" / "descriptions.tsv")["desc_id"]
    used = {p.name.partition("_desc-")[2].partition("_")[0] for p in (tmp_path / "out").rglob("*_desc-*")}
    assert {f"desc-{d}" for d in used} <= set(described)


def test_two_writings_give_the_same_bytes(source: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_all(source, tmp_path / name)
    files = [
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()}
        for n in ("a", "b")
    ]
    assert files[0] == files[1]
    mask = next((tmp_path / "a").rglob("*_mask.nii.gz"))
    image = nib.load(mask)
    assert image.get_data_dtype() == np.uint8
    assert image.header.get_xyzt_units()[0] == "mm"


def test_names() -> None:
    tree = OutputTree(Path("/o"), "01", "nsdcore", "func1pt8mm")
    func = "/o/sub-01/func/sub-01_task-nsdcore_"
    assert str(tree.path("mask", roi="nsdgeneral")) == func + "space-func1pt8mm_label-nsdgeneral_mask.nii.gz"
    assert str(tree.path("model")) == func + "desc-ridge_model.h5"
    assert str(tree.path("metrics", desc="null")) == func + "desc-null_metrics.tsv"
    assert str(tree.path("image", stim="nsd02951")) == func + "stim-nsd02951_desc-recon_image.png"
    assert str(tree.path("image", stim="a_1.jpg", desc="vdvae")) == func + "stim-a1_desc-vdvae_image.png"
    assert str(tree.path("report")) == "/o/sub-01.html"
    assert str(tree.path("figures")) == "/o/sub-01/figures"
    assert str(tree.path("log", run_id="20261122-1")) == "/o/logs/sub-01/20261122-1/run.log"
    bare = OutputTree(Path("/o"), "01", "", "").path("mask", roi="V1")
    assert str(bare) == "/o/sub-01/func/sub-01_label-V1_mask.nii.gz"
    with pytest.raises(KeyError):
        tree.path("sculpture")
    with pytest.raises(KeyError):
        tree.path("image")
    for fields in ({"run_id": "../x"}, {"run_id": ".."}, {"run_id": ""}):
        with pytest.raises(ValueError, match="run_id"):
            tree.path("log", **fields)
    with pytest.raises(ValueError, match="desc"):
        tree.path("metrics", desc="a_b")


def test_every_image_inherits_one_sidecar(source: Path, tmp_path: Path) -> None:
    """The sidecar's entities are those of every image but ``stim``, and it lies in the same folder."""
    tree = OutputTree(tmp_path, "01", "t", "s")
    paths = outputs.write_images(
        tree, ["a", "b"], np.zeros((2, 4, 4, 3), np.uint8), {"Seed": 1}, desc="vdvae"
    )
    (sidecar,) = tmp_path.rglob("*.json")
    assert json.loads(sidecar.read_text()) == {"Description": outputs.DESCRIPTIONS["vdvae"], "Seed": 1}
    for path in paths:
        assert path.parent == sidecar.parent
        assert set(sidecar.stem.split("_")) <= set(path.stem.split("_"))


def test_images_come_back(tmp_path: Path) -> None:
    from PIL import Image

    tree = OutputTree(tmp_path, "01", "t", "s")
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 9, 3), dtype=np.uint8)
    paths = outputs.write_images(tree, ["a", "b"], images, {})
    assert all(np.array_equal(np.asarray(Image.open(p)), i) for p, i in zip(paths, images, strict=True))
    for bad in (images[:1], images.astype(np.float32), images[..., :2]):
        with pytest.raises(ValueError, match="uint8"):
            outputs.write_images(tree, ["a", "b"], bad, {})


def test_labels_of_stimuli() -> None:
    name = "shared_12rep_LAION_cluster_1003_i0.jpg"
    assert outputs.stimulus_labels(["nsd1", name]) == {"nsd1": "nsd1", name: "shared12repLAIONcluster1003i0"}
    for pair in (["a_1", "a1"], ["Ab", "aB"], ["x.png", "x.jpg"]):
        with pytest.raises(AppError, match="both be written") as caught:
            outputs.stimulus_labels(pair)
        assert all(repr(p) in str(caught.value) for p in pair)
        assert caught.value.exit_code == ExitCode.BAD_DATA
    assert outputs.stimulus_labels(["a", "a"]) == {"a": "a"}
    with pytest.raises(AppError, match="no letter"):
        outputs.stimulus_label("été"[0] + "_ñ")


@given(st.text(min_size=1, max_size=300))
def test_any_label_can_stand_in_a_name(stimulus: str) -> None:
    try:
        label = outputs.stimulus_label(stimulus)
    except AppError:
        return
    assert label.isascii()
    assert label.isalnum()
    assert len(label) <= 100


def test_labels_of_rois() -> None:
    assert outputs.roi_label(["V1", "V2"]) == "V1V2"
    assert outputs.roi_label(["rois/{subject}/hl-vis.nii.gz"]) == "hlvis"
    assert outputs.roi_label(["area" + "x" * 40] * 2) == "union"
    assert outputs.roi_label(["--"]) == "union"


def test_another_pipelines_dataset_is_left_alone(tmp_path: Path, source: Path) -> None:
    before = {p: p.read_bytes() for p in source.iterdir() if p.is_file()}
    with pytest.raises(AppError, match="tiny") as caught:
        descriptions.write_dataset_files(source, source_dir=source, version="1")
    assert caught.value.exit_code == ExitCode.CANNOT_CREATE
    assert {p: p.read_bytes() for p in source.iterdir() if p.is_file()} == before


def test_files_that_are_up_to_date_stay(source: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"source_dir": source, "version": "1", "code_url": "https://example.org"}
    descriptions.write_dataset_files(tmp_path, **options)
    descriptions.update_participants(tmp_path, ["01"], source_dir=source)
    inodes = {p: p.stat().st_ino for p in tmp_path.iterdir()}
    assert len(inodes) == 8  # five files, the table, its sidecar, the lock
    descriptions.write_dataset_files(tmp_path, **options)
    descriptions.update_participants(tmp_path, ["01"], source_dir=source)
    assert {p: p.stat().st_ino for p in tmp_path.iterdir()} == inodes
    (tmp_path / ".bidsignore").write_text("mine\n")
    descriptions.write_dataset_files(tmp_path, **options)
    assert (tmp_path / ".bidsignore").read_text().split() == ["mine", *descriptions.BIDSIGNORE]


def test_participants_are_merged(source: Path, tmp_path: Path) -> None:
    (tmp_path / "participants.tsv").write_text("participant_id\tnote\nsub-10\tkept\n")
    path = descriptions.update_participants(tmp_path, ["sub-02"], source_dir=source)
    descriptions.update_participants(tmp_path, ["1x"])
    assert read_tsv(path) == {
        "participant_id": ["sub-1x", "sub-02", "sub-10"],
        "note": ["n/a", "n/a", "kept"],
        "age": ["n/a", "30", "n/a"],
    }
    assert json.loads((tmp_path / "participants.json").read_text())["age"]["Units"] == "year"


def test_participants_from_many_jobs_at_once(tmp_path: Path) -> None:
    labels = [f"{i:02d}" for i in range(12)]
    jobs = [threading.Thread(target=descriptions.update_participants, args=(tmp_path, [s])) for s in labels]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert read_tsv(tmp_path / "participants.tsv") == {"participant_id": [f"sub-{s}" for s in labels]}


def test_source_uris(tmp_path: Path) -> None:
    assert outputs.source_uri(tmp_path / "sub-01" / "a.nii", tmp_path) == "bids:source:sub-01/a.nii"
    assert outputs.source_uri(Path("/else/a b.nii"), tmp_path) == "file:///else/a%20b.nii"
    links = {
        "source": tmp_path / "derivatives" / "glm",
        "input": tmp_path,
        "rois": tmp_path / "x" / ".." / "rois",
    }
    for path, uri in {
        "derivatives/glm/sub-01/a.nii": "bids:source:sub-01/a.nii",
        "derivatives/glm/../atlases/b.nii": "bids:input:derivatives/atlases/b.nii",
        "rois/sub-01/c.nii": "bids:rois:sub-01/c.nii",
    }.items():
        assert outputs.source_uri(tmp_path / path, links) == uri
    assert outputs.source_uri(Path("/else/a.nii"), links) == "file:///else/a.nii"


def test_links_of_other_jobs_stay_in_the_description(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for links in ({"rois": tmp_path / "rois"}, {"atlases": tmp_path / "atlases"}, {}):
        descriptions.write_dataset_files(out, source_dir=source, version="1", links=links)
    described = json.loads((out / "dataset_description.json").read_text())
    assert described["DatasetLinks"] == {"rois": "../rois", "atlases": "../atlases", "source": "../in"}


def test_links_of_jobs_that_write_at_once_all_stay(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"

    def write(name: str) -> None:
        descriptions.write_dataset_files(out, source_dir=source, version="1", links={name: tmp_path / name})

    jobs = [threading.Thread(target=write, args=(f"d{i}",)) for i in range(12)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    described = json.loads((out / "dataset_description.json").read_text())
    assert set(described["DatasetLinks"]) == {"source", *(f"d{i}" for i in range(12))}
