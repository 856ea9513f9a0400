"""The published protocols side by side, and the rows that were published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.published_models import write_alexnet, write_recipe

from bidsapp.analyses.protocols import score_by_each
from bidsapp.config import load_recipe
from bidsapp.evidence import Evidence, ProtocolScores, Value
from bidsapp.metrics.protocols import published_protocols
from bidsapp.metrics.scoring import score
from bidsapp.models.judges.protocol_networks import load_protocol_networks
from bidsapp.report.published import COLUMNS, published_rows, published_table
from bidsapp.report.records import SubjectReport
from bidsapp.report.subject import write_subject_report


def test_published_rows_are_of_known_protocols_and_metrics() -> None:
    known = {name for _, name in COLUMNS}
    for row in published_rows():
        protocol = published_protocols()[row["protocol"]]
        assert set(row["scores"]) <= known & set(protocol.metrics)
        assert all(0 < v < 1 for v in row["scores"].values())
        assert row["source"]
    # Lower distances and higher scores go together: a number in the wrong column would break this.
    whole = [r["scores"] for r in published_rows() if "pixcorr" in r["scores"]]
    assert len(whole) == 8
    assert all(s["two_way_alexnet2"] > 0.75 > s["distance_swav"] for s in whole)
    assert all(s["distance_swav"] < s["distance_effnet"] for s in whole)


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    shown = rng.integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
    return shown, np.clip(shown + rng.normal(0, 60, shown.shape), 0, 255).astype(np.uint8)


def test_networks_that_exist_score_and_missing_ones_are_named(
    tmp_path: Path, images: tuple[np.ndarray, np.ndarray]
) -> None:
    shown, made = images
    write_alexnet(tmp_path / "evaluation")
    recipe = load_recipe(str(write_recipe(tmp_path, metrics={"networks": ["alexnet2", "effnet"]})))
    config = SimpleNamespace(recipe=recipe, seed=3)
    loaded: list[set[str]] = []

    def judges(uses):  # type: ignore[no-untyped-def]
        loaded.append({use.file for use in uses.values()})
        return load_protocol_networks(uses, tmp_path / "evaluation")

    models = SimpleNamespace(judges=judges)
    uses = {"alexnet2": published_protocols()["bd2023"].networks["alexnet2"]}
    own = score(made, shown, judges(uses), seed=3, protocol="bd2023")
    first, second = score_by_each(own, made, shown, models, config)  # type: ignore[arg-type]
    assert (first.protocol, second.protocol) == ("bd2023", "mindeye")
    assert {k: v.mean for k, v in first.values.items()} == {k: s.mean for k, s in own.summary.items()}
    assert set(second.values) == {"pixcorr", "ssim", "two_way_alexnet2"}
    assert second.skipped == {"distance_effnet": "efficientnet_b1-c27df63c.pth"}
    assert loaded[-1] == {"alexnet-owt-7be5be79.pth", "efficientnet_b1-c27df63c.pth"}
    assert second.n_images == 4


def test_an_own_protocol_has_no_published_table(images: tuple[np.ndarray, np.ndarray]) -> None:
    shown, made = images
    config = SimpleNamespace(recipe=load_recipe("embedded"), seed=0)
    own = score(made, shown, size=32)
    assert score_by_each(own, made, shown, SimpleNamespace(), config) == ()  # type: ignore[arg-type]
    assert published_table(Evidence(), "01") is None


def test_the_table_names_the_systems_and_what_is_missing(tmp_path: Path) -> None:
    values = {"pixcorr": Value(0.111, 0.1, 0.12), "ssim": Value(0.3), "ssim_columnwise": Value(0.42)}
    bd = ProtocolScores("bd2023", "Brain-Diffuser", values, {}, 982)
    skipped = {"distance_effnet": "efficientnet_b1-c27df63c.pth"}
    mindeye = replace(bd, protocol="mindeye", skipped=skipped, values={"pixcorr": Value(0.222)})
    table = published_table(Evidence(protocols=(bd, mindeye)), "07")
    assert table is not None
    own = [r for r in table.rows if r.own]
    assert [(r.protocol, r.subjects, r.cells[0][0]) for r in own] == [
        ("bd2023", "sub-07", "0.111"),
        ("mindeye", "sub-07", "0.222"),
    ]
    assert own[0].cells[0][1] == "0.100 to 0.120"
    assert own[1].cells[1] == ("–", "")
    assert any("0.420" in text and "bd2023" in text for text in table.notes)
    assert any("Not scored by mindeye" in t and "efficientnet_b1-c27df63c.pth" in t for t in table.notes)
    report = SubjectReport(subject="07", evidence=Evidence(protocols=(bd, mindeye)))
    text = write_subject_report(tmp_path / "sub-07.html", report).read_text()
    assert "the sessions, the test images and the protocol are the same" in text
