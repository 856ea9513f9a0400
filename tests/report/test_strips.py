"""Images of the rungs: one file per rung, the same test images in each, drawn regardless of scores."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bidsapp.report.figures import GAP, SIDE
from bidsapp.report.records import LadderImages, SubjectReport
from bidsapp.report.strips import N_SHOWN, choose_strip, write_strips
from bidsapp.report.subject import write_subject_report

IDS = tuple(f"scene{i:02d}" for i in range(10))


def pictures(*rungs: str) -> LadderImages:
    """Flat images whose red encodes the rung and whose green encodes the stimulus."""
    images = {}
    for r, rung in enumerate(rungs):
        images[rung] = np.zeros((10, 16, 16, 3), np.uint8)
        images[rung][..., 0] = 20 * r
        images[rung][..., 1] = (20 * np.arange(10))[:, None, None]
    return LadderImages(IDS, tuple(f"caption of {i}" for i in IDS), images)


def report(*rungs: str, seed: int = 0) -> SubjectReport:
    return SubjectReport(subject="01", task="t", seed=seed, ladder=pictures(*rungs))


def test_each_strip_shows_the_chosen_images_of_its_rung(tmp_path: Path) -> None:
    rungs = ("truth", "true_tokens", "brain")
    shown = write_strips(tmp_path, report(*rungs))
    assert shown is not None
    assert [s.title for s in shown.rows] == ["Stimuli", "True tokens", "Brain"]
    chosen = choose_strip(pictures(*rungs), 0)
    assert [i for i, _ in shown.images] == [IDS[i] for i in chosen]
    for r, strip in enumerate(shown.rows):
        with Image.open(tmp_path / strip.src) as image:
            pixels = np.asarray(image)
        assert pixels.shape == (SIDE, strip.width, 4)
        middles = pixels[SIDE // 2, SIDE // 2 :: SIDE + GAP]
        assert middles[:, 0].tolist() == [20 * r] * N_SHOWN
        assert middles[:, 1].tolist() == [20 * i for i in chosen]
        assert all(IDS[i] in strip.alt for i in chosen)


def test_a_rung_without_stage_2_is_labelled(tmp_path: Path) -> None:
    found = dataclasses.replace(pictures("brain", "random"), first_only=("random",))
    shown = write_strips(tmp_path, SubjectReport(subject="01", ladder=found))
    assert shown is not None
    assert [s.title for s in shown.rows] == ["Brain", "Random responses, stage 1"]


def test_the_choice_depends_on_the_seed_alone() -> None:
    one, other = pictures("truth"), pictures("truth", "brain")
    assert choose_strip(one, 3) == choose_strip(other, 3)
    assert len({tuple(choose_strip(one, seed)) for seed in range(20)}) > 10
    assert all(choose_strip(one, seed) == sorted(set(choose_strip(one, seed))) for seed in range(20))


def test_strips_of_an_earlier_report_are_removed(tmp_path: Path) -> None:
    write_strips(tmp_path, report("truth", "brain"))
    write_strips(tmp_path, report("truth"))
    folder = tmp_path / "sub-01" / "figures"
    assert [p.name for p in folder.iterdir()] == ["sub-01_task-t_desc-truth_ladder.png"]
    assert write_strips(tmp_path, SubjectReport(subject="01", task="t")) is None
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("captions", [True, False])
def test_the_page_lists_the_images_in_order(tmp_path: Path, captions: bool) -> None:
    from bidsapp.evidence import Evidence, LadderRow, Value

    rows = tuple(LadderRow(r, "stage2", "pixcorr", Value(0.5), None, 10) for r in ("truth", "brain"))
    made = dataclasses.replace(report("truth", "brain"), evidence=Evidence(ladder=rows))
    if not captions:
        assert made.ladder is not None
        made = dataclasses.replace(made, ladder=dataclasses.replace(made.ladder, captions=()))
    text = write_subject_report(tmp_path / "sub-01.html", made).read_text()
    places = [text.index(IDS[i], text.index("<ol")) for i in choose_strip(pictures("truth"), 0)]
    assert places == sorted(places)
    assert ("caption of scene" in text) == captions
    assert f"{N_SHOWN} of the ladder's 10" in text.replace("&#39;", "'")
