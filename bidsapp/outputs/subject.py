"""Write what the participant level found for one subject: images, tables, mask, model, report."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.bids.inputs import Dataset
from bidsapp.bids.outputs import OutputTree, roi_label, source_uri, write_images, write_mask, write_metrics
from bidsapp.config import RunConfig
from bidsapp.outputs.figures import ladder_images, write_region_figures, write_voxels_used
from bidsapp.outputs.model import ridge_penalties, write_model
from bidsapp.outputs.provenance import counts_of, repeats_of, settings_of, software_versions, voxel_selection
from bidsapp.outputs.tables import (
    FINDING_COLUMNS,
    LADDER_COLUMNS,
    QUALITY_COLUMNS,
    check_values,
    findings_table,
    ladder_table,
    quality_table,
    write_option_tables,
)
from bidsapp.pipeline.records import BRAIN
from bidsapp.report.labels import metric_label
from bidsapp.report.records import ExtraFigure, ScoreRow, SubjectReport
from bidsapp.report.saved import save_report
from bidsapp.report.subject import write_subject_report

if TYPE_CHECKING:
    from bidsapp.data.stimuli import StimulusSet
    from bidsapp.pipeline.records import Reconstruction, ScoredImages

LOG = logging.getLogger("bidsapp")

_DESC = {"brain": "recon", "null": "null", "oracle": "oracle"}
_TABLES = ("summary", "ladder", "targets", "findings")
_SUFFIXES = ("image", "metrics", "model", "mask")


@dataclass(frozen=True)
class SubjectRun:
    """The run that a subject was reconstructed in, for its outputs and report.

    Attributes
    ----------
    run_id : str
        Folder of the run in ``logs``.
    seconds : float
        Wall time of the subject.
    warnings : tuple of str
        Shown in the report.
    """

    dataset: Dataset
    stimuli: StimulusSet
    config: RunConfig
    run_id: str
    seconds: float
    warnings: tuple[str, ...] = ()


def write_subject(found: Reconstruction, tree: OutputTree, run: SubjectRun) -> list[ScoreRow]:
    """Write all outputs of one subject; its report is last, so that a report means complete outputs.

    Returns the summary table.
    """
    config = run.config
    sources = [source_uri(s.betas, run.dataset.links) for s in found.subject.sessions]
    masks = [source_uri(path, run.dataset.links) for path in found.subject.masks.values()]
    write_mask(
        tree,
        roi_label(config.roi),
        found.mask,
        sources=masks,
        spatial_reference=found.subject.spatial_reference,
        selection=voxel_selection(found, run.dataset, config),
    )
    write_model(found, tree, config, sources)
    brain = found.images[BRAIN]
    meta = {"Sources": sources, "Recipe": config.recipe.name, "Seed": config.seed}
    write_images(tree, brain.ids, brain.stage2, meta)
    write_images(tree, brain.ids, brain.stage1, meta, desc="vdvae")
    for condition, images in found.images.items():
        columns = per_image_columns(images)
        write_metrics(tree, columns, per_image_descriptions(columns), desc=_DESC[condition])
    rows = summary_rows(found.images)
    settings = {
        "Recipe": config.recipe.name,
        "RecipeDigest": hashlib.sha256(json.dumps(config.recipe.as_dict()).encode()).hexdigest()[:16],
        "Seed": config.seed,
        "RegionsOfInterest": list(config.roi),
        "MinNoiseCeiling": config.min_noise_ceiling,
        "Split": found.split.name,
        "TestImages": len(found.split.test),
    }
    table = {name: [getattr(row, name) for row in rows] for name in _SUMMARY_COLUMNS}
    write_metrics(tree, table, _SUMMARY_COLUMNS | {"RunSettings": settings}, desc="summary")
    evidence = found.evidence
    write_metrics(tree, ladder_table(evidence), LADDER_COLUMNS, desc="ladder")
    write_metrics(tree, quality_table(evidence), QUALITY_COLUMNS, desc="targets")
    write_metrics(tree, findings_table(evidence), FINDING_COLUMNS | check_values(evidence), desc="findings")
    tables = (*_TABLES, *write_option_tables(evidence, tree), *(_DESC[c] for c in found.images))
    paths = [tree.path("mask", roi=roi_label(config.roi)), tree.path("model")]
    paths += [tree.path("image", stim=i, desc=d) for i in brain.ids for d in ("recon", "vdvae")]
    paths += [tree.path("image_sidecar", desc=d) for d in ("recon", "vdvae")]
    paths += [tree.path("metrics", desc=d) for d in tables]
    remove_outputs(tree, keep={path.name.partition(".")[0] for path in paths})
    figures = (*write_region_figures(evidence.roi_analysis, tree), write_voxels_used(found, tree))
    report = _report(found, rows, run, figures)
    save_report(tree.path("report_data", run_id=run.run_id), report)
    write_subject_report(tree.path("report"), report)
    return rows


def remove_outputs(
    tree: OutputTree, keep: Set[str] = frozenset(), suffixes: tuple[str, ...] = _SUFFIXES
) -> None:
    """Remove a subject's outputs, of this task, that the last run did not write.

    Parameters
    ----------
    keep : set of str
        File names up to the first dot.
    suffixes : tuple of str
        BIDS suffixes of the files to remove.
    """
    start = f"sub-{tree.subject}_task-{tree.task}_" if tree.task else f"sub-{tree.subject}_"
    folder = tree.path("model").parent
    removed: list[Path] = []
    for path in sorted(folder.glob(f"{start}*")) if folder.is_dir() else []:
        stem = path.name.partition(".")[0]
        if stem.rpartition("_")[2] in suffixes and stem not in keep:
            path.unlink()
            removed.append(path)
    if removed:
        LOG.info("sub-%s: removed %d files of an earlier run", tree.subject, len(removed))


def per_image_columns(images: ScoredImages) -> dict[str, Any]:
    """Columns of a metrics table: the stimulus, then every metric of both stages."""
    columns: dict[str, Any] = {"stimulus_id": [f"stim-{i}" for i in images.ids]}
    for stage, scores in (("stage1", images.scores1), ("stage2", images.scores2)):
        columns |= {f"{stage}_{name}": values.tolist() for name, values in scores.per_image.items()}
    return columns


def per_image_descriptions(columns: Mapping[str, Any]) -> dict[str, str]:
    """Describe every column of a metrics table."""
    texts = {"stimulus_id": "Stimulus that was shown, as in stimuli.tsv of the input."}
    for name in columns:
        stage, _, metric = name.partition("_")
        if stage in ("stage1", "stage2"):
            made = "VDVAE decode (stage 1)" if stage == "stage1" else "latent diffusion (stage 2)"
            texts[name] = f"{metric_label(metric).title} of the stimulus and the image after {made}."
    return texts


def summary_rows(images: Mapping[str, ScoredImages]) -> list[ScoreRow]:
    """Mean, interval and chance of every metric, stage and condition."""
    return [
        ScoreRow(
            condition, stage, metric, s.mean, s.low, s.high, s.chance, s.chance_low, s.chance_high,
            len(found.ids), s.ties, s.p, s.reverse,
        )
        for condition, found in images.items()
        for stage, scores in (("stage1", found.scores1), ("stage2", found.scores2))
        for metric, s in scores.summary.items()
    ]  # fmt: skip


_SUMMARY_COLUMNS = {
    "condition": {
        "Description": "What was decoded.",
        "Levels": {
            "brain": "The subject's responses.",
            "null": "Responses and images paired at random in training.",
            "oracle": "The stimuli's own latents and tokens.",
        },
    },
    "stage": {
        "Description": "Which image was scored.",
        "Levels": {"stage1": "VDVAE decode.", "stage2": "Latent diffusion from stage 1."},
    },
    "metric": "Name of the metric.",
    "mean": "Mean over test images.",
    "low": "Lower end of the bootstrap 95% interval of the mean over images.",
    "high": "Upper end of that interval.",
    "chance": "Score of a random pairing of reconstructions and stimuli.",
    "chance_low": "Lower end of the 95% range of the mean under random pairings.",
    "chance_high": "Upper end of that range.",
    "n_images": "Number of test images.",
    "p": "Permutation p of the pairing of reconstructions and stimuli, (1 + #) / (1 + N).",
    "reverse": "Two-way identification in the other direction: each stimulus among the reconstructions.",
    "ties": "Ties of two-way identification, each counted one half; 0 for other metrics.",
}


def _report(
    found: Reconstruction, rows: list[ScoreRow], run: SubjectRun, figures: tuple[ExtraFigure, ...]
) -> SubjectReport:
    brain, config = found.images[BRAIN], run.config
    per_image = {k: np.asarray(v) for k, v in per_image_columns(brain).items() if k != "stimulus_id"}
    return SubjectReport(
        subject=found.subject.label,
        task=found.subject.task,
        space=found.subject.space,
        recipe=config.recipe.name,
        stimulus_ids=brain.ids,
        captions=tuple((run.stimuli.captions(i) or ("",))[0] for i in brain.ids),
        stimuli=found.stimuli,
        stage1=brain.stage1,
        stage2=brain.stage2,
        per_image=per_image,
        scores=tuple(rows),
        penalties=ridge_penalties(found, config),
        counts=counts_of(found, config),
        repeats=repeats_of(found),
        settings=settings_of(config),
        command=config.command,
        versions=software_versions(),
        seed=config.seed,
        warnings=run.warnings,
        figures=figures,
        ladder=ladder_images(found, run.stimuli),
        evidence=found.evidence,
        run_id=run.run_id,
        duration_s=run.seconds,
    )
