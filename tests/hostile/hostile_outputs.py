"""Hostile tables in the output folder, which the group level reads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from helpers.damage import put
from hostile.hostile_case import Case, group
from hostile.hostile_tables import MANY_COLUMNS, endless, pipe, sparse

METRICS = "sub-01/func/sub-01_task-tiny_desc-recon_metrics.tsv"
GOOD = "stimulus_id\tstage1_pixcorr\tstage2_pixcorr\nstim-a\t0.1\t0.2\nstim-b\t0.3\t0.4\n"


def output(tmp: Path) -> Path:
    """A folder with one subject's scores in the dataset's place."""
    shutil.rmtree(tmp / "bids")
    (tmp / "bids" / METRICS).parent.mkdir(parents=True)
    return put(tmp / "bids" / METRICS, GOOD)


def scores(content: str | bytes | Callable[[Path], object]) -> Callable[[Path], object]:
    def make(tmp: Path) -> None:
        path = output(tmp)
        content(path) if callable(content) else put(path, content)

    return make


def refused(reason: str, content: str | bytes | Callable[[Path], object]) -> Case:
    """A single subject that is left out, so that nothing is left to gather: exit code 66."""
    return Case(66, reason, scores(content), group)


CASES = {
    "scores that are infinite": refused("not a finite number", GOOD.replace("0.3", "1e999")),
    "scores that are a page": refused(
        "not a finite number", GOOD.replace("0.3", "<script>alert(1)</script>")
    ),
    "scores that steer the terminal": refused(r"\x1b[2J", GOOD.replace("0.3", "\x1b[2J")),
    "scores of a million columns": refused("1000000 columns", MANY_COLUMNS),
    "scores with a NUL byte": refused("NUL byte", GOOD.replace("0.3", "\0")),
    "scores that are ragged": refused("where the header has 3", GOOD + "x\n"),
    "scores that are a pipe": refused("is a pipe", pipe),
    "scores that never end": refused("is a device", endless),
    "scores of 40 GB": refused("bytes; files of this kind", sparse),
}
