"""The group level: from the output folder alone to the table and the report."""

import csv
import dataclasses
import json
import logging
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.output_tree import record_complete

from bidsapp.errors import AppError
from bidsapp.group.level import GroupOutcome, mean_over_subjects, remove_group_results, run_group
from bidsapp.report.records import ScoreRow
from bidsapp.storage.text import read_tsv, write_json, write_tsv

METRICS = ("pixcorr", "two_way_clip")


def run(root: Path, **options: object) -> GroupOutcome:
    """Run the group level on tables of complete runs."""
    return run_group(record_complete(root), **options)  # type: ignore[arg-type]


def add_subject(root: Path, label: str, value: float, task: str = "scenes", *, summary: bool = True) -> None:
    """Write the metrics of a subject whose means are ``value`` plus a step for each column."""
    func = root / f"sub-{label}" / "func"
    for c, (condition, desc) in enumerate((("brain", "recon"), ("null", "null"), ("oracle", "oracle"))):
        columns: dict[str, list[object]] = {"stimulus_id": ["a", "b", "c"]}
        for m, metric in enumerate(METRICS):
            for s, stage in enumerate(("stage1", "stage2")):
                mean = value + 0.1 * c + 0.01 * m + 0.001 * s
                columns[f"{stage}_{metric}"] = [mean - 0.05, mean, mean + 0.05]
        write_tsv(func / f"sub-{label}_task-{task}_desc-{desc}_metrics.tsv", columns)
        del condition
    if summary:
        rows = [ScoreRow("brain", "stage2", "pixcorr", value, chance=0.02, n_images=3)]
        names = [f.name for f in dataclasses.fields(ScoreRow)]
        table = {name: [getattr(r, name) for r in rows] for name in names}
        write_tsv(func / f"sub-{label}_task-{task}_desc-summary_metrics.tsv", table)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    root = tmp_path / "out"
    for label, value in (("01", 0.3), ("02", 0.4), ("03", 0.6)):
        add_subject(root, label, value)
        (root / f"sub-{label}.html").write_text("<html></html>")
    return root


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_table_has_one_row_per_subject_and_one_column_per_score(out: Path) -> None:
    outcome = run(out)
    assert outcome.subjects == ("01", "02", "03")
    assert not outcome.missing
    rows = read(outcome.table)
    brain = ["stage1_pixcorr", "stage2_pixcorr", "stage1_two_way_clip", "stage2_two_way_clip"]
    expected = [*brain, *(f"null_{n}" for n in brain), *(f"oracle_{n}" for n in brain)]
    counts = ["n_images", "null_n_images", "oracle_n_images"]
    assert list(rows[0]) == ["participant_id", *counts, *expected]
    assert [r["participant_id"] for r in rows] == ["sub-01", "sub-02", "sub-03"]
    assert [float(r["stage1_pixcorr"]) for r in rows] == pytest.approx([0.3, 0.4, 0.6], abs=1e-6)
    assert [float(r["oracle_stage2_two_way_clip"]) for r in rows] == pytest.approx(
        [0.511, 0.611, 0.811], abs=1e-6
    )
    assert {r["n_images"] for r in rows} == {"3"}


def test_sidecar_describes_every_column(out: Path) -> None:
    outcome = run(out)
    sidecar = json.loads(outcome.table.with_suffix(".json").read_text())
    for name in read(outcome.table)[0]:
        assert len(sidecar[name]["Description"]) > 20
        assert name == "participant_id" or sidecar[name]["Units"]
    assert sidecar["stage2_two_way_clip"]["Maximum"] == 1.0
    assert sidecar["stage2_pixcorr"]["Minimum"] == -1.0


@pytest.mark.parametrize("n", [3, 2])
def test_top1_of_null_and_oracle_is_shown_among_as_many_images_only(out: Path, n: int) -> None:
    for label in ("01", "02", "03"):
        for desc, value, rows in (("recon", 0.311, 3), ("null", 0.222, n), ("oracle", 0.777, n)):
            path = out / f"sub-{label}" / "func" / f"sub-{label}_task-scenes_desc-{desc}_metrics.tsv"
            table = {name: cells[:rows] for name, cells in read_tsv(path).items()}
            write_tsv(path, table | {"stage2_top1_clip": [value] * rows})
    outcome = run(out)
    page = outcome.report.read_text()
    assert "31.1" in page
    assert ("77.7" in page) == ("22.2" in page) == (n == 3)
    assert ("a hit is easier among fewer images" in page) == (n == 2)
    assert float(read(outcome.table)[0]["oracle_stage2_top1_clip"]) == pytest.approx(0.777)


def test_each_condition_has_its_own_number_of_images(out: Path) -> None:
    for desc in ("null", "oracle"):
        path = out / "sub-02" / "func" / f"sub-02_task-scenes_desc-{desc}_metrics.tsv"
        write_tsv(path, {name: cells[:2] for name, cells in read_tsv(path).items()})
    (out / "sub-03" / "func" / "sub-03_task-scenes_desc-null_metrics.tsv").unlink()
    outcome = run(out)
    table = read_tsv(outcome.table)
    assert table["n_images"] == ["3", "3", "3"]
    assert table["null_n_images"] == ["3", "2", "n/a"]
    assert table["oracle_n_images"] == ["3", "2", "3"]
    sidecar = json.loads(outcome.table.with_suffix(".json").read_text())
    assert "shuffled" in sidecar["null_n_images"]["Description"]


def test_each_task_has_its_own_number_of_images(out: Path) -> None:
    add_subject(out, "02", 0.7, task="words")
    path = out / "sub-02" / "func" / "sub-02_task-words_desc-recon_metrics.tsv"
    write_tsv(path, {name: cells[:2] for name, cells in read_tsv(path).items()})
    outcome = run(out)
    table = read_tsv(outcome.table)
    assert table["scenes_n_images"] == ["3", "3", "3"]
    assert table["words_n_images"] == ["n/a", "2", "n/a"]
    page = outcome.report.read_text()
    words = page[page.index("Scores from the brain, words") :]
    assert re.findall(r'<td class="n">(\d+|–)</td></tr>', words)[:3] == ["–", "2", "–"]


def test_means_are_over_subjects_with_t_intervals(out: Path) -> None:
    means = run(out).means["stage1_pixcorr"]
    assert means.n == 3
    assert means.mean == pytest.approx(1.3 / 3, abs=1e-6)
    # t(2 df, 97.5%) = 4.302653, from a printed table
    half = 4.302653 * np.std([0.3, 0.4, 0.6], ddof=1) / math.sqrt(3)
    assert (means.low, means.high) == pytest.approx((1.3 / 3 - half, 1.3 / 3 + half), abs=1e-5)


def test_estimate_needs_two_subjects_for_an_interval() -> None:
    assert mean_over_subjects([0.4, math.nan]).low is None
    assert mean_over_subjects([0.4, math.nan]).mean == 0.4
    assert mean_over_subjects([0.4, 0.4]).low == mean_over_subjects([0.4, 0.4]).high == 0.4
    assert mean_over_subjects([math.nan]).n == 0
    cut = mean_over_subjects([0.8, 0.98], (0.0, 1.0))
    assert cut.high == 1.0
    assert 0.0 <= cut.low < 0.5  # 0.89 - 12.7 * 0.127 / sqrt(2) lies below 0


def test_interval_has_its_nominal_coverage() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(1000):
        e = mean_over_subjects(list(rng.normal(0.7, 0.1, 4)))
        assert e.low is not None
        assert e.high is not None
        hits += e.low <= 0.7 <= e.high
    assert 930 <= hits <= 970


def test_one_subject_is_enough(tmp_path: Path) -> None:
    add_subject(tmp_path, "01", 0.3)
    outcome = run(tmp_path)
    assert outcome.means["stage2_pixcorr"].low is None
    assert "needs at least two subjects" in outcome.report.read_text()


def test_missing_subjects_are_listed_and_not_fatal(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tsv(out / "participants.tsv", {"participant_id": ["sub-01", "sub-09"], "age": ["31", "40"]})
    (out / "sub-04" / "func").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        outcome = run(out)
    assert outcome.subjects == ("01", "02", "03")
    assert [m.label for m in outcome.missing] == ["04", "09"]
    page = outcome.report.read_text()
    for label in ("04", "09"):
        assert f"<strong>sub-{label}</strong>" in page
        assert any(f"sub-{label}" in r.getMessage() for r in caplog.records)


def test_participants_keep_their_columns_and_every_folder_gets_a_row(out: Path) -> None:
    (out / "sub-04").mkdir()
    write_tsv(out / "participants.tsv", {"participant_id": ["sub-02", "sub-09"], "age": ["31", "40"]})
    run(out)
    table = read_tsv(out / "participants.tsv")
    ages = dict(zip(table["participant_id"], table["age"], strict=True))
    assert ages == {"sub-01": "n/a", "sub-02": "31", "sub-03": "n/a", "sub-04": "n/a", "sub-09": "40"}
    before = (out / "participants.tsv").read_bytes()
    run(out)
    assert (out / "participants.tsv").read_bytes() == before


def test_requested_participants_only(out: Path) -> None:
    outcome = run(out, participants=["sub-03", "01", "77", "../etc"])
    assert outcome.subjects == ("01", "03")
    assert {m.label for m in outcome.missing} == {"77", "../etc"}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("stimulus_id\tstage1_pixcorr\na\t0.1\t0.2\n", "line 2"),
        ("stimulus_id\tstage1_pixcorr\na\thigh\n", "not a finite number"),
        ("stimulus_id\tstage1_pixcorr\na\tinf\n", "not a finite number"),
        ("stimulus_id\tstage1_pixcorr\n", "no rows"),
        ("", "no header"),
        ("stimulus_id\tother\na\t1\n", "no scores"),
    ],
)
def test_a_damaged_table_makes_its_subject_missing_with_the_reason(out: Path, content: str, why: str) -> None:
    (out / "sub-02" / "func" / "sub-02_task-scenes_desc-recon_metrics.tsv").write_text(content)
    outcome = run(out)
    assert outcome.subjects == ("01", "03")
    (missing,) = outcome.missing
    assert missing.label == "02"
    assert why in missing.why


def test_a_damaged_participants_file_is_left_alone(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    (out / "participants.tsv").write_text("participant_id\tage\nsub-01\n")
    with caplog.at_level(logging.WARNING):
        assert len(run(out).subjects) == 3
    assert (out / "participants.tsv").read_text() == "participant_id\tage\nsub-01\n"
    assert "participants.tsv" in caplog.text


def test_images_without_a_value_are_left_out_of_the_mean(out: Path) -> None:
    path = out / "sub-01" / "func" / "sub-01_task-scenes_desc-recon_metrics.tsv"
    table = read_tsv(path)
    table["stage1_pixcorr"] = ["n/a", "0.2", "0.4"]
    table["stage2_pixcorr"] = ["n/a", "n/a", "n/a"]
    write_tsv(path, table)
    outcome = run(out)
    row = read(outcome.table)[0]
    assert float(row["stage1_pixcorr"]) == pytest.approx(0.3)
    assert row["stage2_pixcorr"] == "n/a"
    assert outcome.means["stage2_pixcorr"].n == 2


def test_two_tasks_have_columns_of_their_own(out: Path) -> None:
    add_subject(out, "02", 0.7, task="words")
    outcome = run(out)
    rows = read(outcome.table)
    assert float(rows[1]["words_stage1_pixcorr"]) == pytest.approx(0.7)
    assert float(rows[1]["scenes_stage1_pixcorr"]) == pytest.approx(0.4)
    assert rows[0]["words_null_stage1_pixcorr"] == "n/a"
    assert outcome.means["words_stage1_pixcorr"].n == 1
    assert "Pixel correlation · words" in outcome.report.read_text()


@pytest.mark.parametrize("kind", ["no folder", "empty", "damaged"])
def test_no_subject_at_all_is_an_error(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "out"
    if kind != "no folder":
        root.mkdir()
    if kind == "damaged":
        add_subject(root, "01", 0.3)
        (root / "sub-01" / "func" / "sub-01_task-scenes_desc-recon_metrics.tsv").write_text("x")
    with pytest.raises(AppError, match=re.escape(str(root))) as error:
        run(root)
    assert error.value.exit_code == 66
    assert not (root / "group.html").exists()
    assert not (root / "phenotype").exists()


def test_report_links_subjects_and_table(out: Path) -> None:
    (out / "sub-02.html").unlink()
    figures = out / "sub-01" / "figures"
    figures.mkdir()
    (figures / "sub-01_task-scenes_desc-median1_recon.png").write_bytes(b"png")
    page = run(out, command="bidsapp-recon <b> out group").report.read_text()
    assert 'href="sub-01.html"' in page
    assert 'href="sub-02.html"' not in page
    assert 'href="phenotype/reconmetrics.tsv"' in page
    assert re.findall(r'src="([^"]+)"', page) == ["sub-01/figures/sub-01_task-scenes_desc-median1_recon.png"]
    assert "bidsapp-recon &lt;b&gt; out group" in page
    assert page.count('class="subject"') == 1 + 3 * 4  # one in the legend, a dot a subject in each lane


def test_two_runs_write_the_same_bytes(out: Path) -> None:
    def snapshot() -> dict[str, bytes]:
        names = (
            "phenotype/reconmetrics.tsv",
            "phenotype/reconmetrics.json",
            "group.html",
            "participants.tsv",
        )
        run(out)
        return {name: (out / name).read_bytes() for name in names}

    assert snapshot() == snapshot()


VALIDATOR = shutil.which("bids-validator-deno") or shutil.which(
    "bids-validator-deno", path=Path(sys.executable).parent
)


@pytest.mark.skipif(VALIDATOR is None, reason="bids-validator-deno is not installed")
def test_the_validator_accepts_what_is_written(out: Path) -> None:
    nib = pytest.importorskip("nibabel")
    description = {
        "Name": "Reconstructions",
        "BIDSVersion": "1.11.1",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "bidsapp-recon", "Version": "0.1.0"}],
    }
    write_json(out / "dataset_description.json", description)
    (out / "README.md").write_text("Reconstructed images. " * 20)
    (out / ".bidsignore").write_text("*.html\nfigures\n*_metrics.*\n")
    for label in ("01", "02", "03", "04"):  # sub-04 failed after its mask was written
        stem = out / f"sub-{label}" / "func" / f"sub-{label}_task-scenes_space-T1w_label-roi_mask"
        stem.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), f"{stem}.nii.gz")
        sidecar = {"Type": "ROI", "Sources": ["bids::README.md"], "SpatialReference": "orig"}
        write_json(Path(f"{stem}.json"), sidecar)
    run(out)
    done = subprocess.run([str(VALIDATOR), str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "[ERROR]" not in done.stdout


def add_checks(root: Path, label: str, severities: tuple[str, ...], p: float, task: str = "scenes") -> None:
    """Write a table of findings, and a table of means with the subject's own test."""
    func = root / f"sub-{label}" / "func"
    stages = [f"stage {i}" for i in range(len(severities))]
    sentences = [f"sentence {i} of {label}" for i in range(len(severities))]
    codes = [f"code{i}" for i in range(len(severities))]
    findings = {"code": codes, "severity": severities, "stage": stages, "sentence": sentences}
    write_tsv(func / f"sub-{label}_task-{task}_desc-findings_metrics.tsv", findings)
    low, high = 0.4, 0.4 + p
    names = [f.name for f in dataclasses.fields(ScoreRow)]
    rows = [
        ScoreRow(c, "stage2", "two_way_clip", 0.5, chance=0.5, chance_low=low, chance_high=high, p=q)
        for c, q in (("brain", p), ("null", 0.777))
    ]
    table = {name: [getattr(r, name) for r in rows] for name in names}
    write_tsv(func / f"sub-{label}_task-{task}_desc-summary_metrics.tsv", table)


def checks_shown(root: Path) -> dict[str, list[str]]:
    """Cells of the report's table of checks by subject."""
    text = (root / "group.html").read_text()
    table = re.search(r'aria-label="Checks of each subject".*?</table>', text, re.S)
    assert table is not None
    rows = re.findall(r'<th scope="row">.*?(sub-\w+)(?:</a>)?</th>(.*?)</tr>', table[0], re.S)
    return {name: re.findall(r">([^<]*)</td>", cells) for name, cells in rows}


def test_findings_and_the_test_of_each_subject_are_shown(out: Path) -> None:
    add_checks(out, "01", ("ok", "ok", "limit"), 0.004)
    add_checks(out, "02", ("broken", "unknown", "unknown", "ok"), 0.25)
    run(out)
    # Broken, limit, sound, not judged, p; the third subject's run was older and wrote neither.
    assert checks_shown(out) == {
        "sub-01": ["0", "1", "2", "0", "0.004"],
        "sub-02": ["1", "0", "1", "2", "0.25"],
        "sub-03": ["–"] * 5,
    }
    text = (out / "group.html").read_text()
    assert "<strong>sub-02, stage 0</strong>sentence 0 of 02" in text
    assert "sentence 1 of 02" not in text
    assert "0.777" not in text
    # Chance of a subject's own score: the mean of the ends of what subjects have.
    assert f"chance of a subject 40.0 to {40 + 50 * 0.254:.1f}" in text
    assert 'class="oracleband"' in text


def test_damaged_findings_do_not_exclude_the_subject(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_checks(out, "01", ("ok",), 0.001)
    (out / "sub-01" / "func" / "sub-01_task-scenes_desc-findings_metrics.tsv").write_bytes(b"a\tb\n1\n\xff")
    with caplog.at_level(logging.WARNING):
        assert "01" in run(out).subjects
    assert "desc-findings_metrics.tsv" in caplog.text
    assert checks_shown(out)["sub-01"] == ["–"] * 4 + ["0.001"]


def test_without_checks_there_is_no_table_of_them(out: Path) -> None:
    run(out)
    assert "Checks of each subject" not in (out / "group.html").read_text()


def test_names_without_a_task_are_taken(out: Path) -> None:
    for path in sorted(out.glob("sub-*/func/*")):
        path.rename(path.with_name(path.name.replace("_task-scenes", "")))
    write_tsv(
        out / "sub-01" / "func" / "sub-01_desc-findings_metrics.tsv",
        {"severity": ["broken"], "stage": ["decoding"], "sentence": ["nothing is decoded"]},
    )
    outcome = run(out)
    assert outcome.subjects == ("01", "02", "03")
    rows = read(outcome.table)
    assert [float(r["stage1_pixcorr"]) for r in rows] == pytest.approx([0.3, 0.4, 0.6], abs=1e-6)
    assert "<strong>sub-01, decoding</strong>nothing is decoded" in outcome.report.read_text()


@pytest.mark.parametrize("what", ["no record", "another length", "not in it", "damaged"])
def test_tables_that_the_last_complete_run_did_not_write_are_not_counted(out: Path, what: str) -> None:
    record_complete(out)
    record = out / "logs" / "sub-02" / "task-scenes_done.json"
    table = "sub-02/func/sub-02_task-scenes_desc-null_metrics.tsv"
    sizes = json.loads(record.read_text())["outputs"]
    if what == "no record":
        record.unlink()
    elif what == "another length":
        with open(out / table, "a") as stream:
            stream.write("d\t0.5\t0.5\t0.5\t0.5\n")
    elif what == "not in it":
        record.write_text(json.dumps({"outputs": {k: v for k, v in sizes.items() if k != table}}))
    else:
        record.write_text("{")
    outcome = run_group(out)
    assert outcome.subjects == ("01", "03")
    (missing,) = outcome.missing
    assert missing.label == "02"
    assert "done.json" in missing.why


def test_results_of_an_earlier_group_run_do_not_outlive_the_scores(out: Path) -> None:
    outcome = run(out)
    shutil.rmtree(out / "logs")
    with pytest.raises(AppError, match="earlier group run were removed"):
        run_group(out)
    for path in (outcome.table, outcome.table.with_suffix(".json"), outcome.report):
        assert not path.exists()
    assert (out / "participants.tsv").exists()


def test_results_are_removed_if_a_subject_is_in_them(out: Path) -> None:
    outcome = run(out)
    assert not remove_group_results(out, "04")
    assert outcome.table.is_file()
    assert remove_group_results(out, "02")
    assert not outcome.table.exists()
    assert not outcome.report.exists()
    assert not remove_group_results(out, "02")


def test_a_dry_run_and_other_subjects_remove_nothing(out: Path) -> None:
    outcome = run(out)
    shutil.rmtree(out / "logs")
    for options in ({"dry_run": True}, {"participants": ["07"]}):
        with pytest.raises(AppError):
            run_group(out, **options)  # type: ignore[arg-type]
    assert outcome.table.is_file()
    assert outcome.report.is_file()


def test_nothing_is_written_through_a_link(out: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "reconmetrics.tsv").write_text("mine")
    (out / "phenotype").symlink_to(elsewhere)
    with pytest.raises(AppError, match="phenotype is a link") as error:
        run(out)
    assert error.value.exit_code == 73
    assert not remove_group_results(out)
    assert (elsewhere / "reconmetrics.tsv").read_text() == "mine"
    assert [p.name for p in elsewhere.iterdir()] == ["reconmetrics.tsv"]
    assert not (out / "group.html").exists()
