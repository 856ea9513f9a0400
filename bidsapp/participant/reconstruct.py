"""From single-trial betas to reconstructed images and their scores.

:func:`reconstruct` reads as the methods section of Brain-Diffuser (Ozcelik & VanRullen 2023,
arXiv 2303.05334). The steps are in :mod:`bidsapp.pipeline`, the checks of them in :mod:`bidsapp.analyses`;
:mod:`bidsapp.outputs.subject` writes the results.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bidsapp.analyses import ladder
from bidsapp.analyses.checks import gather_evidence
from bidsapp.analyses.clusters import hold_out_clusters
from bidsapp.analyses.controls import probe_responses, score_predictions
from bidsapp.analyses.generator_seeds import compare_seeds, start_seeds
from bidsapp.analyses.protocols import score_by_each
from bidsapp.analyses.regions import RegionsStart, analyse_regions, start_regions
from bidsapp.config import RunConfig
from bidsapp.pipeline.decoding import choose_alphas, fit_ridge, predict_and_calibrate
from bidsapp.pipeline.images import first_stage, second_stage, shown_images, targets_of_stimuli
from bidsapp.pipeline.records import (
    BRAIN,
    NULL,
    ORACLE,
    Condition,
    Decoded,
    Fit,
    Reconstruction,
    Refinement,
    ScoredImages,
    Start,
)
from bidsapp.pipeline.responses import average_over_repeats, mask_betas, split_test_halves, zscore_by_training
from bidsapp.storage.stages import StageResult, Stages

if TYPE_CHECKING:
    from bidsapp.models.suite import Models
    from bidsapp.planning.check import CheckedRun


@dataclass(frozen=True)
class PreparedSubject:
    """Everything before stage 2 of one subject.

    Attributes
    ----------
    averaged : StageResult
        Mean response to each image.
    rows : tuple of int
        Test images of the ladder.
    seeds : dict of str to Refinement
        Further seeds of the generator.
    seed : int
        Of the run.
    """

    averaged: StageResult
    done: Decoded
    rows: tuple[int, ...]
    rungs: dict[str, Start]
    seeds: dict[str, Refinement]
    regions: RegionsStart | None
    seed: int

    @property
    def refinements(self) -> tuple[Refinement, ...]:
        """Every condition that stage 2 is run on, in this order."""
        done = self.done
        brain = Refinement(Condition(BRAIN, done.latents, done.split.test, self.seed), done.first)
        rungs = [rung.refinement for rung in self.rungs.values() if rung.refinement]
        regions = [self.regions.refinement] if self.regions else []
        return (brain, *rungs, *self.seeds.values(), *regions)


def prepare_stage2(
    run: CheckedRun, label: str, stages: Stages, models: Models, config: RunConfig
) -> PreparedSubject:
    """Run everything before stage 2 for a subject.

    Raises
    ------
    NotThere
        If ``stages`` only look for results, and one is missing.
    """
    subject, split = run.subjects[label].inputs, run.subjects[label].split

    # Responses: voxels of the region of interest, repeats averaged, z-scored by the training images.
    mask = run.subjects[label].mask
    betas = mask_betas(stages, subject, mask, config.n_cpus)
    averaged = average_over_repeats(stages, betas, subject, split)
    responses = zscore_by_training(stages, averaged)

    # Targets: VDVAE latents, CLIP image and text tokens of every stimulus.
    train, test, targets_key = targets_of_stimuli(config.work_dir, run.stimuli, models, split)

    # Decoding: ridge regression, one factorisation for all targets; predictions calibrated.
    penalties = choose_alphas(stages, responses, train, targets_key, config)
    halves = split_test_halves(stages, betas, responses, subject, split)
    rows = ladder.choose_rows(len(split.test), config)
    probes = probe_responses(halves, len(rows), config.seed)
    ridge = fit_ridge(stages, responses, penalties, probes, [halves.key, len(rows)], config)
    fit = Fit(stages, penalties, ridge, train, test, targets_key)
    latents = predict_and_calibrate(fit, config, BRAIN)
    quality = score_predictions(fit, latents, config)

    # Stage 1: images from the VDVAE's latents, of the test images, of the ladder's rungs from chance to the
    # true latents, and of what options add.
    brain = Condition(BRAIN, latents, split.test, config.seed)
    first = first_stage(stages, brain, label, models)
    done = Decoded(subject, split, betas, halves, responses, fit, latents, quality, first)
    return PreparedSubject(
        averaged=averaged,
        done=done,
        rows=rows,
        rungs=ladder.start_rungs(done, rows, models, config),
        seeds=start_seeds(done, rows, models, config),
        regions=start_regions(done, mask, run.regions(label, config), models, config),
        seed=config.seed,
    )


def reconstruct(run: CheckedRun, label: str, models: Models, config: RunConfig) -> Reconstruction:
    """Reconstruct and score the test images of one subject."""
    subject, stimuli = run.subjects[label], run.stimuli
    stages = Stages(config.work_dir / f"sub-{label}", config.force)

    # Responses, targets, decoding, and stage 1.
    prepared = prepare_stage2(run, label, stages, models, config)
    done, rows = prepared.done, prepared.rows

    # Stage 2: latent diffusion from the stage-1 images, guided by the predicted tokens.
    finals = {work.condition.name: second_stage(stages, work, label, models) for work in prepared.refinements}
    first, second = done.first, finals[BRAIN]
    shown = shown_images(stimuli, done.split.test)
    scored = [ladder.score_images(stage["images"], shown, models, config) for stage in (first, second)]
    conditions = {BRAIN: ScoredImages(done.split.test, first["images"], second["images"], *scored)}

    # Checks: the control ladder from chance to the true latents, and what may inflate scores.
    ladder_shown = shown[list(rows)]
    images = ladder.rung_images(done, rows, prepared.rungs, finals)
    if images and config.recipe.controls.ladder:
        images |= ladder.reference_images(done, rows, ladder_shown, stimuli)
    rungs = ladder.score_rungs(images, ladder_shown, models, config)
    ids = tuple(done.split.test[row] for row in rows)
    for condition in (NULL, ORACLE):
        if condition in rungs:
            conditions[condition] = ScoredImages.of_rung(ids, rungs[condition])
    table = ladder.tabulate(rungs, config.seed)
    evidence = gather_evidence(done, second, stimuli, models, table, config)

    # The stage-2 images by the other published protocols, and what options add: further seeds of the
    # generator, whole clusters left out, regions one at a time.
    seeds = prepared.seeds
    evidence = replace(
        evidence,
        protocols=score_by_each(scored[1], second["images"], shown, models, config),
        generator_seeds=compare_seeds(rungs.get(BRAIN), seeds, finals, ladder_shown, models, config),
        cluster_holdout=hold_out_clusters(done, models, config),
        roi_analysis=analyse_regions(done, prepared.regions, finals, config),
    )

    return Reconstruction(
        subject=subject.inputs,
        mask=subject.mask,
        split=subject.split,
        stimuli=shown,
        responses=prepared.averaged,
        zscored=done.responses,
        penalties=dict(done.fit.penalties),
        latents=done.latents,
        train_targets=dict(done.fit.train),
        images=conditions,
        rungs=rungs,
        ladder_ids=ids,
        evidence=evidence,
    )
