"""Finding betas, trials, masks and maps in datasets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp.bids._index import build_index, natural_key
from bidsapp.bids.inputs import InputSelection, open_dataset
from bidsapp.errors import AppError, ExitCode, InputProblems
from bidsapp.storage.nifti import load_volume

Make = Callable[..., Path]


@pytest.fixture
def tiny(tiny_dataset: Make) -> Path:
    return tiny_dataset()


def _func(root: Path, subject: str = "01", session: str | None = None) -> Path:
    folder = root / f"sub-{subject}"
    return (folder / f"ses-{session}" if session else folder) / "func"


def _rename(folder: Path, old: str, new: str) -> None:
    for path in sorted(folder.rglob(f"*{old}*")):
        if path.is_file():
            path.rename(path.with_name(path.name.replace(old, new)))


def test_the_validator_passes_the_input(tiny: Path, validate: Callable[[Path], list[str]]) -> None:
    assert validate(tiny) == []


def test_all_is_found(tiny: Path) -> None:
    dataset = open_dataset(tiny)
    assert (dataset.root, dataset.name, dataset.generated_by, dataset.problems) == (tiny, "Tiny", "tiny", ())
    assert [s.label for s in dataset.subjects] == ["01", "02"]
    subject = dataset.subject("02")
    assert (subject.task, subject.space) == ("tiny", "func3mm")
    assert [s.label for s in subject.sessions] == ["s1", "s2"]
    assert list(subject.masks) == ["nsdgeneral"]
    assert subject.noise_ceiling is not None
    assert "desc-noiseceiling" in subject.noise_ceiling.name
    assert subject.spatial_reference is not None
    assert subject.spatial_reference.startswith("bids::sub-02/")
    for session in subject.sessions:
        rows = session.trials.read_text().split("\n")[1:-1]
        assert session.stimulus_ids == tuple(r.split("\t")[3].removeprefix("stim-") for r in rows)
        assert session.scale == 300.0
        assert nib.load(session.betas).shape[3] == len(session.stimulus_ids)


def test_choices(tiny: Path) -> None:
    dataset = open_dataset(
        tiny, InputSelection(participants=["sub-02"], sessions=["ses-s2"], task="tiny", space="func3mm")
    )
    assert [s.label for s in dataset.subjects] == ["02"]
    assert [s.label for s in dataset.subjects[0].sessions] == ["s2"]


def test_the_first_sessions_of_each_subject(tiny_dataset: Make) -> None:
    root = tiny_dataset(n_subjects=2, n_sessions=3)
    _rename(root / "sub-01", "ses-s3", "ses-s10")
    (root / "sub-01" / "ses-s3").rename(root / "sub-01" / "ses-s10")
    first = open_dataset(root, InputSelection(max_sessions=2))
    assert [[s.label for s in u.sessions] for u in first.subjects] == [["s1", "s2"], ["s1", "s2"]]
    of_some = open_dataset(root, InputSelection(sessions=["s2", "s3", "s10"], max_sessions=1))
    assert [[s.label for s in u.sessions] for u in of_some.subjects] == [["s2"], ["s2"]]
    of_more = open_dataset(root, InputSelection(max_sessions=99))
    assert [s.label for s in of_more.subjects[0].sessions] == ["s1", "s2", "s10"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"participants": ["1"]}, ExitCode.NOTHING_MATCHED, ["01, 02", "Did you mean 01", "docker run -v"]),
        ({"participants": ["01,02"]}, ExitCode.NOTHING_MATCHED, ["Separate labels by spaces: 01 02"]),
        ({"sessions": ["s9"]}, ExitCode.NOTHING_MATCHED, ["s9", "s1, s2"]),
        ({"task": "other"}, ExitCode.NOTHING_MATCHED, ["task-other", "tiny"]),
        ({"space": "MNI"}, ExitCode.NOTHING_MATCHED, ["space-MNI", "func3mm"]),
    ],
)
def test_what_is_not_there(tiny: Path, options: dict[str, object], code: ExitCode, words: list[str]) -> None:
    with pytest.raises(AppError) as caught:
        open_dataset(tiny, InputSelection(**options))  # type: ignore[arg-type]
    assert caught.value.exit_code == code
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_folders_that_are_no_dataset(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "none", tmp_path / "empty"):
        with pytest.raises(AppError) as caught:
            open_dataset(path)
        assert caught.value.exit_code == ExitCode.NO_INPUT
        assert "docker" in str(caught.value)
    for damage in ("", "[]", '{"Name": 3, "BIDSVersion": "1"}'):
        if damage:
            (tiny / "dataset_description.json").write_text(damage)
        else:
            (tiny / "dataset_description.json").unlink()
        with pytest.raises(AppError) as caught:
            open_dataset(tiny)
        assert caught.value.exit_code == ExitCode.INVALID_BIDS
    (tmp_path / "raw" / "sub-01").mkdir(parents=True)
    (tmp_path / "raw" / "dataset_description.json").write_text('{"Name": "r", "BIDSVersion": "1.11.1"}')
    with pytest.raises(AppError, match="no single-trial betas") as caught:
        open_dataset(tmp_path / "raw")
    assert caught.value.exit_code == ExitCode.NOTHING_MATCHED


def test_several_tasks_and_spaces_are_listed(tiny: Path) -> None:
    _rename(_func(tiny, "01", "s1"), "task-tiny", "task-other")
    _rename(_func(tiny, "01", "s2"), "space-func3mm", "space-T1w")
    with pytest.raises(InputProblems) as caught:
        open_dataset(tiny)
    text = str(caught.value)
    assert "other, tiny" in text
    assert "--task-label" in text
    assert "T1w, func3mm" in text
    assert "--space" in text
    assert caught.value.exit_code == ExitCode.USAGE
    chosen = open_dataset(tiny, InputSelection(task="tiny", space="func3mm"))
    assert [(s.label, len(s.sessions)) for s in chosen.subjects] == [("02", 2)]
    named = open_dataset(tiny, InputSelection(participants=["01", "02"], task="tiny", space="func3mm"))
    assert [(s.label, len(s.sessions)) for s in named.subjects] == [("01", 0), ("02", 2)]
    assert "No betas of sub-01" in named.problems[0].what


def test_regions_of_interest(tiny: Path) -> None:
    pattern = "sub-{subject}/func/sub-{subject}_task-tiny_space-func3mm_label-nsdgeneral_mask.nii.gz"
    names = ("V1", "hv4", "visualrois:V1v", "visualrois", pattern)
    dataset = open_dataset(tiny, InputSelection(roi=names))
    assert dataset.problems == ()
    rois = dataset.rois["01"]
    labels = np.asarray(nib.load(rois["V1"].path).dataobj)
    expected = {"V1": [1, 2], "hv4": [3], "visualrois:V1v": [1], "visualrois": [1, 2, 3], pattern: [1, 2, 3]}
    assert list(rois) == list(names)
    for name, values in expected.items():
        assert np.array_equal(rois[name].inside(load_volume(rois[name].path)), np.isin(labels, values)), name


def test_regions_whose_names_differ_in_signs_only_are_told_apart(tiny: Path) -> None:
    for path in tiny.rglob("*_dseg.tsv"):
        path.write_text("index\tname\n1\tV1a\n2\tV1-a\n3\thV4\n")
    names = ("V1a", "V1-a")
    dataset = open_dataset(tiny, InputSelection(roi=names))
    volume = load_volume(dataset.rois["01"]["V1a"].path)
    for value, name in enumerate(names, start=1):
        assert np.array_equal(dataset.rois["01"][name].inside(volume), volume.data == value)


def test_a_missing_roi_lists_those_found(tiny: Path) -> None:
    dataset = open_dataset(tiny, InputSelection(roi=("FFA", "none/{subject}.nii.gz")))
    texts = [p.what for p in dataset.problems]
    assert len(texts) == 4  # two ROIs, two subjects
    assert "V1d, V1v, hV4, nsdgeneral, visualrois" in texts[0]
    assert "none/01.nii.gz" in texts[1]
    assert {p.code for p in dataset.problems} == {ExitCode.NO_INPUT}


def test_metadata_is_inherited(tiny: Path) -> None:
    for path in tiny.rglob("*stat-effect*.json"):
        path.unlink()
    (tiny / "task-tiny_stat-effect_statmap.json").write_text('{"ScaleFactor": 100}')
    (tiny / "sub-01" / "sub-01_statmap.json").write_text('{"ScaleFactor": 50}')
    dataset = open_dataset(tiny)
    assert {s.scale for s in dataset.subject("01").sessions} == {50.0}
    assert {s.scale for s in dataset.subject("02").sessions} == {100.0}


@pytest.mark.parametrize("scale", ["0", '"300"', "true", "-1", "[300]", "null"])
def test_a_scale_that_is_no_number(tiny: Path, scale: str) -> None:
    sidecar = next(_func(tiny, "01", "s1").glob("*statmap.json"))
    sidecar.write_text(f'{{"ScaleFactor": {scale}}}')
    (problem,) = open_dataset(tiny).problems
    assert "ScaleFactor" in problem.what
    assert problem.path.endswith("statmap.nii.gz")


def test_problems_of_trials_are_collected(tiny: Path) -> None:
    tables = sorted(tiny.rglob("*_trials.tsv"))
    tables[0].unlink()
    tables[1].write_text(tables[1].read_text().replace("\t3\t", "\t2\t"))
    tables[2].write_text("onset\n1\n")
    sidecar = next(_func(tiny, "02", "s2").glob("*statmap.json"))
    sidecar.write_text("{")
    problems = open_dataset(tiny).problems
    assert len(problems) == 4
    wanted = ["No *_trials.tsv", "2 appears twice", "no column that names", "not valid JSON"]
    assert all(word in p.what for word, p in zip(wanted, problems, strict=True)), problems


def test_trials_in_any_order(tiny: Path) -> None:
    table = next(_func(tiny, "01", "s1").glob("*_trials.tsv"))
    before = open_dataset(tiny).subject("01").sessions[0].stimulus_ids
    header, *rows = table.read_text().rstrip("\n").split("\n")
    table.write_text("\n".join([header, *rows[::-1]]) + "\n")
    assert open_dataset(tiny).subject("01").sessions[0].stimulus_ids == before


def test_filter_file(tiny: Path, tmp_path: Path) -> None:
    folder = _func(tiny, "01", "s1")
    for path in list(folder.glob("*desc-singletrial_statmap*")):
        shutil.copy(path, path.with_name(path.name.replace("desc-singletrial", "desc-other")))
    assert open_dataset(tiny).problems == ()  # the one called singletrial is taken
    filters = tmp_path / "filters.json"
    filters.write_text(json.dumps({"betas": {"desc": "other"}}))
    dataset = open_dataset(tiny, InputSelection(filters=filters))
    assert [len(s.sessions) for s in dataset.subjects] == [1]
    assert "desc-other" in dataset.subjects[0].sessions[0].betas.name
    filters.write_text(json.dumps({"betas": {"desc": None}}))
    with pytest.raises(AppError, match=r"filters\.json") as caught:
        open_dataset(tiny, InputSelection(filters=filters))
    assert caught.value.exit_code == ExitCode.NOTHING_MATCHED
    _rename(folder, "desc-singletrial_statmap", "desc-third_statmap")
    (problem,) = open_dataset(tiny).problems
    assert "desc-other" in problem.what
    assert "desc-third" in problem.what


@pytest.mark.parametrize(
    "content", ['{"bold": {}}', '{"betas": []}', '{"betas": {"colour": "x"}}', '{"betas": {"desc": {}}}']
)
def test_bad_filter_files(tiny: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "f.json").write_text(content)
    with pytest.raises(AppError, match=r"f\.json") as caught:
        open_dataset(tiny, InputSelection(filters=tmp_path / "f.json"))
    assert caught.value.exit_code == ExitCode.USAGE


def test_laion_layout_from_its_root_and_its_derivative(tiny: Path) -> None:
    glm = tiny / "derivatives" / "glmsingle-tedana"
    glm.mkdir(parents=True)
    for folder in sorted(tiny.glob("sub-*")):
        shutil.move(folder, glm / folder.name)
    _rename(glm, "desc-singletrial", "desc-SingletrialBetas")
    for subject in glm.glob("sub-*"):
        for path in list((subject / "func").iterdir()):
            moved = path.rename(subject / path.name)
            for old, new in (("desc-noise", "desc-Noise"), ("ceiling_", "ceilingAllrep_")):
                moved = moved.rename(moved.with_name(moved.name.replace(old, new)))
        ceiling = next(subject.glob("*Noiseceiling*.nii.gz"))
        name = ceiling.name.replace("_task", "_ses-s1_task").replace("Allrep", "")
        shutil.copy(ceiling, subject / "ses-s1" / "func" / name)
        shutil.copy(ceiling, ceiling.with_name(ceiling.name.replace("Allrep", "4rep")))
        _rename(subject, "label-nsdgeneral", "desc-meanR2gt15mask")
    for table in glm.rglob("*_trials.tsv"):
        table.write_text(table.read_text().replace("stim_id", "label").replace("stim-", ""))
    first = open_dataset(tiny, InputSelection(roi=("meanR2gt15mask",)))
    assert first.root == glm
    assert first.problems == ()
    shutil.copy(tiny / "dataset_description.json", glm)
    second = open_dataset(glm, InputSelection(roi=("meanR2gt15mask",)))
    assert second.subjects == first.subjects
    assert all("Allrep" in s.noise_ceiling.name for s in second.subjects if s.noise_ceiling)
    assert second.subjects[0].sessions[0].stimulus_ids[0].startswith("pic")


def test_the_index_keeps_to_the_data(tiny: Path, tmp_path: Path) -> None:
    """Folders above the dataset, stray folders, links in circles and files of pybids change nothing."""
    before = open_dataset(tiny)
    inner = tmp_path / "sub-99_ses-x" / "task-y_" / "bids"
    shutil.copytree(tiny, inner)
    (inner / "sub-01" / "loop").symlink_to(inner, target_is_directory=True)
    (inner / "sub-01" / "ses-s1" / "up").symlink_to("..", target_is_directory=True)
    shutil.copytree(inner / "sub-02" / "func", inner / "work.dir" / "sub-02" / "func")
    (inner / "layout_config.json").write_text('{"name": "x", "entities": []}')
    after = open_dataset(inner)
    relative = [
        [s.betas.relative_to(d.root) for u in d.subjects for s in u.sessions] for d in (before, after)
    ]
    assert relative[0] == relative[1]
    assert after.problems == ()
    files = [f.path.relative_to(inner).as_posix() for f in build_index(inner).files]
    assert not [f for f in files if f.startswith(("stimuli", "work.dir")) or "/loop/" in f or "/up/" in f]


def test_natural_order() -> None:
    assert sorted(["ses-10", "ses-2", "ses-01", "b"], key=natural_key) == ["b", "ses-01", "ses-2", "ses-10"]
