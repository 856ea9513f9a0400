"""The summary that a participant run prints at its end."""

from __future__ import annotations

from pathlib import Path

from bidsapp.bids.outputs import OutputTree
from bidsapp.participant.summary import FinishedSubject, summary
from bidsapp.report.records import ScoreRow
from bidsapp.storage.text import write_tsv


def finished(out: Path, label: str, *, n: int | None = 6, null: bool = True) -> FinishedSubject:
    rows = [ScoreRow("brain", "stage2", "two_way_clip", 0.8125, chance=0.5, n_images=n)]
    rows += [ScoreRow("null", "stage2", "two_way_clip", 0.5, n_images=n)] if null else []
    return FinishedSubject(OutputTree(out, label, "scenes", "T1w"), rows)


def test_scores_with_n_findings_and_reports(tmp_path):
    done = {label: finished(tmp_path, label) for label in ("01", "02")}
    columns = {
        "severity": ["broken", "limit", "ok", "ok", "unknown"],
        "stage": ["betas", "decoding", "stage 1", "stage 2", "ladder"],
    }
    write_tsv(done["01"].tree.path("metrics", desc="findings"), columns)
    lines = summary(done).splitlines()
    assert lines[0].split() == ["subject", "stage", "metric", "brain", "chance", "null", "oracle", "n"]
    assert lines[1].split() == ["sub-01", "stage2", "two_way_clip", "0.812", "0.500", "0.500", "n/a", "6"]
    assert lines[2].split()[0] == "sub-02"
    found = "1 broken (betas), 1 limiting (decoding), 2 sound, 1 not judged (ladder)"
    assert lines[3:] == [
        "",
        f"sub-01: findings: {found}",
        f"sub-01: report: {tmp_path / 'sub-01.html'}",
        f"sub-02: report: {tmp_path / 'sub-02.html'}",
    ]


def test_scores_without_a_null_run_or_a_count(tmp_path):
    said = summary({"01": finished(tmp_path, "01", n=None, null=False)})
    assert said.splitlines()[1].split()[3:] == ["0.812", "0.500", "n/a", "n/a", "n/a"]
