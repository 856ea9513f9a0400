"""Stages from stimuli to targets, and from latents to images."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.data.targets import StoredTargets, TargetStore
from bidsapp.pipeline.records import ORACLE, Condition, Fit, Refinement
from bidsapp.records import Split
from bidsapp.seeds import image_generators
from bidsapp.storage.blocks import Blocks
from bidsapp.storage.stages import StageResult, Stages, stage_key
from bidsapp.system.logging import counter

if TYPE_CHECKING:
    from bidsapp.data.stimuli import StimulusSet
    from bidsapp.models.suite import Models


LOG = logging.getLogger("bidsapp")


def targets_of_stimuli(
    folder: Path, stimuli: StimulusSet, models: Models, split: Split
) -> tuple[dict[str, StoredTargets], dict[str, StoredTargets], str]:
    """Targets of the training and test images, from the store that all subjects share.

    Returns
    -------
    train, test : dict of StoredTargets
        By target name, (images, dims).
    key : str
        Identifies what they were computed with, for the stages that follow.
    """
    section = models.recipe.as_dict()["vdvae"]
    model_key = f"{models.digest} {section['layers']} {section['sample_latents']} {models.dtype}"
    stored = {name: target.stored for name, target in models.recipe.targets.items()}
    store = TargetStore(folder, model_key, stored)
    ids = [*split.train, *split.test]
    digests = stimuli.digests(ids)

    def compute(rows: Sequence[int]) -> Mapping[str, np.ndarray]:
        wanted = [ids[r] for r in rows]
        arrays: dict[str, np.ndarray] = {}
        for alike in stimuli.by_size(wanted):  # one array holds images of one size
            names = [wanted[place] for place in alike]
            made = models.targets(stimuli.images(names), [stimuli.captions(i) for i in names])
            for target, values in made.items():
                whole = arrays.setdefault(target, np.empty((len(wanted), values.shape[1]), np.float32))
                whole[alike] = values
        return arrays

    computed = store.ensure(digests, compute)
    LOG.info("targets: %d stimuli, %d of them computed in this run", len(ids), computed)
    n = len(split.train)
    train = {t: store.rows(t, digests[:n]) for t in models.recipe.target_names}
    test = {t: store.rows(t, digests[n:]) for t in models.recipe.target_names}
    return train, test, stage_key("targets", {"store": store.key, "stimuli": digests})


def shown_images(stimuli: StimulusSet, ids: Sequence[str]) -> np.ndarray:
    """Read the images that reconstructions are compared with, uint8 (n, H, W, 3).

    If their sizes differ, all are resized to a square of the shortest side, since scores need one array.
    """
    side = stimuli.common_side(ids)
    if side is not None:
        LOG.info("test images differ in size: resized to %d x %d pixels for comparisons", side, side)
    return stimuli.images(ids, side)


def true_latents(fit: Fit, rows: Sequence[int]) -> StageResult:
    """Take the oracle's latents: the true targets of some test images."""

    def compute(_: Path) -> dict[str, np.ndarray]:
        return {name: target[:, :][list(rows)] for name, target in fit.test.items()}

    return fit.stages.run(f"latents_{ORACLE}", {"after": fit.targets_key, "rows": list(rows)}, compute)


def take(result: StageResult, rows: Sequence[int], names: Iterable[str]) -> StageResult:
    """Take some rows of a stage's arrays, with a key of their own."""
    chosen = {name: np.asarray(result[name][list(rows)]) for name in names}
    return StageResult(stage_key("rows", {"of": result.key, "rows": list(rows)}), chosen)


def first_stage(stages: Stages, condition: Condition, subject: str, models: Models) -> StageResult:
    """Stage 1: VDVAE images of the latents, ``images`` uint8 (n, S, S, 3)."""
    ids, seed, latents = condition.ids, condition.seed, condition.latents

    def compute(_: Path) -> dict[str, np.ndarray]:
        generators = image_generators(seed, subject, ids, "stage 1")
        return {"images": models.first_stage(latents["vdvae"][: len(ids)], generators)}

    inputs: dict[str, Any] = {"after": latents.key, "models": models.digest}
    inputs |= {"settings": models.recipe.as_dict()["vdvae"]}
    inputs |= {"ids": list(ids), "seed": seed, "device": models.device, "dtype": models.dtype}
    return stages.run(f"stage1_{condition.name}", inputs, compute)


def second_stage(stages: Stages, work: Refinement, subject: str, models: Models) -> StageResult:
    """Stage 2: latent diffusion from stage 1, guided by the tokens: ``images`` uint8 (n, S, S, 3).

    Blocks left by an interrupted run or by shards are used, and removed when the stage is complete.
    """
    blocks, inputs = blocks_of(stages, work, models)

    def compute(folder: Path) -> dict[str, np.ndarray]:
        if stages.forced(blocks.name):
            blocks.remove()
        blocks.begin(models.second_stage_at_once)
        warn_of_size(blocks, models)
        left = sum(len(work.condition.ids[blocks.rows(i)]) for i in range(len(blocks)) if not blocks.has(i))
        with counter(left, f"{blocks.name} (images)") as advance:

            def make(index: int) -> np.ndarray:
                made = make_block(blocks, index, work, subject, models)
                advance(len(made))
                return made

            return {"images": blocks.gather(folder / "images.npy", make)}

    done = stages.run(blocks.name, inputs, compute)
    blocks.remove()
    return done


def blocks_of(stages: Stages, work: Refinement, models: Models) -> tuple[Blocks, dict[str, Any]]:
    """Give the blocks of one condition's stage 2, and what the stage depends on."""
    condition = work.condition
    name = f"stage2_{condition.name}"
    inputs: dict[str, Any] = {
        "after": [work.initial.key, condition.latents.key],
        "models": models.digest,
        "device": models.device,
        "dtype": models.dtype,
        "settings": models.recipe.as_dict()["diffusion"],
        "ids": list(condition.ids),
        "seed": condition.seed,
    }
    return Blocks(stages.folder, name, stage_key(name, inputs), inputs, len(condition.ids)), inputs


def warn_of_size(blocks: Blocks, models: Models) -> None:
    """Warn if blocks were started with more images at once than would be chosen now; their size is kept."""
    if blocks.there() < len(blocks) and (fits := models.second_stage_at_once()) < blocks.size:
        what = (
            "%s: %d images are processed at once, as when the stage was started, but only %d are sure to fit "
        )
        what += "in memory now. To start the stage again, use --force stage2."
        LOG.warning(what, blocks.name, blocks.size, fits)


def make_block(blocks: Blocks, index: int, work: Refinement, subject: str, models: Models) -> np.ndarray:
    """Make and keep one block of stage 2: a batch of images, uint8 (k, S, S, 3)."""
    rows, condition = blocks.rows(index), work.condition
    names = [name for name in models.recipe.target_names if name != "vdvae"]
    made = models.second_stage(
        work.initial["images"][rows],
        {name: condition.latents[name][rows] for name in names},
        image_generators(condition.seed, subject, condition.ids[rows], "stage 2"),
        blocks.size,
    )
    blocks.write(index, made)
    return made
