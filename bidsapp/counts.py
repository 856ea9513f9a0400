"""What a subject's run used: sessions, trials, images, repeats, voxels, and how the voxels were chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp.bids.inputs import Dataset
from bidsapp.bids.outputs import source_uri
from bidsapp.config import RunConfig
from bidsapp.data.betas import read_map
from bidsapp.data.responses import count_dropped

if TYPE_CHECKING:
    from bidsapp.participant import Reconstruction


def counts_of(found: Reconstruction, config: RunConfig) -> dict[str, float]:
    """Count what was used, in the order the report shows it."""
    repeats = np.concatenate([found.responses["train_repeats"], found.responses["test_repeats"]])
    counts: dict[str, float] = {
        "sessions": len(found.subject.sessions),
        "trials": sum(len(s.stimulus_ids) for s in found.subject.sessions),
        "trials of training and test images": int(repeats.sum()),
        "training images": len(found.split.train),
        "test images": len(found.split.test),
        **({"images of the split not seen": found.split.unseen} if config.split_file else {}),
        "fewest repeats of an image": int(repeats.min()),
        "most repeats of an image": int(repeats.max()),
        "voxels in the region of interest": found.n_roi_voxels,
    }
    if config.min_noise_ceiling is not None:
        counts[f"voxels with a noise ceiling of {config.min_noise_ceiling:g} % or more"] = found.mask.n_voxels
    not_finite, constant = count_dropped(found.zscored["kept"], found.zscored["finite"])
    if not_finite:
        counts["voxels dropped, not finite in some trial"] = not_finite
    if constant:
        counts["voxels dropped, the same in all training images"] = constant
    counts["voxels used"] = int(np.count_nonzero(found.zscored["kept"]))
    if found.subject.noise_ceiling is not None:
        ceiling = read_map(found.subject.noise_ceiling, found.mask)[found.zscored["kept"]]
        if np.isfinite(ceiling).any():
            counts["median noise ceiling, %"] = round(float(np.nanmedian(ceiling)), 1)
    return counts


def repeats_of(found: Reconstruction) -> dict[str, dict[int, int]]:
    """Count the images that were shown once, twice and so on: ``{"training": {3: 8859}, ...}``."""
    counted = {}
    for kind, name in (("train", "training"), ("test", "test")):
        times, images = np.unique(found.responses[f"{kind}_repeats"], return_counts=True)
        counted[name] = {int(t): int(n) for t, n in zip(times, images, strict=True)}
    return counted


def voxel_selection(found: Reconstruction, dataset: Dataset, config: RunConfig) -> dict[str, Any]:
    """Say how the voxels were chosen, for the mask's sidecar."""
    selection: dict[str, Any] = {
        "RegionsOfInterest": list(config.roi),
        "RegionVoxels": found.n_roi_voxels,
        "Voxels": found.mask.n_voxels,
    }
    if config.min_noise_ceiling is not None and found.subject.noise_ceiling is not None:
        selection["NoiseCeiling"] = {
            "Minimum": config.min_noise_ceiling,
            "Units": "percent",
            "Source": source_uri(found.subject.noise_ceiling, dataset.links),
        }
    return selection
