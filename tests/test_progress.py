"""Progress passes every item on, as a bar in a terminal and as lines elsewhere."""

from __future__ import annotations

import logging
import sys

import pytest

from bidsapp import progress
from bidsapp.progress import track


@pytest.mark.parametrize("terminal", [True, False])
def test_items_pass_in_order(monkeypatch, caplog, capsys, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with caplog.at_level(logging.INFO, "bidsapp"):
        assert list(track("abc", "letters")) == ["a", "b", "c"]
    assert caplog.messages[-1].startswith("letters: 3 done in")
    assert len(caplog.messages) == 1
    assert ("letters" in capsys.readouterr().err) == terminal


def test_long_steps_say_where_they_are(monkeypatch, caplog):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, "bidsapp"):
        assert list(track(range(6), "steps", every_s=30)) == list(range(6))
    assert [m.split(" (")[0] for m in caplog.messages[:-1]] == [
        "steps: 1 of 6",
        "steps: 3 of 6",
        "steps: 5 of 6",
    ]


def test_nothing_to_do(caplog):
    with caplog.at_level(logging.INFO, "bidsapp"):
        assert list(track([], "none")) == []
    assert caplog.messages[-1].startswith("none: 0 done")
