"""Progress passes every item on, as a bar in a terminal and as lines elsewhere."""

from __future__ import annotations

import logging
import sys

import pytest

from bidsapp.system import logging as module
from bidsapp.system.logging import counter, track


@pytest.mark.parametrize("terminal", [True, False])
def test_items_pass_in_order(monkeypatch, caplog, capsys, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with caplog.at_level(logging.INFO, "bidsapp"):
        assert list(track("abc", "letters")) == ["a", "b", "c"]
    assert caplog.messages[-1].startswith("letters: 3 done in")
    assert len(caplog.messages) == 1
    assert ("letters" in capsys.readouterr().err) == terminal


def test_long_steps_log_their_progress(monkeypatch, caplog):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, "bidsapp"):
        assert list(track(range(6), "steps", every_s=30)) == list(range(6))
    assert [m.split(" (")[0] for m in caplog.messages[:-1]] == [
        "steps: 2 of 6",
        "steps: 4 of 6",
    ]


def test_items_done_several_at_a_time(monkeypatch, caplog):
    clock = iter(range(0, 1000, 40))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, "bidsapp"), counter(10, "images") as advance:
        for n in (4, 4, 2):
            advance(n)
    said = ["images: 4 of 10 (40 s)", "images: 8 of 10 (80 s)", "images: 10 done in 160.0 s"]
    assert caplog.messages == said


def test_a_step_that_fails_is_not_logged_as_done(caplog):
    def fail() -> None:
        with counter(10, "images") as advance:
            advance(4)
            raise ValueError("no")

    with caplog.at_level(logging.INFO, "bidsapp"), pytest.raises(ValueError, match="no"):
        fail()
    assert not caplog.messages


def test_nothing_to_do(caplog):
    with caplog.at_level(logging.INFO, "bidsapp"):
        assert list(track([], "none")) == []
    assert caplog.messages[-1].startswith("none: 0 done")
