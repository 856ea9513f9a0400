"""What a run used and how: counts, settings, versions, the split."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp import __version__
from bidsapp.bids.inputs import Dataset
from bidsapp.bids.outputs import source_uri
from bidsapp.config import RunConfig
from bidsapp.data.betas import read_map
from bidsapp.data.responses import count_dropped
from bidsapp.records import Split
from bidsapp.storage.text import write_text
from bidsapp.system.resources import peak_memory

if TYPE_CHECKING:
    from bidsapp.pipeline.records import Reconstruction


def counts_of(found: Reconstruction, config: RunConfig) -> dict[str, float]:
    """Count what was used, in the order the report shows it."""
    repeats = np.concatenate([found.responses["train_repeats"], found.responses["test_repeats"]])
    counts: dict[str, float] = {
        "sessions": len(found.subject.sessions),
        "trials": sum(len(s.stimulus_ids) for s in found.subject.sessions),
        "trials of training and test images": int(repeats.sum()),
        "training images": len(found.split.train),
        "test images": len(found.split.test),
        **({"images of the split not shown": found.split.unseen} if config.split_file else {}),
        "fewest repeats of an image": int(repeats.min()),
        "most repeats of an image": int(repeats.max()),
        "voxels in the region of interest": found.mask.n_roi,
    }
    if config.min_noise_ceiling is not None:
        counts[f"voxels with a noise ceiling of {config.min_noise_ceiling:g}% or more"] = found.mask.n_voxels
    not_finite, constant = count_dropped(found.zscored["kept"], found.zscored["finite"])
    if not_finite:
        counts["voxels dropped: not finite in some trial"] = not_finite
    if constant:
        counts["voxels dropped: constant over training images"] = constant
    counts["voxels used"] = int(np.count_nonzero(found.zscored["kept"]))
    if found.subject.noise_ceiling is not None:
        ceiling = read_map(found.subject.noise_ceiling, found.mask)[found.zscored["kept"]]
        if np.isfinite(ceiling).any():
            counts["median noise ceiling, %"] = round(float(np.nanmedian(ceiling)), 1)
    return counts


def repeats_of(found: Reconstruction) -> dict[str, dict[int, int]]:
    """Count the images shown once, twice and so on: ``{"training": {3: 8859}, ...}``."""
    counted = {}
    for kind, name in (("train", "training"), ("test", "test")):
        times, images = np.unique(found.responses[f"{kind}_repeats"], return_counts=True)
        counted[name] = {int(t): int(n) for t, n in zip(times, images, strict=True)}
    return counted


def voxel_selection(found: Reconstruction, dataset: Dataset, config: RunConfig) -> dict[str, Any]:
    """Describe how the voxels were chosen, for the mask's sidecar."""
    selection: dict[str, Any] = {
        "RegionsOfInterest": list(config.roi),
        "RegionVoxels": found.mask.n_roi,
        "Voxels": found.mask.n_voxels,
    }
    if config.min_noise_ceiling is not None and found.subject.noise_ceiling is not None:
        selection["NoiseCeiling"] = {
            "Minimum": config.min_noise_ceiling,
            "Units": "percent",
            "Source": source_uri(found.subject.noise_ceiling, dataset.links),
        }
    return selection


_PACKAGES = ("torch", "diffusers", "transformers", "numpy", "scipy", "nibabel", "pillow")


def software_versions() -> dict[str, str]:
    """List versions: this app's first, then those of packages that results depend on."""
    return {
        "bidsapp-recon": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _PACKAGES},
    }


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Give the run's options and the recipe as nested plain values."""
    return {"run": config.recorded(), "recipe": config.recipe.as_dict()}


def write_citation(config: RunConfig) -> Path:
    """Write the methods text, and give its path, ``logs/CITATION.md``."""
    from bidsapp.metrics.scoring import metric_names
    from bidsapp.report.methods import methods_text

    path, scored = config.output_dir / "logs" / "CITATION.md", config.recipe.metrics
    metrics = metric_names(scored.protocol, scored.networks)
    text = methods_text(config.recipe.name, version=__version__, metrics=metrics)
    write_text(path, text.as_markdown())
    return path


def split_record(split: Split) -> dict[str, Any]:
    """Identify a split: name, variant, the file and its hash, and the counts."""
    return {
        "name": split.name,
        "variant": split.variant or None,
        "file": str(split.file),
        "sha256": split.sha256,
        "training_images": len(split.train),
        "test_images": len(split.test),
        "not_seen_by_the_subject": split.unseen,
        "not_in_the_dataset": len(split.unknown),
    }


def machine() -> dict[str, Any]:
    """Describe the machine, and the memory that this process has held at most (bytes)."""
    found = {"host": platform.node(), "system": platform.platform(), "cpus": os.cpu_count()}
    return found | {"peak_memory_of_process": peak_memory()}


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write nested settings as TOML; entries that are None are left out."""
    import tomli_w

    write_text(path, tomli_w.dumps(_plain(settings)))


def _plain(value: Any) -> Any:
    """Give a value of Python, NumPy or pathlib as TOML's kinds; bytes that are not UTF-8 become ``?``."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(each) for key, each in value.items() if each is not None}
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, (bool, int, float)):
        return value
    return str(value).encode("utf-8", "replace").decode("utf-8")
