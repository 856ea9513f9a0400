"""Write what a run's optional analyses found: a table each, and their figures for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bidsapp.bids.outputs import OutputTree, stimulus_label, write_metrics
from bidsapp.report.figures import save_png, triplet
from bidsapp.report.records import ExtraFigure

if TYPE_CHECKING:
    from bidsapp.evidence import HoldoutScores, ProtocolScores, RoiAnalysis, SeedSpread
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
