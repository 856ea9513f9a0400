"""Words out of files of others are shown as text: in the group's page, in messages, in logs."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from helpers.damage import snapshot
from helpers.output_tree import Page, record_complete
from hostile.hostile_case import Trap, mark

from bidsapp.errors import AppError, InputProblems, Problem, as_shown
from bidsapp.group.level import run_group
from bidsapp.storage.stages import Stages
from bidsapp.storage.text import read_tsv
from bidsapp.system.logging import log_to_file

SCRIPT = "<script>alert(1)</script>\"'><img src=http://evil.example/x.png onerror=alert(2)>"
LINK = "javascript:alert(3)//../../../etc/passwd"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder in which everything that can be a word is a script."""
    func = tmp_path / "out" / "sub-01" / "func"
    func.mkdir(parents=True)
    stem = "sub-01_task-tiny_desc"
    header = f"stimulus_id\tstage1_{SCRIPT}\tstage2_pixcorr\tstage2_=HYPERLINK({LINK})\n"
    (func / f"{stem}-recon_metrics.tsv").write_text(header + "x\t0.1\t0.2\t0.3\n" * 3)
    columns = ("condition", "stage", "metric", "p", "chance", "chance_low", "chance_high")
    rows = [columns, ("brain", "stage1", SCRIPT, "0.01", "0.5", "0.4", "0.6")]
    (func / f"{stem}-summary_metrics.tsv").write_text("".join("\t".join(r) + "\n" for r in rows))
    (func / f"{stem}-summary_metrics.json").write_text(
        json.dumps({"RunSettings": {"recipe": SCRIPT, "x": LINK}})
    )
    findings = f"severity\tstage\tsentence\nbroken\t{SCRIPT}\t{SCRIPT}\n{SCRIPT}\t\tx\n"
    (func / f"{stem}-findings_metrics.tsv").write_text(findings)
    listed = "".join(f"{name}\n" for name in ("sub-01", f"sub-{SCRIPT}", "sub-../../x", "sub-\x1b[2Jy"))
    (tmp_path / "out" / "participants.tsv").write_text("participant_id\n" + listed)
    (tmp_path / "out" / "sub-<b>.html").write_text("x")
    return tmp_path / "out"


def test_the_groups_page_shows_it_as_text(out, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        outcome = run_group(record_complete(out), command=SCRIPT)
    text = outcome.report.read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert not page.handlers
    assert "&lt;script&gt;alert(1)" in text
    assert not [a for a in page.addresses if "javascript" in a or "evil" in a or ".." in a]
    assert {m.label for m in outcome.missing} == {SCRIPT, "../../x", "\x1b[2Jy", "<b>"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert read_tsv(outcome.table)["participant_id"] == ["sub-01"]
    # a cell that a spreadsheet would compute: none begins with the words of others
    assert not [c for c in read_tsv(outcome.table) if c.startswith(("=", "+", "-", "@"))]


def test_no_message_and_no_log_steers_a_terminal(tmp_path):
    words = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202etxt.exe\r\0 text, ümläut, 漢字\tand\nlines"
    shown = as_shown(words)
    assert as_shown("\ud800") == r"\ud800"  # half a character, which no file could be written with
    assert shown == (r"\x1b]0;owned\x07\x1b[2J\x9b31m\u202etxt.exe\r\x00 text, ümläut, 漢字" + "\tand\nlines")
    assert as_shown(shown) == shown
    for error in (AppError(words), InputProblems([Problem(words, words, words)])):
        assert as_shown(str(error)) == str(error)
    with log_to_file(tmp_path / "run.log"):
        logging.getLogger("bidsapp").warning("sub-%s", words)
    # Lines of a message are indented, so that no name of a file looks like an entry of the log.
    assert shown.replace("\n", "\n    ") in (tmp_path / "run.log").read_text(encoding="utf-8")


def test_a_long_line_is_cut_in_its_middle_and_others_stay():
    short = "a line\n" * 10_000
    assert as_shown(short) == short
    text = as_shown("begin" + "x" * 10_000_000 + "end\nnext")
    assert text.startswith("begin")
    assert text.endswith("end\nnext")
    assert "9994008 characters" in text
    assert len(text) < 7000


def test_a_pickled_array_of_a_stage_is_damage_and_is_computed_again(tmp_path, caplog):
    """An array that was exchanged, with a record that fits it: whoever shares the work folder could."""
    from bidsapp.storage.files import sha256_file

    def compute(folder: object) -> dict[str, np.ndarray]:
        return {"x": np.arange(3.0)}

    Stages(tmp_path / "work").run("one", {"seed": 1}, compute)
    (array,) = (tmp_path / "work").rglob("x.npy")
    np.save(array, np.array([Trap(mark(tmp_path))], dtype=object), allow_pickle=True)
    record = array.with_name("done.json")
    content = json.loads(record.read_text())
    content["arrays"]["x"] |= {
        "sha256": sha256_file(array),
        "bytes": array.stat().st_size,
        "size": array.stat().st_size,
        "dtype": "object",
        "shape": [1],
    }
    record.write_text(json.dumps(content))
    before = snapshot(array.parent)
    with caplog.at_level(logging.WARNING):
        again = Stages(tmp_path / "work").run("one", {"seed": 1}, compute)
    assert "damaged" in caplog.text
    assert "Python objects" in caplog.text  # it came as far as NumPy
    assert again.arrays["x"].tolist() == [0.0, 1.0, 2.0]
    assert not mark(tmp_path).exists()
    assert snapshot(array.parent) != before
    np.load(array, allow_pickle=False)
