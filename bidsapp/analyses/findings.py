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
_DOC = "docs/troubleshooting.md"


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
        causes = [d for d in depends if d in affected]
        finding = _not_judged(code, causes) if causes else rule(evidence, ladder)
        if finding is None:
            continue
        findings.append(finding)
        if finding.severity == "broken" or causes:
            affected.add(code)
    return tuple(findings)


def broken(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Give the findings of broken stages, the first cause first."""
    return tuple(f for f in findings if f.severity == "broken")


_Ladder = Mapping[tuple[str, str, str], LadderRow]

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


def _finding(code: str, severity: str, sentence: str, **numbers: float) -> Finding:
    if severity == "broken":
        sentence = f"{sentence} See {_DOC}#{code}."
    return Finding(code, severity, _STAGES[code], sentence, f"{_DOC}#{code}", numbers)


def _not_judged(code: str, causes: list[str]) -> Finding:
    names = " and ".join(_STAGES[c] for c in causes)
    return _finding(code, "unknown", f"Not judged, because this depends on {names}.")


def _clip_input(evidence: Evidence, ladder: _Ladder) -> Finding | None:
    found, limits = evidence.caption_match, thresholds()
    if found is None:
        return None
    score = found.two_way.mean
    if found.n_images < limits["min_images"]:
        return _finding("clip-input", "unknown", _too_few(found.n_images))
    if score < limits["clip_input"]["broken_below"]:
        text = (
            f"CLIP does not find the stimuli's own captions ({_two_way(score)}; expected close to 1): its "
            "input is broken, not the brain data. Either pixels are scaled twice, or captions belong to "
            "other images."
        )
        return _finding("clip-input", "broken", text, two_way=score)
    text = f"CLIP finds the stimuli's own captions ({_two_way(score)}): its input is sound."
    return _finding("clip-input", "ok", text, two_way=score)


def _first_stage(evidence: Evidence, ladder: _Ladder) -> Finding | None:
    limits = thresholds()["first_stage"]
    score, pixels = (
        ladder.get(("oracle", "stage1", IDENTIFICATION)),
        ladder.get(("oracle", "stage1", "pixcorr")),
    )
    if score is None or pixels is None:
        return None
    if score.n_images < thresholds()["min_images"]:
        return _finding("first-stage", "unknown", _too_few(score.n_images))
    numbers = {"identification": score.value.mean, "pixcorr": pixels.value.mean}
    said = f"{_two_way(score.value.mean)}, pixel correlation {pixels.value.mean:.2f}"
    if score.value.mean < limits["identification_below"] or pixels.value.mean < limits["pixcorr_below"]:
        text = (
            f"Stage 1's oracle fails ({said}): decoding the true latents does not reproduce the stimuli, so "
            "the VDVAE or the order of its latents is broken, not the brain data."
        )
        return _finding("first-stage", "broken", text, **numbers)
    return _finding("first-stage", "ok", f"Stage 1's oracle works ({said}).", **numbers)


def _generator(evidence: Evidence, ladder: _Ladder) -> Finding | None:
    limits = thresholds()["generator"]
    score = ladder.get(("oracle", "stage2", IDENTIFICATION))
    before = ladder.get(("oracle", "stage1", IDENTIFICATION))
    if score is None:
        return None
    if score.n_images < thresholds()["min_images"]:
        return _finding("generator", "unknown", _too_few(score.n_images))
    numbers = {"identification": score.value.mean}
    lost = before.value.mean - score.value.mean if before else 0.0
    if score.value.mean < limits["identification_below"] or lost > limits["loss_above"]:
        text = (
            f"Stage 2's oracle fails ({_two_way(score.value.mean)}): the generator is broken, not the brain "
            "data."
        )
        return _finding("generator", "broken", text, **numbers)
    return _finding("generator", "ok", f"Stage 2's oracle works ({_two_way(score.value.mean)}).", **numbers)


def _trial_order(evidence: Evidence, ladder: _Ladder) -> Finding | None:
    limits = thresholds()["trial_order"]
    if not evidence.trial_order:
        return None
    checked = [t for t in evidence.trial_order if t.n_trials >= limits["min_trials"]]
    if not checked:
        text = "Not checked, because too few images were shown in more than one session."
        return _finding("trial-order", "unknown", text)
    shifted = {t.session: lag for t in checked if (lag := misalignment(t))}
    if shifted:
        names = "; ".join(
            f"ses-{s} by {abs(k)} trial{'s' if abs(k) > 1 else ''} ({'late' if k > 0 else 'early'})"
            for s, k in shifted.items()
        )
        text = (
            f"Betas and trials are misaligned: {names}. Responses in these sessions match repeats of the "
            "same images in other sessions best when shifted."
        )
        return _finding("trial-order", "broken", text, sessions=float(len(shifted)))
    text = f"None of {len(checked)} sessions matches the others better when shifted."
    return _finding("trial-order", "ok", text)


def misalignment(order: TrialOrder) -> int:
    """Give the shift, in trials, at which a session clearly matches the others better, or 0."""
    errors = thresholds()["trial_order"]["errors_above"]
    best = int(np.argmax(order.correlation))
    zero = order.lags.index(0)
    gain = order.correlation[best] - order.correlation[zero]
    # It must also exceed 0: without signal, all lags match equally badly.
    clear = gain > errors * order.error[best] and order.correlation[best] > errors * order.error[zero]
    return order.lags[best] if best != zero and clear else 0


def _responses(evidence: Evidence, ladder: _Ladder) -> Finding | None:
    found = evidence.reliability
    if found is None:
        return None
    if found.n_images < thresholds()["min_images"]:
        text = f"Not judged, because only {found.n_images} test images were repeated."
        return _finding("responses", "unknown", text)
    said = f"{_two_way(found.two_way.mean)}, p = {found.p:.2g}"
    if found.p > thresholds()["responses"]["p_above"]:
        text = (
            f"Responses to repeats of an image are no more alike than responses to different images "
            f"({said}): the betas in this mask carry no signal of the images, so no decoder can work."
        )
        return _finding("responses", "broken", text, two_way=found.two_way.mean, p=found.p)
    text = f"Responses to repeats of an image are alike ({said})."
    return _finding("responses", "ok", text, two_way=found.two_way.mean, p=found.p)


def _decoding(evidence: Evidence, ladder: _Ladder) -> Finding | None:
    limits = thresholds()
    if not evidence.targets:
        return None
    if evidence.targets[0].n_images < limits["min_images"]:
        return _finding("decoding", "unknown", _too_few(evidence.targets[0].n_images))
    scores = {t.target: t.two_way.mean for t in evidence.targets}
    said = ", ".join(f"{score:.2f} for the {_named(name)}" for name, score in scores.items())
    lost = [t.target for t in evidence.targets if not t.two_way_p <= limits["decoding"]["p_above"]]
    if len(lost) == len(scores):
        text = (
            f"Responses predict none of the targets (two-way {said}): either responses are paired with the "
            "wrong stimuli, or the chosen voxels do not respond to the images."
        )
        return _finding("decoding", "broken", text, **scores)
    if lost:
        names = " or the ".join(map(_named, lost))
        text = f"Responses predict some targets (two-way {said}), but not the {names}."
        return _finding("decoding", "limit", text, **scores)
    return _finding("decoding", "ok", f"Responses predict every target (two-way {said}).", **scores)


def _pictures(evidence: Evidence, ladder: _Ladder) -> Finding | None:
    brain = ladder.get(("brain", "stage1", IDENTIFICATION))
    null = ladder.get(("null", "stage1", IDENTIFICATION))
    if brain is None or null is None:
        return None
    if brain.n_images < thresholds()["min_images"]:
        return _finding("pictures", "unknown", _too_few(brain.n_images))
    said = f"two-way {brain.value.mean:.2f}, {null.value.mean:.2f} for shuffled pairs"
    numbers = {"brain": brain.value.mean, "null": null.value.mean}
    low = brain.value.low if brain.value.low is not None else brain.value.mean
    if low <= 0.5 and brain.value.mean <= max(null.value.mean, 0.5) + thresholds()["limit"]["gain_above"]:
        text = (
            f"Latents are predicted, but reconstructions are no better than chance ({said}): check the "
            "calibration, and stage 1 with predicted latents."
        )
        return _finding("pictures", "broken", text, **numbers)
    return _finding("pictures", "ok", f"Reconstructions are better than chance ({said}).", **numbers)


def _limit(evidence: Evidence, ladder: _Ladder) -> Finding | None:
    rows = {
        rung: ladder.get((rung, "stage2", IDENTIFICATION))
        for rung in ("brain", "oracle", "true_stage1", "true_tokens")
    }
    brain, oracle = rows["brain"], rows["oracle"]
    if brain is None or oracle is None:
        return None
    share = brain.share.mean if brain.share else float("nan")
    gains = {k: r.value.mean - brain.value.mean for k, r in rows.items() if r and k.startswith("true_")}
    scores = f"two-way {brain.value.mean:.2f}; oracle {oracle.value.mean:.2f}"
    if brain.share:
        share_text = _percent(brain.share)
        sentence = f"Reconstructions recover {share_text} of the range between null and oracle ({scores})."
    else:
        sentence = f"Reconstructions are identified as follows: {scores}."
    names = {"true_stage1": "VDVAE latents (stage 1)", "true_tokens": "CLIP tokens (stage 2)"}
    most = max(gains, key=lambda k: gains[k], default="")
    if most and gains[most] > thresholds()["limit"]["gain_above"]:
        row = rows[most]
        gain = row.gain if row else None
        limits = f" The prediction of the {names[most]} limits them most: with the true ones they reach "
        limits += f"{brain.value.mean + gains[most]:.2f}"
        if gain is None or gain.low is None or gain.high is None:
            sentence += f"{limits}."
        elif gain.low > 0:
            sentence += f"{limits} (gain {_signed(gain.mean)}, {_interval(gain)})."
        else:
            sentence += f" {brain.n_images} images are too few to determine what limits them: the true "
            sentence += f"{names[most]} add most, {_signed(gain.mean)} ({_interval(gain)})."
    return _finding("limit", "limit", sentence, share=share, **{f"gain_{k}": g for k, g in gains.items()})


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


def _too_few(n: int) -> str:
    return f"Not judged, because there are only {n} test images."


def _two_way(score: float) -> str:
    return f"two-way {score:.2f}"


def _named(target: str) -> str:
    return TARGET_TITLES.get(target, target)


_Rule = Callable[[Evidence, _Ladder], Finding | None]
#: Each rule, and the stages on which it depends.
_RULES: dict[str, tuple[_Rule, tuple[str, ...]]] = {
    "clip-input": (_clip_input, ()),
    "first-stage": (_first_stage, ()),
    "generator": (_generator, ("clip-input", "first-stage")),
    "trial-order": (_trial_order, ()),
    "responses": (_responses, ("trial-order",)),
    "decoding": (_decoding, ("clip-input", "trial-order", "responses")),
    "pictures": (_pictures, ("first-stage", "decoding")),
    "limit": (_limit, ("generator", "pictures")),
}
