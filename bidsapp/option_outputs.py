"""Write what a run's optional analyses found: a table each, and their figures for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bidsapp.bids.outputs import OutputTree, write_metrics
from bidsapp.report.records import ExtraFigure

if TYPE_CHECKING:
    from bidsapp.evidence import HoldoutScores, SeedSpread
    from bidsapp.participant import Reconstruction

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


@dataclass(frozen=True)
class OptionOutputs:
    """What was written: ``desc`` of each table, and the figures for the report."""

    tables: tuple[str, ...] = ()
    figures: tuple[ExtraFigure, ...] = ()


def write_options(found: Reconstruction, tree: OutputTree) -> OptionOutputs:
    """Write the tables and figures of what options asked for; nothing without them."""
    evidence = found.evidence
    tables: dict[str, tuple[Mapping[str, Any], list[tuple[Any, ...]]]] = {
        "seeds": (SEED_COLUMNS, seed_rows(evidence.generator_seeds)),
        "holdout": (HOLDOUT_COLUMNS, holdout_rows(evidence.cluster_holdout)),
    }
    written = []
    for desc, (columns, rows) in tables.items():
        if rows:
            write_metrics(tree, _columns(columns, rows), columns, desc=desc)
            written.append(desc)
    return OptionOutputs(tuple(written))


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
