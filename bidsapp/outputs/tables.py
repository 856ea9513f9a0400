"""Tables of the control ladder, the checks and the optional analyses, with a description of each column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.bids.outputs import OutputTree, write_metrics
from bidsapp.evidence import Evidence, Value

if TYPE_CHECKING:
    from bidsapp.evidence import HoldoutScores, ProtocolScores, RoiAnalysis, SeedSpread

_LOW = "Lower end of its 95% interval (bootstrap over images)."
_HIGH = "Upper end of that interval."
_METRIC = "Name of the metric."
_TWO_WAY = "Two-way identification of test images by their predicted targets."

LADDER_COLUMNS = {
    "rung": {
        "Description": "What was decoded.",
        "Levels": {
            "truth": "The stimuli themselves.",
            "retrieval": "The training image whose latents are most similar to the predicted ones.",
            "oracle": "True latents and tokens.",
            "true_tokens": "True tokens, from the predicted stage 1.",
            "true_stage1": "Predicted tokens, from the true stage 1.",
            "brain": "Everything predicted from the subject's responses.",
            "recalibrated": "As brain, with the other calibration (train-cv or transductive).",
            "mean": "The training images' mean latents.",
            "null": "Responses and images paired at random in training.",
            "random": "Responses drawn from a normal distribution.",
        },
    },
    "stage": {
        "Description": "Which image was scored.",
        "Levels": {"stage1": "VDVAE decode.", "stage2": "Latent diffusion, or an existing image."},
    },
    "metric": "Name of the metric; identification is the mean of two-way identification over networks.",
    "mean": "Mean over the ladder's images.",
    "low": _LOW,
    "high": _HIGH,
    "share": "(mean - null) / (oracle - null): 0 at the null, 1 at the oracle.",
    "share_low": _LOW,
    "share_high": _HIGH,
    "n_images": "Number of images, the same for all rungs.",
}

QUALITY_COLUMNS = {
    "target": "Target of the regression.",
    "part": "Layer of the VDVAE or token of CLIP; all for the whole target.",
    "n_dims": "Number of dimensions.",
    "r": "Mean over dimensions of the correlation of predicted and true values over test images.",
    "r_low": "2.5% quantile over dimensions.",
    "r_high": "97.5% quantile over dimensions.",
    "ceiling": "Mean correlation that the reliability of the predictions allows (halves of repeats).",
    "r2": "Median over dimensions of the coefficient of determination (whole targets only).",
    "two_way": "Identification of test images by their predicted targets (whole targets only).",
    "two_way_p": "Permutation p of two_way.",
    "among_training": "Share of images whose own target is more similar than every training image's.",
    "median_rank": "Median rank of an image's own target among the training images' (1 is first).",
}

FINDING_COLUMNS = {
    "code": "Name of the rule, and its section in docs/troubleshooting.md.",
    "severity": {
        "Description": "What the rule found.",
        "Levels": {
            "broken": "The stage does not work.",
            "limit": "The stage limits the reconstructions.",
            "ok": "The stage works.",
            "unknown": "The stage could not be judged.",
        },
    },
    "stage": "Stage of the pipeline.",
    "sentence": "The finding in words.",
}

SEED_COLUMNS = {
    "stage": "Which image was scored: stage1 (VDVAE decode) or stage2 (latent diffusion).",
    "metric": _METRIC,
    "mean": "Mean over seeds and the ladder's images.",
    "low": _LOW,
    "high": _HIGH,
    "between_seeds": "Standard deviation over seeds of an image's score, mean over images.",
    "of_mean": "Standard deviation over seeds of the mean over images.",
    "n_seeds": "Number of seeds.",
    "n_images": "Number of images.",
}

PROTOCOL_COLUMNS = {
    "protocol": "Published protocol that scored the final reconstructions from the brain.",
    "metric": _METRIC,
    "mean": "Mean over all test images.",
    "low": _LOW,
    "high": _HIGH,
    "n_images": "Number of test images.",
}

HOLDOUT_COLUMNS = {
    "target": "Target of the regression.",
    "trained_on": {
        "Description": "Training images that a test image was predicted from.",
        "Levels": {
            "all": "All.",
            "other_clusters": "Those of other clusters.",
            "random_rest": "All but a random selection of as many as its cluster has.",
        },
    },
    "two_way": _TWO_WAY,
    "low": _LOW,
    "high": _HIGH,
    "within": "The same among images of the same cluster.",
    "within_low": _LOW,
    "within_high": _HIGH,
    "between": "The same among images of other clusters.",
    "between_low": _LOW,
    "between_high": _HIGH,
    "left_out": "Training images left out, mean over test images.",
    "n_clusters": "Clusters with test images.",
    "n_images": "Number of test images.",
}

REGION_COLUMNS = {
    "region": "Region of interest.",
    "n_voxels": "Number of its voxels among those decoded.",
    "target": "Target of the regression.",
    "analysis": {
        "Description": "Which voxels were decoded from; the others were set to their training mean.",
        "Levels": {"keep": "Those of the region.", "lesion": "All but those of the region."},
    },
    "two_way": _TWO_WAY,
    "low": _LOW,
    "high": _HIGH,
    "null": "Mean over random sets of as many voxels.",
    "null_low": "2.5% quantile over these sets.",
    "null_high": "97.5% quantile over these sets.",
    "p": "(1 + #) / (1 + N) of random sets that score as high (keep) or cost as much (lesion).",
    "whole": "Two-way identification from all voxels.",
    "n_images": "Number of test images.",
    "n_sets": "Number of random sets.",
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


def check_values(evidence: Evidence) -> dict[str, Any]:
    """Give single values of the checks, for the sidecar of the findings."""
    found: dict[str, Any] = {}
    for name, match in (
        ("ResponseReliability", evidence.reliability),
        ("CaptionMatch", evidence.caption_match),
    ):
        if match is not None:
            found[name] = {"TwoWay": match.two_way.mean, "P": match.p, "Images": match.n_images}
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


def _mean(values: np.ndarray) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def write_option_tables(evidence: Evidence, tree: OutputTree) -> tuple[str, ...]:
    """Write the tables of optional analyses that were computed; return the ``desc`` of each."""
    tables: dict[str, tuple[Mapping[str, Any], list[tuple[Any, ...]]]] = {
        "protocols": (PROTOCOL_COLUMNS, protocol_rows(evidence.protocols)),
        "seeds": (SEED_COLUMNS, seed_rows(evidence.generator_seeds)),
        "holdout": (HOLDOUT_COLUMNS, holdout_rows(evidence.cluster_holdout)),
        "regions": (REGION_COLUMNS, region_rows(evidence.roi_analysis)),
    }
    written = {desc: table for desc, table in tables.items() if table[1]}
    for desc, (columns, rows) in written.items():
        write_metrics(tree, _columns(columns, rows), columns, desc=desc)
    return tuple(written)


def region_rows(found: RoiAnalysis | None) -> list[tuple[Any, ...]]:
    """Rows of :data:`REGION_COLUMNS`."""
    return [
        (
            s.region, s.n_voxels, s.target, s.analysis, s.two_way.mean, s.two_way.low, s.two_way.high,
            s.null.mean, s.null.low, s.null.high, s.p, s.whole, s.n_images, s.n_sets,
        )
        for s in (found.scores if found else ())
    ]  # fmt: skip


def protocol_rows(found: Sequence[ProtocolScores]) -> list[tuple[Any, ...]]:
    """Rows of :data:`PROTOCOL_COLUMNS`."""
    return [
        (p.protocol, metric, v.mean, v.low, v.high, p.n_images)
        for p in found
        for metric, v in p.values.items()
    ]


def seed_rows(spreads: Sequence[SeedSpread]) -> list[tuple[Any, ...]]:
    """Rows of :data:`SEED_COLUMNS`."""
    return [
        (
            s.stage, s.metric, s.value.mean, s.value.low, s.value.high,
            s.between_seeds, s.of_mean, s.n_seeds, s.n_images,
        )
        for s in spreads
    ]  # fmt: skip


def holdout_rows(scores: Sequence[HoldoutScores]) -> list[tuple[Any, ...]]:
    """Rows of :data:`HOLDOUT_COLUMNS`."""
    rows = []
    for s in scores:
        values = [x for v in (s.two_way, s.within, s.between) for x in (v.mean, v.low, v.high)]
        rows.append((s.target, s.trained_on, *values, s.left_out, s.n_clusters, s.n_images))
    return rows


def _columns(names: Mapping[str, Any], rows: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}
