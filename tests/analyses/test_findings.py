"""Rules: a sound run names no stage, each kind of damage names its own, effects are not causes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bidsapp.analyses import findings as rules
from bidsapp.evidence import CaptionMatch, Evidence, LadderRow, Reliability, TargetQuality, TrialOrder, Value


def rung(name, stage, metric, mean, share=None, n=50):
    found = None if share is None else Value(share)
    return LadderRow(name, stage, metric, Value(mean, mean - 0.03, mean + 0.03), found, n)


def ladder(n=50, **changes):
    """A healthy ladder: stage 1, stage 2 identification and pixel correlation of each rung."""
    means = {
        "oracle": (0.95, 0.99, 0.9),
        "brain": (0.77, 0.90, 0.6),
        "null": (0.50, 0.51, 0.2),
        "true_stage1": (0.95, 0.93, 0.8),
        "true_tokens": (0.77, 0.96, 0.6),
    } | changes
    rows = []
    for name, (first, second, pixels) in means.items():
        rows += [
            rung(name, "stage1", rules.IDENTIFICATION, first, n=n),
            rung(name, "stage2", rules.IDENTIFICATION, second, share=(second - 0.51) / 0.48, n=n),
            rung(name, "stage1", "pixcorr", pixels, n=n),
        ]
    return tuple(rows)


def quality(name, two_way=0.9, p=0.001, n=50):
    nothing = np.zeros(1)
    return TargetQuality(
        name, nothing, nothing, None, (), Value(two_way), p, Value(0.2), None, None, 1, n, 500
    )


def order(session, best=0, gain=10.0, n=200):
    lags = (-1, 0, 1)
    correlation = np.full(3, 0.02)
    correlation[lags.index(best)] = 0.02 + gain * 0.01
    return TrialOrder(session, lags, correlation, np.full(3, 0.01), n)


NO_MATCH, NO_SIGNAL = CaptionMatch(Value(0.55), 0.2, 50), Reliability(Value(0.5), 0.4, 50)


@pytest.fixture
def healthy():
    return Evidence(
        ladder=ladder(),
        targets=tuple(quality(n) for n in ("vdvae", "clip_vision", "clip_text")),
        reliability=Reliability(Value(0.95), 0.001, 50),
        trial_order=(order("a"), order("b")),
        caption_match=CaptionMatch(Value(0.98), 0.001, 50),
    )


def named(evidence):
    return [f.code for f in rules.broken(rules.find(evidence))]


def test_a_sound_run_names_no_stage_and_reports_what_limits_it(healthy):
    found = rules.find(healthy)
    assert named(healthy) == []
    assert [f.code for f in found] == list(rules._RULES)
    last = found[-1]
    assert last.severity == "limit"
    assert "CLIP tokens" in last.sentence
    assert "0.96" in last.sentence


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("clip-input", {"caption_match": NO_MATCH, "ladder": ladder(oracle=(0.95, 0.6, 0.9))}),
        ("first-stage", {"ladder": ladder(oracle=(0.6, 0.6, 0.9))}),
        ("first-stage", {"ladder": ladder(oracle=(0.9, 0.6, 0.2))}),
        ("generator", {"ladder": ladder(oracle=(0.95, 0.55, 0.9))}),
        ("generator", {"ladder": ladder(oracle=(1.0, 0.82, 0.9))}),
        ("trial-order", {"trial_order": (order("a"), order("b", best=1))}),
        ("responses", {"reliability": NO_SIGNAL, "targets": (quality("vdvae", 0.5, 0.6),)}),
        ("decoding", {"targets": (quality("vdvae", 0.5, 0.6), quality("clip_vision", 0.5, 0.3))}),
        ("pictures", {"ladder": ladder(brain=(0.5, 0.5, 0.2))}),
    ],
)
def test_each_damage_names_its_stage_and_no_other(healthy, code, changes):
    evidence = replace(healthy, **changes)
    assert named(evidence) == [code]
    sentence = next(f.sentence for f in rules.find(evidence) if f.code == code)
    assert sentence.endswith(f"See docs/troubleshooting.md#{code}.")


def test_the_shift_of_a_session_is_reported(healthy):
    found = rules.find(replace(healthy, trial_order=(order("s01"), order("s02", best=-1))))
    sentence = next(f.sentence for f in found if f.code == "trial-order")
    assert "ses-s02 by 1 trial (early)" in sentence
    assert "s01" not in sentence


def test_a_weak_preference_for_a_shift_is_not_a_misalignment(healthy):
    evidence = replace(healthy, trial_order=(order("a", best=1, gain=4.0), order("b")))
    assert named(evidence) == []


def test_few_images_are_never_judged(healthy):
    few = replace(
        healthy,
        ladder=ladder(n=4, oracle=(0.1, 0.1, 0.1)),
        targets=(quality("vdvae", 0.5, 0.9, n=4),),
        reliability=Reliability(Value(0.5), 0.9, 4),
        caption_match=CaptionMatch(Value(0.5), 0.9, 4),
        trial_order=(order("a", best=1, n=5),),
    )
    assert named(few) == []
    assert {f.severity for f in rules.find(few)} == {"unknown", "limit"}


def test_no_sentence_repeats_the_name_of_its_stage(healthy):
    few = replace(healthy, ladder=ladder(n=4), trial_order=(order("a", n=5),), caption_match=NO_MATCH)
    for evidence in (healthy, few):
        for finding in rules.find(evidence):
            assert not finding.sentence.lower().startswith(f"{finding.stage.lower()}:")


def test_targets_have_their_readers_names(healthy):
    some = replace(healthy, targets=(quality("vdvae"), quality("clip_vision", 0.5, 0.3)))
    for evidence in (healthy, some):
        sentence = next(f.sentence for f in rules.find(evidence) if f.code == "decoding")
        assert "0.90 for the VDVAE latents" in sentence
        assert "CLIP image tokens" in sentence
        assert "_" not in sentence


@pytest.mark.parametrize(("share", "said"), [(-0.001, " 0% of"), (0.664, " 66%"), (None, "two-way 0.80")])
def test_the_share_recovered_is_in_whole_percent_or_left_out(healthy, share, said):
    rows = [r for r in ladder() if (r.rung, r.stage) != ("brain", "stage2")]
    rows.append(rung("brain", "stage2", rules.IDENTIFICATION, 0.8, share))
    sentence = rules.find(replace(healthy, ladder=tuple(rows)))[-1].sentence
    assert said in sentence
    assert "nan" not in sentence


@pytest.mark.parametrize(
    ("low", "said"),
    [
        (
            0.011,
            "The prediction of the CLIP tokens (stage 2) limits them most: with the true ones "
            "they reach 0.96 (gain 0.06, 95% interval 0.01 to 0.12).",
        ),
        (
            -0.001,
            "50 images are too few to determine what limits them: the true CLIP tokens (stage 2) add most, "
            "0.06 (95% interval 0.00 to 0.12).",
        ),
    ],
)
def test_what_limits_reconstructions_is_named_where_its_gain_is_clear(healthy, low, said):
    rows = [
        replace(r, gain=Value(0.06, low, 0.12)) if (r.rung, r.stage) == ("true_tokens", "stage2") else r
        for r in healthy.ladder
    ]
    assert rules.find(replace(healthy, ladder=tuple(rows)))[-1].sentence.endswith(said)


def test_the_share_recovered_has_its_interval(healthy):
    rows = [
        replace(r, share=Value(0.85, 0.67, 1.0)) if (r.rung, r.stage) == ("brain", "stage2") else r
        for r in healthy.ladder
    ]
    sentence = rules.find(replace(healthy, ladder=tuple(rows)))[-1].sentence
    assert "85% (95% interval 67 to 100) of the range" in sentence


def test_what_was_not_measured_is_not_judged():
    assert rules.find(Evidence()) == ()


def test_every_finding_leads_to_a_heading_of_the_documentation():
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text()
    for code in rules._RULES:
        assert f"\n## {code}\n" in text
