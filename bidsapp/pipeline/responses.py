"""Stages from betas to responses: masked, averaged over repeats, z-scored."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import numpy as np

from bidsapp.data.responses import average_repeats, count_dropped, split_halves, zscore
from bidsapp.data.sessions import mask_sessions
from bidsapp.records import Mask, Split, SubjectInputs
from bidsapp.storage.files import fingerprint, sha256_array
from bidsapp.storage.stages import StageResult, Stages
from bidsapp.system.logging import track

LOG = logging.getLogger("bidsapp")


def mask_betas(stages: Stages, subject: SubjectInputs, mask: Mask, n_cpus: int) -> StageResult:
    """Betas of the mask's voxels: one array (trials, voxels) per session, in session order."""

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
    inputs = {"after": betas.key, "trials": trials, "train": split.train, "test": split.test}
    return stages.run("responses", inputs, compute)


def zscore_by_training(stages: Stages, responses: StageResult) -> StageResult:
    """Responses z-scored per voxel with the training images' mean and standard deviation."""

    def compute(folder: Path) -> dict[str, np.ndarray]:
        scored = zscore(responses["train"], responses["test"], folder)
        names = ("train", "test", "mean", "std", "kept", "finite")
        return {name: getattr(scored, name) for name in names}

    scored = stages.run("zscore", {"after": responses.key, "says": ["kept", "finite"]}, compute)
    not_finite, constant = count_dropped(scored["kept"], scored["finite"])
    if not_finite:
        LOG.warning("%d voxels were dropped: NaN or infinite in some trial", not_finite)
    if constant:
        LOG.warning("%d voxels were dropped: constant over all training images", constant)
    return scored


def split_test_halves(
    stages: Stages, betas: StageResult, responses: StageResult, subject: SubjectInputs, split: Split
) -> StageResult:
    """Two halves of each repeated test image's trials: ``first``, ``second`` (k, voxels)."""

    def compute(_: Path) -> dict[str, np.ndarray]:
        _ids, first, second = split_halves(
            [betas[name] for name in sorted(betas.arrays)],
            [s.stimulus_ids for s in subject.sessions],
            split.test,
            responses["mean"],
            responses["std"],
            responses["kept"],
        )
        return {"first": first, "second": second}

    return stages.run("halves", {"after": [betas.key, responses.key]}, compute)
