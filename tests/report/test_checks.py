"""Sections of the page on the control ladder and the checks."""

from __future__ import annotations

import pytest

from bidsapp.evidence import Evidence, LadderRow, Value
from bidsapp.report import checks


def rows(
    rung: str, stages: tuple[str, ...] = ("stage1", "stage2"), share: float | None = 0.5
) -> list[LadderRow]:
    value, way = Value(0.8, 0.7, 0.9), None if share is None else Value(share)
    return [LadderRow(rung, s, m, value, way, 20) for s in stages for m in ("identification", "pixcorr")]


LADDER = Evidence(
    ladder=(*rows("truth", ("stage2",)), *rows("oracle"), *rows("true_tokens"), *rows("brain"), *rows("null"))
)


def test_both_stages_have_the_same_lanes_in_the_same_order() -> None:
    plots = checks.ladder_plots(LADDER)
    assert [(p.label.key, p.task) for p in plots] == [
        ("identification", "Stage 1"),
        ("identification", "Stage 2"),
        ("pixcorr", "Stage 1"),
        ("pixcorr", "Stage 2"),
    ]
    titles = [checks.RUNG_TITLES[r] for r in ("truth", "oracle", "true_tokens", "brain", "null")]
    assert all([lane.title for lane in p.lanes] == titles for p in plots)
    first = plots[0].lanes[0]
    assert not first.marks
    assert first.text == "Stimuli: does not have this stage."
    assert all(lane.marks for lane in (*plots[0].lanes[1:], *plots[1].lanes))


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (-0.002, "0% of range"),
        (-0.5, "−50% of range"),
        (0.664, "66% of range"),
        (None, ""),
    ],
)
def test_shares_are_whole_percent_and_never_minus_zero(share: float | None, text: str) -> None:
    assert checks.share_text(None if share is None else Value(share)) == text
