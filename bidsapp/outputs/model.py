"""What the fit of the targets gave: the model file, how well each target was predicted, and its penalty."""

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
from bidsapp.decoding.model_writer import FittedTarget, VoxelScaling, made_from
from bidsapp.decoding.model_writer import write_model as write
from bidsapp.report import TargetRow
from bidsapp.storage.atomic import atomic_path
from bidsapp.storage.stages import stage_key

if TYPE_CHECKING:
    from bidsapp.decoding.crossvalidation import Selection
    from bidsapp.pipeline.records import Reconstruction

LOG = logging.getLogger("bidsapp")

#: How a recipe's ``ridge.selection`` is called in reports.
SELECTIONS = {"loo": "leave-one-out", "kfold": "k folds"}


def write_model(found: Reconstruction, tree: OutputTree, config: RunConfig, sources: list[str]) -> None:
    """Write what predicts targets from new responses, without training data and without refitting.

    A file that an earlier run wrote from the same fit is left as it is: writing one takes minutes.
    """
    path, scored, latents = tree.path("model"), found.zscored, found.latents
    # What the file holds is told by contents, never by keys: these know where the dataset lies, and the file,
    # in which this is written, has to be the same wherever that is.
    made_of = {
        "voxels": [hashlib.sha256(found.mask.flat_index.tobytes()).hexdigest(), found.mask.shape],
        "responses": scored.content,
        "latents": latents.content,
        "penalties": {name: asdict(s) for name, s in found.penalties.items()},
        "save_weights": config.save_weights,
    }
    key = stage_key("model file", made_of)
    if made_from(path) == key:
        LOG.info("model file: found from an earlier run")
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
        decoder = RidgeDecoder(x, backend=backend)
        write(temporary, decoder, voxels, targets, test, save_weights=config.save_weights, key=key)
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
    """Say in the model file's sidecar how penalties were chosen, if any was."""
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


def target_rows(found: Reconstruction, config: RunConfig) -> tuple[TargetRow, ...]:
    """How well each target was predicted: correlations over test images, dimension by dimension."""
    rows = []
    quality = {q.target: q for q in found.evidence.targets}
    for name in config.recipe.target_names:
        r = quality[name].r
        n_dims, penalty = r.size, found.penalties[name]
        alpha = penalty.alpha
        note = ""
        if len(penalty.alphas) > 1:
            tried = ", ".join(f"{a:,g}" for a in penalty.alphas)
            note = f"penalty chosen by {SELECTIONS[config.recipe.ridge.selection]} of {tried}"
        # Dimensions that do not vary have no correlation; captions may all read the same to CLIP.
        r = r[np.isfinite(r)]
        if not r.size:
            rows.append(TargetRow(name, np.nan, None, None, n_dims, alpha, "the same for all test images"))
            continue
        low, high = np.quantile(r, [0.025, 0.975])
        rows.append(TargetRow(name, float(r.mean()), float(low), float(high), n_dims, alpha, note))
    return tuple(rows)


def _tried(penalty: Selection) -> dict[str, Any]:
    """Give what a target's group in the model file says of the choice; nothing where there was none."""
    if len(penalty.alphas) < 2:
        return {}
    return {"alphas_tried": penalty.alphas, "held_out_errors": penalty.errors}
