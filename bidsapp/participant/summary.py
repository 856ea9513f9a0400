"""What a participant run shows in the terminal at its end: scores, findings, and where the reports are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bidsapp.bids.outputs import OutputTree
from bidsapp.errors import AppError
from bidsapp.report.checks import SEVERITY_TITLES
from bidsapp.storage.text import read_tsv

if TYPE_CHECKING:
    from bidsapp.report.records import ScoreRow


@dataclass(frozen=True)
class FinishedSubject:
    """A subject that is done: its outputs and its summary table."""

    tree: OutputTree
    rows: Sequence[ScoreRow]


def summary(done: Mapping[str, FinishedSubject]) -> str:
    """Write scores, findings and reports of subjects as text."""
    lines = [score_table({label: subject.rows for label, subject in done.items()}), ""]
    for label, subject in done.items():
        found = _findings(subject.tree)
        lines += [f"sub-{label}: findings: {found}"] if found else []
        lines += [f"sub-{label}: report: {subject.tree.path('report')}"]
    return "\n".join(lines)


def score_table(scores: Mapping[str, Sequence[ScoreRow]]) -> str:
    """Write mean scores as text: one line per subject, stage and metric; n is the number of test images."""
    names = "".join(f" {name:>7}" for name in ("brain", "chance", "null", "oracle", "n"))
    lines = [f"{'subject':8} {'stage':7} {'metric':28}{names}"]
    for subject, rows in scores.items():
        by_key = {(r.condition, r.stage, r.metric): r for r in rows}
        for (condition, stage, metric), row in by_key.items():
            if condition != "brain":
                continue
            others = [by_key.get((c, stage, metric)) for c in ("null", "oracle")]
            cells = [row.mean, row.chance, *(r.mean if r else None for r in others)]
            text = " ".join(f"{c:7.3f}" if c is not None else f"{'n/a':>7}" for c in cells)
            n = "n/a" if row.n_images is None else row.n_images
            lines.append(f"{'sub-' + subject:8} {stage:7} {metric:28} {text} {n:>7}")
    return "\n".join(lines)


def _findings(tree: OutputTree) -> str:
    """List the stages by severity; sound ones are counted. "" without a readable table."""
    try:
        table = read_tsv(tree.path("metrics", desc="findings"))
        found = list(zip(table["severity"], table["stage"], strict=True))
    except (AppError, KeyError, ValueError):
        return ""
    stages = defaultdict(list)
    for severity, stage in found:
        stages[severity].append(stage)
    parts = []
    for severity, word in SEVERITY_TITLES.items():
        if named := stages.get(severity):
            which = "" if severity == "ok" else f" ({', '.join(dict.fromkeys(named))})"
            parts.append(f"{len(named)} {word}{which}")
    return ", ".join(parts)
