"""The evidence of a run as tables: the ladder, decoding quality, and findings in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bidsapp.evidence import Evidence, Value

_INTERVAL = "Lower end of its 95 % interval (bootstrap over images)."

LADDER_COLUMNS = {
    "rung": {
        "Description": "What was decoded.",
        "Levels": {
            "truth": "The stimuli themselves.",
            "retrieval": "The training image whose latents are most like the predicted ones.",
            "oracle": "True latents and tokens.",
            "true_tokens": "True tokens, from the predicted stage 1.",
            "true_stage1": "Predicted tokens, from the true stage 1.",
            "brain": "Everything predicted from the subject's responses.",
            "recalibrated": "The same under the other calibration (train-cv or transductive).",
            "mean": "The training images' mean latents.",
            "null": "Responses and images paired at random in training.",
            "random": "Responses of independent normal numbers.",
        },
    },
    "stage": {
        "Description": "Which image was scored.",
        "Levels": {"stage1": "VDVAE decode.", "stage2": "Latent diffusion, or an image that no model made."},
    },
    "metric": "Name of the metric; identification is the mean of two-way identification over networks.",
    "mean": "Mean over the ladder's images.",
    "low": _INTERVAL,
    "high": "Upper end of that interval.",
    "share": "(mean - null) / (oracle - null): 0 is luck, 1 what the models can reach.",
    "share_low": _INTERVAL,
    "share_high": "Upper end of that interval.",
    "n_images": "Number of images, the same for all rungs.",
}  # fmt: skip

QUALITY_COLUMNS = {
    "target": "Target of the regression.",
    "part": "Layer of the VDVAE or token of CLIP; all for the whole target.",
    "n_dims": "Dimensions.",
    "r": "Mean over dimensions of the correlation, over test images, of prediction and truth.",
    "r_low": "2.5 % quantile over dimensions.",
    "r_high": "97.5 % quantile over dimensions.",
    "ceiling": "Mean correlation that the reliability of the predictions allows (halves of repeats).",
    "r2": "Median over dimensions of the coefficient of determination (whole targets only).",
    "two_way": "Identification of test images by their predicted targets (whole targets only).",
    "two_way_p": "Permutation p of it.",
    "among_training": "Share of images whose own target is more similar than every training image's.",
    "median_rank": "Median place of the own target among the training images' (1 is first).",
}

FINDING_COLUMNS = {
    "code": "Name of the rule, and its section in docs/troubleshooting.md.",
    "severity": {
        "Description": "What the rule found.",
        "Levels": {
            "broken": "The stage does not do its work.",
            "limit": "What holds the picture back.",
            "ok": "The stage works.",
            "unknown": "Could not be judged.",
        },
    },
    "stage": "What it speaks of.",
    "sentence": "The finding in words.",
}


def ladder_table(evidence: Evidence) -> dict[str, list[Any]]:
    """Give the ladder as columns."""
    rows = []
    for r in evidence.ladder:
        share = r.share or Value(np.nan)
        value = (r.value.mean, r.value.low, r.value.high, share.mean, share.low, share.high)
        rows.append((r.rung, r.stage, r.metric, *value, r.n_images))
    return _columns(LADDER_COLUMNS, rows)


def quality_table(evidence: Evidence) -> dict[str, list[Any]]:
    """Give the quality of predicted targets as columns: each target, then its parts."""
    rows: list[tuple[Any, ...]] = []
    for t in evidence.targets:
        among = None if t.among_training is None else t.among_training.mean
        ceiling = None if t.ceiling is None else _mean(t.ceiling)
        low, high = (
            float(np.nanquantile(t.r, q)) if np.isfinite(t.r).any() else None for q in (0.025, 0.975)
        )
        r2 = float(np.nanmedian(t.r2)) if np.isfinite(t.r2).any() else None
        whole = (t.target, "all", t.n_dims, _mean(t.r), low, high, ceiling)
        rows.append((*whole, r2, t.two_way.mean, t.two_way_p, among, t.median_rank))
        for g in t.groups:
            ceiling = None if g.ceiling is None else g.ceiling.mean
            part = (t.target, g.name, g.n_dims, g.r.mean, g.r.low, g.r.high, ceiling)
            rows.append((*part, None, None, None, None, None))
    return _columns(QUALITY_COLUMNS, rows)


def findings_table(evidence: Evidence) -> dict[str, list[Any]]:
    """Give the findings as columns, the first cause first."""
    return _columns(FINDING_COLUMNS, [(f.code, f.severity, f.stage, f.sentence) for f in evidence.findings])


def checks(evidence: Evidence) -> dict[str, Any]:
    """Give single figures of the checks, for the sidecar of the findings."""
    found: dict[str, Any] = {}
    if evidence.reliability is not None:
        x = evidence.reliability
        found["ResponseReliability"] = {"TwoWay": x.two_way.mean, "P": x.p, "Images": x.n_images}
    if evidence.caption_match is not None:
        m = evidence.caption_match
        found["CaptionMatch"] = {"TwoWay": m.two_way.mean, "P": m.p, "Images": m.n_images}
    if evidence.spuriousness is not None:
        s = evidence.spuriousness
        found["Spuriousness"] = {
            "Space": s.space,
            "NearestTrainingImage": _mean(s.nearest_train),
            "CloserToTraining": s.closer_to_training.mean,
            "Clusters": s.n_clusters,
            "ClustersWanted": s.n_wanted,
        }
        for name, value in (("WithinCluster", s.within_cluster), ("BetweenCluster", s.between_cluster)):
            if value is not None:
                found["Spuriousness"][name] = value.mean
    orders = [t for t in evidence.trial_order if t.n_trials]
    if orders:
        found["TrialOrder"] = {
            t.session: {"BestLag": t.lags[int(np.argmax(t.correlation))], "Trials": t.n_trials}
            for t in orders
        }
    return {key: _finite(value) for key, value in found.items()}


def _finite(value: Any) -> Any:
    """Leave out what is not defined: JSON has no NaN."""
    if isinstance(value, dict):
        kept = {k: _finite(v) for k, v in value.items()}
        return {k: v for k, v in kept.items() if v is not None}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _columns(names: Mapping[str, Any], rows: list[tuple[Any, ...]]) -> dict[str, list[Any]]:
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def _mean(values: np.ndarray) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None
