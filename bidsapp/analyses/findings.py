"""Rules that turn evidence into findings: one sentence per stage, in the order of the pipeline.

Thresholds are in ``rules.toml``. Stages that depend on a broken one are not judged, and their finding states
this. docs/troubleshooting.md has a section for each finding.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bidsapp.evidence import Evidence, Finding, LadderRow, TrialOrder, Value
from bidsapp.records import TARGET_TITLES

#: Metric of the ladder that the rules use: two-way identification, mean over the evaluation networks.
IDENTIFICATION = "identification"


@cache
def thresholds() -> Mapping[str, Any]:
    """Thresholds of ``rules.toml``."""
    return tomllib.loads((Path(__file__).parent / "rules.toml").read_text(encoding="utf-8"))


def find(evidence: Evidence) -> tuple[Finding, ...]:
    """Judge every stage for which there is evidence.

    Returns
    -------
    tuple of Finding
        In the order of the pipeline: CLIP's input, stage 1, stage 2, trial order, responses, decoding,
        reconstructions, and what limits them. In a sound run none has the severity ``broken``.
    """
    ladder = {(r.rung, r.stage, r.metric): r for r in evidence.ladder}
    findings: list[Finding] = []
    affected: set[str] = set()
    for code, (rule, depends) in _RULES.items():
        causes = [_STAGES[d] for d in depends if d in affected]
        verdict = rule(evidence, ladder)
        if causes:
            verdict = "unknown", f"Not judged, because this depends on {' and '.join(causes)}."
        if verdict is None:
            continue
        severity, sentence = verdict
        if severity == "broken":
            sentence += f" See docs/troubleshooting.md#{code}."
        findings.append(Finding(code, severity, _STAGES[code], sentence))
        if severity == "broken" or causes:
            affected.add(code)
    return tuple(findings)


def broken(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Give the findings of broken stages, the first cause first."""
    return tuple(f for f in findings if f.severity == "broken")


_Ladder = Mapping[tuple[str, str, str], LadderRow]
#: Severity and sentence; None without evidence.
_Verdict = tuple[str, str] | None

_STAGES = {
    "clip-input": "CLIP's input",
    "first-stage": "stage 1 (VDVAE)",
    "generator": "stage 2 (diffusion)",
    "trial-order": "trial order",
    "responses": "responses",
    "decoding": "decoding",
    "pictures": "reconstructions",
    "limit": "what limits reconstructions",
}


def _clip_input(evidence: Evidence, ladder: _Ladder) -> _Verdict:
    found = evidence.caption_match
    if found is None:
        return None
    if few := _too_few(found.n_images):
        return few
    score = _two_way(found.two_way)
    if found.two_way.mean < thresholds()["clip_input"]["broken_below"]:
        return "broken", (
            f"CLIP does not find the stimuli's own captions ({score}; expected close to 1): its input is "
            "broken, not the brain data. Either pixels are scaled twice, or captions belong to other images."
        )
    return "ok", f"CLIP finds the stimuli's own captions ({score}): its input is sound."


def _first_stage(evidence: Evidence, ladder: _Ladder) -> _Verdict:
    limits = thresholds()["first_stage"]
    found = ladder.get(("oracle", "stage1", IDENTIFICATION))
    pixels = ladder.get(("oracle", "stage1", "pixcorr"))
    if found is None or pixels is None:
        return None
    if few := _too_few(found.n_images):
        return few
    scores = f"{_two_way(found.value)}, pixel correlation {pixels.value.mean:.2f}"
    if found.value.mean < limits["identification_below"] or pixels.value.mean < limits["pixcorr_below"]:
        return "broken", (
            f"Stage 1's oracle fails ({scores}): decoding the true latents does not reproduce the stimuli, "
            "so the VDVAE or the order of its latents is broken, not the brain data."
        )
    return "ok", f"Stage 1's oracle works ({scores})."


def _generator(evidence: Evidence, ladder: _Ladder) -> _Verdict:
    limits = thresholds()["generator"]
    found = ladder.get(("oracle", "stage2", IDENTIFICATION))
    before = ladder.get(("oracle", "stage1", IDENTIFICATION))
    if found is None:
        return None
    if few := _too_few(found.n_images):
        return few
    score = _two_way(found.value)
    lost = before.value.mean - found.value.mean if before else 0.0
    if found.value.mean < limits["identification_below"] or lost > limits["loss_above"]:
        return "broken", f"Stage 2's oracle fails ({score}): the generator is broken, not the brain data."
    return "ok", f"Stage 2's oracle works ({score})."


def _trial_order(evidence: Evidence, ladder: _Ladder) -> _Verdict:
    if not evidence.trial_order:
        return None
    least = thresholds()["trial_order"]["min_trials"]
    checked = [t for t in evidence.trial_order if t.n_trials >= least]
    if not checked:
        return "unknown", "Not judged, because too few images were shown in more than one session."
    shifted = {t.session: lag for t in checked if (lag := misalignment(t))}
    if shifted:
        names = "; ".join(
            f"ses-{s} by {abs(k)} trial{'s' if abs(k) > 1 else ''} ({'late' if k > 0 else 'early'})"
            for s, k in shifted.items()
        )
        return "broken", (
            f"Betas and trials are misaligned: {names}. Responses in these sessions match repeats of the "
            "same images in other sessions best when shifted."
        )
    return "ok", f"None of {len(checked)} sessions matches the others better when shifted."


def misalignment(order: TrialOrder) -> int:
    """Give the shift, in trials, at which a session clearly matches the others better, or 0."""
    errors = thresholds()["trial_order"]["errors_above"]
    best = int(np.argmax(order.correlation))
    zero = order.lags.index(0)
    gain = order.correlation[best] - order.correlation[zero]
    # It must also exceed 0: without signal, all lags match equally badly.
    clear = gain > errors * order.error[best] and order.correlation[best] > errors * order.error[zero]
    return order.lags[best] if best != zero and clear else 0


def _responses(evidence: Evidence, ladder: _Ladder) -> _Verdict:
    found = evidence.reliability
    if found is None:
        return None
    if found.n_images < thresholds()["min_images"]:
        return "unknown", f"Not judged, because only {found.n_images} test images were repeated."
    score = f"{_two_way(found.two_way)}, p = {found.p:.2g}"
    if found.p > thresholds()["responses"]["p_above"]:
        return "broken", (
            f"Responses to repeats of an image are no more alike than responses to different images "
            f"({score}): the betas in this mask carry no signal of the images, so no decoder can work."
        )
    return "ok", f"Responses to repeats of an image are alike ({score})."


def _decoding(evidence: Evidence, ladder: _Ladder) -> _Verdict:
    targets = evidence.targets
    if not targets:
        return None
    if few := _too_few(targets[0].n_images):
        return few
    names = {t.target: TARGET_TITLES.get(t.target, t.target) for t in targets}
    scores = "two-way " + ", ".join(f"{t.two_way.mean:.2f} for the {names[t.target]}" for t in targets)
    lost = [t for t in targets if not t.two_way_p <= thresholds()["decoding"]["p_above"]]
    if len(lost) == len(targets):
        return "broken", (
            f"Responses predict none of the targets ({scores}): either responses are paired with the wrong "
            "stimuli, or the chosen voxels do not respond to the images."
        )
    if lost:
        missing = " or the ".join(names[t.target] for t in lost)
        return "limit", f"Responses predict some targets ({scores}), but not the {missing}."
    return "ok", f"Responses predict every target ({scores})."


def _reconstructions(evidence: Evidence, ladder: _Ladder) -> _Verdict:
    brain = ladder.get(("brain", "stage1", IDENTIFICATION))
    null = ladder.get(("null", "stage1", IDENTIFICATION))
    if brain is None or null is None:
        return None
    if few := _too_few(brain.n_images):
        return few
    scores = f"{brain.n_images} images, {_two_way(brain.value)}; null {null.value.mean:.2f}"
    low = brain.value.low if brain.value.low is not None else brain.value.mean
    if low <= 0.5 and brain.value.mean <= max(null.value.mean, 0.5) + thresholds()["limit"]["gain_above"]:
        return "broken", (
            f"Latents are predicted, but stage-1 images are no better than chance ({scores}): check the "
            "calibration, and stage 1 with predicted latents."
        )
    return "ok", f"Stage-1 images are better than chance ({scores})."


def _limit(evidence: Evidence, ladder: _Ladder) -> _Verdict:
    rungs = ("brain", "oracle", "true_stage1", "true_tokens")
    rows = {rung: row for rung in rungs if (row := ladder.get((rung, "stage2", IDENTIFICATION)))}
    if "brain" not in rows or "oracle" not in rows:
        return None
    brain = rows["brain"]
    scores = f"{brain.n_images} images, {_two_way(brain.value)}; oracle {rows['oracle'].value.mean:.2f}"
    if brain.share:
        share = _percent(brain.share)
        sentence = f"Reconstructions recover {share} of the range between null and oracle ({scores})."
    else:
        sentence = f"Reconstructions are identified as follows: {scores}."
    names = {"true_stage1": "VDVAE latents (stage 1)", "true_tokens": "CLIP tokens (stage 2)"}
    gains = {k: rows[k].value.mean - brain.value.mean for k in rungs[2:] if k in rows}
    most = max(gains, key=lambda k: gains[k], default="")
    if most and gains[most] > thresholds()["limit"]["gain_above"]:
        gain = rows[most].gain
        limits = f" The prediction of the {names[most]} limits them most: with the true ones they reach "
        limits += f"{brain.value.mean + gains[most]:.2f}"
        if gain is None or gain.low is None or gain.high is None:
            sentence += f"{limits}."
        elif gain.low > 0:
            sentence += f"{limits} (gain {_signed(gain.mean)}, {_interval(gain)})."
        else:
            sentence += f" {brain.n_images} images are too few to determine what limits them: the true "
            sentence += f"{names[most]} add most, {_signed(gain.mean)} ({_interval(gain)})."
    return "limit", sentence


def _percent(share: Value) -> str:
    """Whole numbers, so that nothing reads as -0%."""
    said = f"{round(100 * share.mean)}%"
    if share.low is None or share.high is None:
        return said
    return f"{said} (95% interval {round(100 * share.low)} to {round(100 * share.high)})"


def _interval(value: Value) -> str:
    return f"95% interval {_signed(value.low or 0.0)} to {_signed(value.high or 0.0)}"


def _signed(value: float) -> str:
    """Round to two decimals; nothing reads as -0.00."""
    return f"{round(value, 2) + 0.0:.2f}"


def _too_few(n: int) -> _Verdict:
    if n >= thresholds()["min_images"]:
        return None
    return "unknown", f"Not judged, because there are only {n} test images."


def _two_way(score: Value) -> str:
    return f"two-way {score.mean:.2f}"


_Rule = Callable[[Evidence, _Ladder], _Verdict]
#: Each rule, and the stages on which it depends.
_RULES: dict[str, tuple[_Rule, tuple[str, ...]]] = {
    "clip-input": (_clip_input, ()),
    "first-stage": (_first_stage, ()),
    "generator": (_generator, ("clip-input", "first-stage")),
    "trial-order": (_trial_order, ()),
    "responses": (_responses, ("trial-order",)),
    "decoding": (_decoding, ("clip-input", "trial-order", "responses")),
    "pictures": (_reconstructions, ("first-stage", "decoding")),
    "limit": (_limit, ("generator", "pictures")),
}
