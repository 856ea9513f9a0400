"""Tables of the ladder, the checks and the optional analyses, with a description of each column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.bids.outputs import OutputTree, stimulus_label, write_metrics
from bidsapp.evidence import Evidence, Value
from bidsapp.report.figures import save_png, triplet
from bidsapp.report.records import ExtraFigure

if TYPE_CHECKING:
    from bidsapp.evidence import HoldoutScores, ProtocolScores, RoiAnalysis, SeedSpread
    from bidsapp.pipeline.records import Reconstruction


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


def _mean(values: np.ndarray) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


SEED_COLUMNS = {
    "stage": "Which image was scored: stage1 (VDVAE decode) or stage2 (latent diffusion).",
    "metric": "Name of the metric.",
    "mean": "Mean over seeds and the ladder's images.",
    "low": "Lower end of its 95 % interval (bootstrap over images).",
    "high": "Upper end of that interval.",
    "between_seeds": "Standard deviation over seeds of an image's score, mean over images.",
    "of_mean": "Standard deviation over seeds of the mean over images.",
    "n_seeds": "Number of seeds.",
    "n_images": "Number of images.",
}


PROTOCOL_COLUMNS = {
    "protocol": "Published protocol that scored the final pictures of the brain.",
    "metric": "Name of the metric.",
    "mean": "Mean over all test images.",
    "low": "Lower end of its 95 % interval (bootstrap over images).",
    "high": "Upper end of that interval.",
    "n_images": "Number of test images.",
}


HOLDOUT_COLUMNS = {
    "target": "Target of the regression.",
    "trained_on": {
        "Description": "Training images that a test image was predicted from.",
        "Levels": {
            "all": "All.",
            "other_clusters": "Those of other clusters than its own.",
            "random_rest": "All but as many, drawn at random, as its cluster has.",
        },
    },
    "two_way": "Two-way identification of test images by their predicted targets.",
    "low": "Lower end of its 95 % interval (bootstrap over images).",
    "high": "Upper end of that interval.",
    "within": "The same among images of the same cluster.",
    "within_low": "Lower end of its interval.",
    "within_high": "Upper end of its interval.",
    "between": "The same among images of other clusters.",
    "between_low": "Lower end of its interval.",
    "between_high": "Upper end of its interval.",
    "left_out": "Training images left out, mean over test images.",
    "n_clusters": "Clusters that hold test images.",
    "n_images": "Test images.",
}  # fmt: skip


REGION_COLUMNS = {
    "region": "Region of interest.",
    "n_voxels": "Its voxels among those decoded.",
    "target": "Target of the regression.",
    "analysis": {
        "Description": "Which voxels were decoded from; the others were at their training mean.",
        "Levels": {"keep": "The region's alone.", "lesion": "All but the region's."},
    },
    "two_way": "Two-way identification of test images by their predicted targets.",
    "low": "Lower end of its 95 % interval (bootstrap over images).",
    "high": "Upper end of that interval.",
    "null": "Mean over random sets of as many voxels.",
    "null_low": "Lower end of the middle 95 % of these sets.",
    "null_high": "Upper end of it.",
    "p": "(1 + #) / (1 + N) of random sets that do as well (keep) or cost as much (lesion).",
    "whole": "Two-way identification from all voxels.",
    "n_images": "Test images.",
    "n_sets": "Random sets.",
}  # fmt: skip


@dataclass(frozen=True)
class OptionOutputs:
    """What was written: ``desc`` of each table, and the figures for the report."""

    tables: tuple[str, ...] = ()
    figures: tuple[ExtraFigure, ...] = ()


def write_options(found: Reconstruction, tree: OutputTree) -> OptionOutputs:
    """Write the tables and figures of what options asked for; nothing without them."""
    evidence = found.evidence
    tables: dict[str, tuple[Mapping[str, Any], list[tuple[Any, ...]]]] = {
        "protocols": (PROTOCOL_COLUMNS, protocol_rows(evidence.protocols)),
        "seeds": (SEED_COLUMNS, seed_rows(evidence.generator_seeds)),
        "holdout": (HOLDOUT_COLUMNS, holdout_rows(evidence.cluster_holdout)),
        "regions": (REGION_COLUMNS, region_rows(evidence.roi_analysis)),
    }
    written = []
    for desc, (columns, rows) in tables.items():
        if rows:
            write_metrics(tree, _columns(columns, rows), columns, desc=desc)
            written.append(desc)
    return OptionOutputs(tuple(written), write_region_figures(evidence.roi_analysis, tree))


def write_region_figures(found: RoiAnalysis | None, tree: OutputTree) -> tuple[ExtraFigure, ...]:
    """Write each region's pictures of both stages side by side, and remove those of earlier runs."""
    task = f"_task-{tree.task}" if tree.task else ""
    stem = f"sub-{tree.subject}{task}_desc-region"
    figures, written = [], set()
    for row, (name, size) in enumerate(zip(found.names, found.n_voxels, strict=True) if found else ()):
        assert found is not None
        label = stimulus_label(name)
        path = tree.path("figure", name=f"{stem}{row + 1}{label}_synthetic")
        save_png(path, triplet([found.stage1[row], found.stage2[row]]))
        written.add(path.name)
        figures.append(
            ExtraFigure(
                section="regions",
                path=path.relative_to(tree.out_dir).as_posix(),
                title=name,
                alt=f"Decoded from activity in {name} alone: VDVAE decode, then latent diffusion.",
                caption=f"Synthetic activation: its {size:,} voxels at 1, all others at 0.",
            )
        )
    for old in tree.path("figures").glob(f"{stem}*_synthetic.png"):
        if old.name not in written:
            old.unlink(missing_ok=True)
    return tuple(figures)


def region_rows(found: RoiAnalysis | None) -> list[tuple[Any, ...]]:
    """Give what regions carry as rows of :data:`REGION_COLUMNS`."""
    return [
        (
            s.region, s.n_voxels, s.target, s.analysis, s.two_way.mean, s.two_way.low, s.two_way.high,
            s.null.mean, s.null.low, s.null.high, s.p, s.whole, s.n_images, s.n_sets,
        )
        for s in (found.scores if found else ())
    ]  # fmt: skip


def protocol_rows(found: Sequence[ProtocolScores]) -> list[tuple[Any, ...]]:
    """Give the scores by each protocol as rows of :data:`PROTOCOL_COLUMNS`."""
    return [
        (p.protocol, metric, v.mean, v.low, v.high, p.n_images)
        for p in found
        for metric, v in p.values.items()
    ]


def seed_rows(spreads: Sequence[SeedSpread]) -> list[tuple[Any, ...]]:
    """Give the spread over seeds as rows of :data:`SEED_COLUMNS`."""
    return [
        (
            s.stage, s.metric, s.value.mean, s.value.low, s.value.high,
            s.between_seeds, s.of_mean, s.n_seeds, s.n_images,
        )
        for s in spreads
    ]  # fmt: skip


def holdout_rows(scores: Sequence[HoldoutScores]) -> list[tuple[Any, ...]]:
    """Give the scores with clusters left out as rows of :data:`HOLDOUT_COLUMNS`."""
    rows = []
    for s in scores:
        values = [x for v in (s.two_way, s.within, s.between) for x in (v.mean, v.low, v.high)]
        rows.append((s.target, s.trained_on, *values, s.left_out, s.n_clusters, s.n_images))
    return rows


def _columns(names: Mapping[str, Any], rows: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}
