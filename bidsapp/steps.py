"""The stages of the participant level, each tied to its inputs' hash and its arrays on disk.

Every function here is one stage: it says what the stage depends on, and calls the room that does it. Those
that decode are in :mod:`bidsapp.decoding_steps`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.blocks import Blocks
from bidsapp.data.betas import Mask
from bidsapp.data.halves import split_halves
from bidsapp.data.responses import average_repeats, count_dropped, zscore
from bidsapp.data.sessions import mask_sessions
from bidsapp.data.targets import TargetRows, TargetStore
from bidsapp.io import fingerprint, sha256_array
from bidsapp.progress import counter, track
from bidsapp.records import Split, SubjectInputs
from bidsapp.seeds import image_generators
from bidsapp.stages import StageResult, Stages, stage_key

if TYPE_CHECKING:
    from bidsapp.data.stimuli import StimulusSet
    from bidsapp.models.suite import Models

LOG = logging.getLogger("bidsapp")

#: What a run can be conditioned on: the subject's responses, shuffled pairs, the true targets.
BRAIN, NULL, ORACLE = "brain", "null", "oracle"


def mask_betas(stages: Stages, subject: SubjectInputs, mask: Mask, n_cpus: int) -> StageResult:
    """Betas of the mask's voxels, streamed: one array (trials, voxels) a session, in session order."""

    def compute(folder: Path) -> dict[str, np.ndarray]:
        names = [f"session{i:03d}" for i in range(len(subject.sessions))]
        outs = [folder / f"{name}.npy" for name in names]
        show = partial(track, what="masking betas (sessions)")
        return dict(zip(names, mask_sessions(subject.sessions, mask, outs, n_cpus, show), strict=True))

    files = [(fingerprint(s.betas), s.scale) for s in subject.sessions]
    return stages.run("betas", {"files": files, "voxels": sha256_array(mask.flat_index)}, compute)


def average_over_repeats(
    stages: Stages, betas: StageResult, subject: SubjectInputs, split: Split
) -> StageResult:
    """Mean response to each image over its repeats: ``train`` and ``test``, (images, voxels)."""

    def compute(folder: Path) -> dict[str, np.ndarray]:
        sessions = [betas[name] for name in sorted(betas.arrays)]
        shown = [s.stimulus_ids for s in subject.sessions]
        train, train_repeats = average_repeats(sessions, shown, split.train, folder / "train.npy")
        test, test_repeats = average_repeats(sessions, shown, split.test, folder / "test.npy")
        return {"train": train, "test": test, "train_repeats": train_repeats, "test_repeats": test_repeats}

    trials = [s.stimulus_ids for s in subject.sessions]
    inputs = {"after": betas.key, "trials": _digest_text(trials), "train": split.train, "test": split.test}
    return stages.run("responses", inputs, compute)


def zscore_by_training(stages: Stages, responses: StageResult) -> StageResult:
    """Responses z-scored per voxel with the training images' mean and standard deviation."""

    def compute(folder: Path) -> dict[str, np.ndarray]:
        scored = zscore(responses["train"], responses["test"], folder)
        return {
            "train": scored.train,
            "test": scored.test,
            "mean": scored.mean,
            "std": scored.std,
            "kept": scored.kept,
            "finite": scored.finite,
        }

    scored = stages.run("zscore", {"after": responses.key, "says": ["kept", "finite"]}, compute)
    not_finite, constant = count_dropped(scored["kept"], scored["finite"])
    if not_finite:
        LOG.warning("%d voxels were dropped: NaN or infinite in some trial", not_finite)
    if constant:
        LOG.warning("%d voxels were dropped: the same in all training images", constant)
    return scored


def targets_of_stimuli(
    folder: Path, stimuli: StimulusSet, models: Models, split: Split
) -> tuple[dict[str, TargetRows], dict[str, TargetRows], str]:
    """Targets of the training and test images, from the store that all subjects share.

    Returns
    -------
    train, test : dict of TargetRows
        By target name, (images, dims).
    key : str
        Names what made them, for the stages that follow.
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
    LOG.info("targets: %d stimuli, %d of them computed now", len(ids), computed)
    n = len(split.train)
    train = {t: store.rows(t, digests[:n]) for t in models.recipe.target_names}
    test = {t: store.rows(t, digests[n:]) for t in models.recipe.target_names}
    return train, test, _digest_text([store.key, digests])


def shown_images(stimuli: StimulusSet, ids: Sequence[str]) -> np.ndarray:
    """Read the images that reconstructions are compared with, uint8 (n, H, W, 3).

    Where they differ in size, all are brought to a square of the shortest side: scores take one array.
    """
    side = stimuli.common_side(ids)
    if side is not None:
        LOG.info("test images differ in size: brought to %d x %d pixels to be compared with", side, side)
    return stimuli.images(ids, side)


def split_test_halves(
    stages: Stages,
    betas: StageResult,
    responses: StageResult,
    subject: SubjectInputs,
    split: Split,
) -> StageResult:
    """Two halves of each repeated test image's trials: ``first``, ``second`` (k, voxels), ``rows`` (k,)."""

    def compute(_: Path) -> dict[str, np.ndarray]:
        repeated, first, second = split_halves(
            [betas[name] for name in sorted(betas.arrays)],
            [s.stimulus_ids for s in subject.sessions],
            split.test,
            responses["mean"],
            responses["std"],
            responses["kept"],
        )
        place = {stimulus: row for row, stimulus in enumerate(split.test)}
        return {"first": first, "second": second, "rows": np.array([place[i] for i in repeated], np.int64)}

    return stages.run("halves", {"after": [betas.key, responses.key]}, compute)


def true_latents(
    stages: Stages, targets: Mapping[str, TargetRows], targets_key: str, rows: Sequence[int]
) -> StageResult:
    """Take the oracle's latents: the true targets of some test images."""

    def compute(_: Path) -> dict[str, np.ndarray]:
        return {name: target[:, :][list(rows)] for name, target in targets.items()}

    return stages.run(f"latents_{ORACLE}", {"after": targets_key, "rows": list(rows)}, compute)


def take(result: StageResult, rows: Sequence[int], names: Iterable[str]) -> StageResult:
    """Take some rows of a stage's arrays, under a key of their own."""
    chosen = {name: np.asarray(result[name][list(rows)]) for name in names}
    return StageResult(stage_key("rows", {"of": result.key, "rows": list(rows)}), chosen)


def first_stage(
    stages: Stages,
    latents: StageResult,
    ids: Sequence[str],
    subject: str,
    models: Models,
    seed: int,
    condition: str,
) -> StageResult:
    """Stage 1: VDVAE images of the latents, ``images`` uint8 (n, S, S, 3)."""

    def compute(_: Path) -> dict[str, np.ndarray]:
        generators = image_generators(seed, subject, ids, "stage 1")
        return {"images": models.first_stage(latents["vdvae"][: len(ids)], generators)}

    inputs: dict[str, Any] = {"after": latents.key, "models": models.digest}
    inputs |= {"settings": models.recipe.as_dict()["vdvae"]}
    inputs |= {"ids": list(ids), "seed": seed, "device": models.device, "dtype": models.dtype}
    return stages.run(f"stage1_{condition}", inputs, compute)


@dataclass(frozen=True)
class Refinement:
    """What stage 2 starts from under one condition.

    Attributes
    ----------
    condition : str
    initial, latents : StageResult
        Images of stage 1, and predicted targets.
    ids : tuple of str
        What each image stands for, in row order.
    seed : int
    """

    condition: str
    initial: StageResult
    latents: StageResult
    ids: tuple[str, ...]
    seed: int


def second_stage(stages: Stages, work: Refinement, subject: str, models: Models) -> StageResult:
    """Stage 2: latent diffusion from stage 1 under the tokens, ``images`` uint8 (n, S, S, 3).

    Blocks that an interrupted run or shards left are taken up, and removed when the stage is complete.
    """
    blocks, inputs = blocks_of(stages, work, models)

    def compute(folder: Path) -> dict[str, np.ndarray]:
        if stages.forced(blocks.name):
            blocks.remove()
        blocks.begin(models.second_stage_at_once)
        warn_of_size(blocks, models)
        left = sum(len(work.ids[blocks.rows(i)]) for i in range(len(blocks)) if not blocks.has(i))
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
    name = f"stage2_{work.condition}"
    inputs: dict[str, Any] = {
        "after": [work.initial.key, work.latents.key],
        "models": models.digest,
        "device": models.device,
        "dtype": models.dtype,
    }
    inputs |= {"settings": models.recipe.as_dict()["diffusion"], "ids": list(work.ids), "seed": work.seed}
    return Blocks(stages.folder, name, stage_key(name, inputs), inputs, len(work.ids)), inputs


def warn_of_size(blocks: Blocks, models: Models) -> None:
    """Say where blocks were begun with more images at once than would be chosen now; they stay as begun."""
    if blocks.there() < len(blocks) and (fits := models.second_stage_at_once()) < blocks.size:
        what = "%s: %d images go at once, as when it was begun, though no more than %d are sure to fit now; "
        LOG.warning(what + "--force stage2 begins it anew", blocks.name, blocks.size, fits)


def make_block(blocks: Blocks, index: int, work: Refinement, subject: str, models: Models) -> np.ndarray:
    """Make and keep one block of stage 2: a batch of images, uint8 (k, S, S, 3)."""
    rows = blocks.rows(index)
    names = [name for name in models.recipe.target_names if name != "vdvae"]
    made = models.second_stage(
        work.initial["images"][rows],
        {name: work.latents[name][rows] for name in names},
        image_generators(work.seed, subject, work.ids[rows], "stage 2"),
        blocks.size,
    )
    blocks.write(index, made)
    return made


def _digest_text(value: Any) -> str:
    import hashlib
    import json

    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
