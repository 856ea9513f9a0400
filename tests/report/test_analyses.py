"""The report's sections of optional analyses, its table of targets, and its histograms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from helpers.report_examples import evidence, full_subject_report

from bidsapp.evidence import Evidence, TargetQuality, Value
from bidsapp.report.analyses import panels
from bidsapp.report.records import RidgePenalty
from bidsapp.report.subject import write_subject_report
from bidsapp.report.targets import COLUMNS, histograms, target_table


def test_each_analysis_has_words_plots_a_table_a_method_and_a_legend() -> None:
    found = evidence()
    shown = {p.key: p for p in panels(found)}
    assert list(shown) == ["holdout", "seeds", "regions"]
    for panel in shown.values():
        assert all(panel.sentences)
        assert panel.plots
        assert panel.legend
        assert panel.caption
        assert panel.method
        assert {len(row) for row in panel.rows} == {len(panel.header)}
    assert len(shown["holdout"].rows) == len(found.cluster_holdout)
    assert len(shown["seeds"].rows) == len(found.generator_seeds)
    assert found.roi_analysis
    assert len(shown["regions"].rows) == len(found.roi_analysis.scores)


def test_sentences_state_the_numbers() -> None:
    holdout, seeds, regions = panels(evidence())
    # 78% without as many others, 70% without the own cluster.
    assert "predicted VDVAE latents, they are identified 70% of the time" in holdout.sentences[1]
    assert "8.0 percentage points (CLIP image tokens 8.0, CLIP text tokens 8.0)." in holdout.sentences[1]
    assert "two-way identification (CLIP) of stage 2" in seeds.sentences[0]
    assert "varies by 1.0 percentage points" in seeds.sentences[0]
    assert "60.0 to 80.0" in seeds.sentences[0]
    assert "hardly change" in seeds.sentences[0]
    assert "V1 alone scores highest, 65% (all voxels: 80%)" in (regions.sentences[0])
    restless = tuple(replace(s, of_mean=0.05) for s in evidence().generator_seeds)
    (panel,) = panels(Evidence(generator_seeds=restless))
    assert "small differences between runs" in panel.sentences[0]


def test_a_run_without_options_has_no_such_section(tmp_path: Path) -> None:
    report = full_subject_report(tmp_path)
    full = write_subject_report(tmp_path / "a.html", report).read_text(encoding="utf-8")
    plain = replace(evidence(), cluster_holdout=(), generator_seeds=(), roi_analysis=None)
    page = write_subject_report(tmp_path / "b.html", replace(report, evidence=plain)).read_text("utf-8")
    for text in ('id="analyses"', 'href="#analyses"', "Cluster holdout", "Seeds of the generator"):
        assert text in full
        assert text not in page
    assert "10.2202/1544-6115.1585" in full
    assert panels(plain) == ()


def test_values_that_are_not_defined_are_dashes() -> None:
    scores = tuple(replace(s, within=Value(float("nan"))) for s in evidence().cluster_holdout)
    (panel,) = panels(Evidence(cluster_holdout=scores))
    assert {row[3] for row in panel.rows} == {("–", "")}


def quality(r: np.ndarray, r2: np.ndarray, ceiling: np.ndarray | None) -> TargetQuality:
    rest = ((), Value(0.9), 0.01, Value(0.5), None, None, r.size, 10, 20)
    return TargetQuality("vdvae", r, r2, ceiling, *rest)


def test_histograms_hold_every_dimension_that_has_a_value() -> None:
    rng = np.random.default_rng(0)
    r = rng.uniform(0.2, 0.6, 5000)
    r[0] = np.nan
    correlation, explained = histograms(Evidence(targets=(quality(r, r - 0.5, r + 0.1),)))
    assert "Median 0.40, middle 95% of dimensions 0.21 to 0.59" in correlation.what
    assert "the ceiling, median 0.50" in correlation.what
    assert explained.ceiling == ""
    assert float(explained.zero) > 50  # more of R2 is negative
    points = np.array([p.split(",") for p in correlation.points.split()], dtype=float)
    low, high = (float(e) for e in correlation.ends)
    tops = points[1:-1:2]
    centres = low + (tops[:, 0] + 50 / len(tops)) / 100 * (high - low)
    heights = 40 - tops[:, 1]
    np.testing.assert_allclose((centres * heights).sum() / heights.sum(), np.nanmean(r), atol=0.01)
    assert histograms(Evidence(targets=(quality(r * np.nan, r * np.nan, None),))) == ()


def test_the_target_table_has_every_target_with_its_penalty_and_spread() -> None:
    rng = np.random.default_rng(0)
    r = np.append(rng.uniform(0.2, 0.6, 500), np.nan)
    constant = replace(quality(r * np.nan, r * np.nan, None), target="clip_text")
    found = Evidence(targets=(quality(r, r - 0.5, None), constant))
    penalties = {
        "vdvae": RidgePenalty(2000.0, "penalty chosen by k folds from 10, 2,000"),
        "clip_text": RidgePenalty(10.0),
    }
    vdvae, text = target_table(found, penalties)
    assert {len(row.cells) for row in (vdvae, text)} == {len(COLUMNS)}
    shown = dict(zip(COLUMNS, vdvae.cells, strict=True))
    low, high = np.nanquantile(r, [0.025, 0.975])
    assert shown["Correlation"] == (f"{np.nanmean(r):.3f}", f"{low:.3f} to {high:.3f}")
    assert (shown["Dimensions"][0], shown["Ridge penalty"][0]) == ("501", "2,000")
    assert vdvae.note == "penalty chosen by k folds from 10, 2,000"
    assert text.note == "the same for all test images"
    assert text.cells[0] == ("–", "")
