"""The model file, which predicts targets from new responses, and the ridge penalties it was fitted with."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.bids.outputs import OutputTree, write_model_sidecar
from bidsapp.config import RunConfig
from bidsapp.decoding.backends import choose_backend
from bidsapp.decoding.decoder import RidgeDecoder
from bidsapp.decoding.model_writer import FittedModel, FittedTarget, VoxelScaling, made_from
from bidsapp.decoding.model_writer import write_model as write
from bidsapp.report.records import RidgePenalty
from bidsapp.storage.atomic import atomic_path
from bidsapp.storage.stages import stage_key

if TYPE_CHECKING:
    from bidsapp.decoding.crossvalidation import Selection
    from bidsapp.pipeline.records import Reconstruction

LOG = logging.getLogger("bidsapp")

#: Names of a recipe's ``ridge.selection`` in reports.
SELECTIONS = {"loo": "leave-one-out", "kfold": "k folds"}


def write_model(found: Reconstruction, tree: OutputTree, config: RunConfig, sources: list[str]) -> None:
    """Write the model file and its sidecar; a file of an earlier run with the same fit is kept."""
    path, scored, latents = tree.path("model"), found.zscored, found.latents
    # By content and not by stage keys, which depend on the dataset's path: the file must not.
    made_of = {
        "voxels": [hashlib.sha256(found.mask.flat_index.tobytes()).hexdigest(), found.mask.shape],
        "responses": scored.content,
        "latents": latents.content,
        "penalties": {name: asdict(s) for name, s in found.penalties.items()},
        "save_weights": config.save_weights,
    }
    key = stage_key("model file", made_of)
    if made_from(path) == key:
        LOG.info("model file: kept from an earlier run")
        return
    voxels = VoxelScaling(found.mask.subset(scored["kept"]), scored["mean"], scored["std"])
    alphas = {name: found.penalties[name].alpha for name in config.recipe.target_names}
    targets = {
        name: FittedTarget(
            alpha,
            found.train_targets[name],
            latents[f"{name}_raw"],
            latents.arrays.get(f"{name}_scale"),
            latents.arrays.get(f"{name}_shift"),
            _tried(found.penalties[name]),
        )
        for name, alpha in alphas.items()
    }
    x, test = scored["train"], scored["test"]
    backend = choose_backend(config.device, float(len(x)) ** 2 * sum(t.y.shape[1] for t in targets.values()))
    path.unlink(missing_ok=True)  # first, or the disk would have to hold both
    with atomic_path(path) as temporary:
        model = FittedModel(RidgeDecoder(x, backend=backend), voxels, targets, test)
        write(temporary, model, save_weights=config.save_weights, key=key)
    write_model_sidecar(
        tree,
        {
            "Sources": sources,
            "Recipe": config.recipe.name,
            "Alphas": alphas,
            **_selections(found, config),
            "Calibration": config.recipe.calibration.method,
            "TrainingImages": len(found.split.train),
            "Voxels": int(np.count_nonzero(scored["kept"])),
        },
    )


def _selections(found: Reconstruction, config: RunConfig) -> dict[str, Any]:
    """Describe, for the sidecar, how penalties were chosen; empty where none was."""
    chosen = {name: s for name, s in found.penalties.items() if len(s.alphas) > 1}
    if not chosen:
        return {}
    section = config.recipe.ridge
    return {
        "AlphaSelection": {
            "Method": SELECTIONS[section.selection],
            **({"Folds": section.folds} if section.selection == "kfold" else {}),
            "Tried": {name: list(s.alphas) for name, s in chosen.items()},
            "MeanSquaredErrors": {name: list(s.errors) for name, s in chosen.items()},
        }
    }


def ridge_penalties(found: Reconstruction, config: RunConfig) -> dict[str, RidgePenalty]:
    """Give the penalty of each target, and how it was chosen."""
    penalties = {}
    for name in config.recipe.target_names:
        penalty, note = found.penalties[name], ""
        if len(penalty.alphas) > 1:
            tried = ", ".join(f"{a:,g}" for a in penalty.alphas)
            note = f"penalty chosen by {SELECTIONS[config.recipe.ridge.selection]} from {tried}"
        penalties[name] = RidgePenalty(penalty.alpha, note)
    return penalties


def _tried(penalty: Selection) -> dict[str, Any]:
    """Attributes of the target's group in the model file on the choice of its penalty, if there was one."""
    if len(penalty.alphas) < 2:
        return {}
    return {"alphas_tried": penalty.alphas, "held_out_errors": penalty.errors}
