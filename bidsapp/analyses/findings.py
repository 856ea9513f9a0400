"""Rules that turn evidence into findings: a sentence for each stage, from what comes first to what follows.

A stage is called broken by numbers in ``rules.toml``. What depends on a broken stage is not judged: its
finding says so. docs/troubleshooting.md has a section for each sentence.
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

#: Metric of the ladder that the rules read: the mean over evaluation networks of two-way identification.
IDENTIFICATION = "identification"
_DOC = "docs/troubleshooting.md"


@cache
def thresholds() -> Mapping[str, Any]:
    """Numbers of ``rules.toml``."""
    return tomllib.loads((Path(__file__).parent / "rules.toml").read_text(encoding="utf-8"))


def find(evidence: Evidence) -> tuple[Finding, ...]:
    """Judge every stage.

    Parameters
    ----------
    evidence : Evidence
        Its ``findings`` are not looked at. What it lacks is named as not checked.

    Returns
    -------
    tuple of Finding
        In the order of the pipeline: CLIP's input, stage 1, stage 2, trial order, responses, decoding,
        pictures, and what limits them. A healthy run has none of severity ``broken``.
    """
    ladder = {(r.rung, r.stage, r.metric): r for r in evidence.ladder}
    findings: list[Finding] = []
    broken: set[str] = set()
    for code, (judge, depends) in _RULES.items():
        hurt = [d for d in depends if d in broken]
        finding = _not_judged(code, hurt) if hurt else judge(evidence, ladder)
        if finding is None:
            continue
        findings.append(finding)
        if finding.severity == "broken" or hurt:
            broken.add(code)
    return tuple(findings)


def broken(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Give the findings that name a broken stage, the first cause first."""
    return tuple(f for f in findings if f.severity == "broken")


_Ladder = Mapping[tuple[str, str, str], LadderRow]

_STAGES = {
    "clip-input": "CLIP's input",
    "first-stage": "stage 1 (VDVAE)",
    "generator": "stage 2 (diffusion)",
    "trial-order": "trial order",
    "responses": "responses",
    "decoding": "decoding",
    "pictures": "pictures of predicted latents",
    "limit": "what limits the picture",
}


def _finding(code: str, severity: str, sentence: str, **numbers: float) -> Finding:
    if severity == "broken":
        sentence = f"{sentence} See {_DOC}#{code}."
    return Finding(code, severity, _STAGES[code], sentence, f"{_DOC}#{code}", numbers)


def _not_judged(code: str, causes: list[str]) -> Finding:
    names = " and ".join(_STAGES[c] for c in causes)
    return _finding(code, "unknown", f"Not judged, because it depends on {names}.")


def _clip_input(evidence: Evidence, ladder: _Ladder) -> Finding | None:
    found, limits = evidence.caption_match, thresholds()
    if found is None:
        return None
    score = found.two_way.mean
    if found.n_images < limits["min_images"]:
        return _finding("clip-input", "unknown", _too_few(found.n_images))
    if score < limits["clip_input"]["broken_below"]:
        text = (
            f"CLIP does not find the stimuli's own captions ({_two_way(score)}; a healthy CLIP is close to "
            "1): what reaches CLIP is broken, not the brain data. Either pixels are scaled twice, or "
            "captions belong to other images."
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
            f"Stage 1's oracle fails ({said}): the true latents do not give back the stimuli, so the VDVAE "
            "or the order of its latents is broken, not the brain data."
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
            f"Stage 2's oracle scores {score.value.mean:.2f} two-way: the generator, not the brain data, is "
            "broken."
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
    shifted = {t.session: lag for t in checked if (lag := out_of_step(t))}
    if shifted:
        names = "; ".join(
            f"ses-{s} by {abs(k)} trial{'s' if abs(k) > 1 else ''} ({'late' if k > 0 else 'early'})"
            for s, k in shifted.items()
        )
        text = (
            f"Betas and trials are out of step: {names}. Responses there match repeats of the same images "
            "in other sessions best when shifted."
        )
        return _finding("trial-order", "broken", text, sessions=float(len(shifted)))
    text = f"None of {len(checked)} sessions matches the others better when shifted."
    return _finding("trial-order", "ok", text)


def out_of_step(order: TrialOrder) -> int:
    """Give the shift at which a session matches the others, or 0 where there is no reason to doubt it."""
    errors = thresholds()["trial_order"]["errors_above"]
    best = int(np.argmax(order.correlation))
    zero = order.lags.index(0)
    gain = order.correlation[best] - order.correlation[zero]
    # Above 0 too: with responses that mean nothing every lag matches as badly.
    sure = gain > errors * order.error[best] and order.correlation[best] > errors * order.error[zero]
    return order.lags[best] if best != zero and sure else 0


def _responses(evidence: Evidence, ladder: _Ladder) -> Finding | None:
    found = evidence.reliability
    if found is None:
        return None
    if found.n_images < thresholds()["min_images"]:
        text = f"{found.n_images} repeated test images are too few to check their reliability."
        return _finding("responses", "unknown", text)
    said = f"{_two_way(found.two_way.mean)}, p = {found.p:.2g}"
    if found.p > thresholds()["responses"]["p_above"]:
        text = (
            f"Responses to repeats of an image are no more alike than to other images ({said}): the betas in "
            "this mask hold no signal of the images, and no decoder can find one."
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
            f"Responses predict none of the targets (two-way {said}): responses and stimuli are paired "
            "wrongly, or the voxels chosen do not see the images."
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
    said = f"{brain.value.mean:.2f} against {null.value.mean:.2f} of shuffled pairs, two-way"
    numbers = {"brain": brain.value.mean, "null": null.value.mean}
    low = brain.value.low if brain.value.low is not None else brain.value.mean
    if low <= 0.5 and brain.value.mean <= max(null.value.mean, 0.5) + thresholds()["limit"]["gain_above"]:
        text = (
            f"Latents are predicted, but their pictures are no better than luck ({said}): look at the "
            "calibration, and at stage 1 with predicted latents."
        )
        return _finding("pictures", "broken", text, **numbers)
    return _finding("pictures", "ok", f"Pictures of predicted latents beat luck ({said}).", **numbers)


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
    # Rounded to whole numbers, so that nothing reads as -0 %.
    way = f"{_per_cent(brain.share)} of the way from luck to what the models can do" if brain.share else ""
    said = f"{brain.value.mean:.2f} of {oracle.value.mean:.2f} two-way"
    reached = f"Brain pictures reach {way} ({said})." if way else f"Brain pictures reach {said}."
    names = {"true_stage1": "the VDVAE latents (stage 1)", "true_tokens": "the CLIP tokens (stage 2)"}
    most = max(gains, key=lambda k: gains[k], default="")
    if most and gains[most] > thresholds()["limit"]["gain_above"]:
        row = rows[most]
        gain = row.gain if row else None
        better = f"with the true ones they reach {brain.value.mean + gains[most]:.2f}"
        if gain is None or gain.low is None or gain.high is None:
            reached += f" What limits them most is the prediction of {names[most]}: {better}."
        elif gain.low > 0:
            reached += f" What limits them most is the prediction of {names[most]}: {better} "
            reached += f"(gain {_signed(gain.mean)}, {_span(gain)})."
        else:
            reached += f" {brain.n_images} images are too few to tell what limits them: the true "
            reached += f"{names[most].removeprefix('the ')} add most, {_signed(gain.mean)} ({_span(gain)})."
    return _finding("limit", "limit", reached, share=share, **{f"gain_{k}": g for k, g in gains.items()})


def _per_cent(share: Value) -> str:
    said = f"{round(100 * share.mean)} %"
    if share.low is None or share.high is None:
        return said
    return f"{said} (95 % interval {round(100 * share.low)} to {round(100 * share.high)})"


def _span(value: Value) -> str:
    return f"95 % interval {_signed(value.low or 0.0)} to {_signed(value.high or 0.0)}"


def _signed(value: float) -> str:
    """Round to two decimals: nothing reads as -0.00."""
    return f"{round(value, 2) + 0.0:.2f}"


def _too_few(n: int) -> str:
    return f"{n} test images are too few to judge this."


def _two_way(score: float) -> str:
    return f"two-way {score:.2f}"


def _named(target: str) -> str:
    return TARGET_TITLES.get(target, target)


_Rule = Callable[[Evidence, _Ladder], Finding | None]
#: Each rule, and the stages that it can't be judged without.
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
