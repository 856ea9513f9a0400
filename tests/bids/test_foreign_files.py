"""Files and folders in a dataset that are none of its own must not disturb what is found."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bidsapp.bids.inputs import Dataset, InputSelection, open_dataset
from bidsapp.errors import AppError, ExitCode


def seen(dataset: Dataset) -> list[object]:
    """All that matters of a dataset, paths relative to its root."""

    def inner(path: Path | None) -> str | None:
        return None if path is None else path.relative_to(dataset.root).as_posix()

    return [
        (
            subject.label,
            subject.task,
            subject.space,
            [(s.label, inner(s.betas), inner(s.trials), s.stimulus_ids, s.scale) for s in subject.sessions],
            {name: inner(path) for name, path in subject.masks.items()},
            inner(subject.noise_ceiling),
            subject.spatial_reference,
        )
        for subject in dataset.subjects
    ] + list(dataset.problems)


def hidden(root: Path) -> None:
    """What file managers leave: each file's double, with its whole name behind a dot."""
    for path in [p for p in root.rglob("*") if p.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7")
    (root / "sub-01" / ".DS_Store").write_bytes(b"\0")
    (root / "sub-01" / ".git").mkdir()
    (root / "sub-01" / ".git" / "sub-01_task-x_stat-effect_statmap.nii.gz").write_bytes(b"")


def without_extension(root: Path) -> None:
    func = root / "sub-01" / "ses-s1" / "func"
    for name in ("README", "sub-01_ses-s1_task-tiny", "sub-01", "statmap", "_", "trials", "x.", "..."):
        (func / name).write_text("x")


def of_other_programs(root: Path) -> None:
    func = root / "sub-01" / "ses-s1" / "func"
    stem = "sub-01_ses-s1_task-tiny_space-func3mm"
    for name in (
        f"{stem}_stat-effect_desc-singletrial_statmap.nii.gz.md5",
        f"{stem}_stat-effect_desc-singletrial_statmap.nii.gz.part",
        f"{stem}_stat-effect_desc-singletrial_statmap.nii.gz~",
        f"{stem}_stat-rsquare_desc-R2_statmap.nii.gz",
        f"{stem}_desc-Fracridge_statmap.nii.gz",
        "betas session 1 (copy).nii.gz",
        "Ümläut\u2028 name.tsv",
        "sub-02_ses-s1_task-tiny_desc-singletrial_trials.txt",
        "a" * 200 + ".nii.gz",
        "ses-s9_task-other_stat-effect_statmap.nii.gz",
    ):
        (func / name).write_bytes(b"x")
    (root / "sub-notes.txt").write_text("x")
    (root / "sub-01.html").write_text("x")
    (root / "layout_config.json").write_text("{")
    (root / "sub-01" / "layout_config.json").write_text('{"name": "x", "entities": []}')


def folders_named_like_files(root: Path) -> None:
    func = root / "sub-01" / "ses-s1" / "func"
    for name in ("sub-01_ses-s2_task-tiny_stat-effect_statmap.nii.gz", "sub-01_task-tiny_desc-x_trials.tsv"):
        (func / name).mkdir()
        (func / name / "inner.txt").write_text("x")
    (root / "sub-05").mkdir()
    (root / "sub-").mkdir()


def links_that_loop(root: Path) -> None:
    (root / "sub-01" / "ses-s1" / "again").symlink_to(root, target_is_directory=True)
    (root / "sub-01" / "ses-s1" / "func" / "up").symlink_to("..", target_is_directory=True)
    (root / "sub-02" / "self").symlink_to("self")
    (root / "sub-02" / "twin").symlink_to("../sub-02", target_is_directory=True)
    (root / "sub-01" / "x").symlink_to("../sub-02/y")
    (root / "sub-02" / "y").symlink_to("../sub-01/x")


def names_that_are_no_text(root: Path) -> None:
    func = os.fsencode(root / "sub-01" / "ses-s1" / "func")
    for name in (b"caf\xe9.nii.gz", b"sub-01_ses-s1_task-\xff_stat-effect_statmap.nii.gz"):
        with open(func + b"/" + name, "wb") as stream:
            stream.write(b"x")


def results_of_an_earlier_run(root: Path) -> None:
    figures = root / "sub-01" / "figures"
    figures.mkdir()
    (figures / "sub-01_task-tiny_space-func3mm_stat-effect_desc-singletrial_statmap.nii.gz").write_text("x")
    inner = root / "derivatives" / "bidsapp-recon" / "sub-01" / "func"
    inner.mkdir(parents=True)
    (inner / "sub-01_task-tiny_space-func3mm_label-nsdgeneral_mask.nii.gz").write_text("x")


@pytest.mark.parametrize(
    "litter",
    [
        hidden,
        without_extension,
        of_other_programs,
        folders_named_like_files,
        links_that_loop,
        names_that_are_no_text,
        results_of_an_earlier_run,
    ],
)
def test_foreign_files_change_nothing(
    tiny_dataset: Callable[..., Path], litter: Callable[[Path], None]
) -> None:
    root = tiny_dataset()
    before = seen(open_dataset(root, InputSelection(roi=("nsdgeneral", "V1"))))
    try:
        litter(root)
    except OSError as error:
        pytest.skip(f"this file system refuses such names: {error}")
    assert seen(open_dataset(root, InputSelection(roi=("nsdgeneral", "V1")))) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="everything is readable for root")
def test_a_folder_that_cannot_be_read_is_named(tiny_dataset: Callable[..., Path]) -> None:
    root = tiny_dataset()
    (root / "sub-01" / "secret").mkdir(mode=0)
    with pytest.raises(AppError, match="secret") as caught:
        open_dataset(root)
    assert caught.value.exit_code == ExitCode.IO_ERROR
