"""What a run used and how: counts, settings, versions, the split."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator, Mapping
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

if TYPE_CHECKING:
    from bidsapp.pipeline.records import Reconstruction
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


_PACKAGES = ("torch", "diffusers", "transformers", "numpy", "scipy", "nibabel", "pybids", "pillow")


def software_versions() -> dict[str, str]:
    """List versions: this app's first, then of what the results depend on."""
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
    from bidsapp.report.methods import describe

    path = config.output_dir / "logs" / "CITATION.md"
    text = describe(config.recipe.name, version=__version__, metrics=config.recipe.metrics.networks)
    write_text(path, text.as_markdown())
    return path


def split_record(split: Split) -> dict[str, Any]:
    """Give what tells one split from another: name, variant, the file and its hash, and the counts."""
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


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write nested settings as TOML."""
    write_text(path, "\n".join(_tables(settings, ())) + "\n")


def _tables(table: Mapping[str, Any], prefix: tuple[str, ...]) -> Iterator[str]:
    plain = {k: v for k, v in table.items() if not isinstance(v, Mapping) and v is not None}
    inner = {k: v for k, v in table.items() if isinstance(v, Mapping)}
    if prefix and (plain or not inner):
        yield f"[{'.'.join(_key(p) for p in prefix)}]"
    for key, value in plain.items():
        yield f"{_key(key)} = {_value(value)}"
    if plain:
        yield ""
    for key, value in inner.items():
        yield from _tables(value, (*prefix, key))


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _text(key)


def _value(value: Any) -> str:
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays, without importing it
        value = value.tolist()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    return _text(str(value))


def _text(text: str) -> str:
    """Quote as JSON does, which TOML reads; bytes of a path that are no UTF-8 become ``?``."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return json.dumps(whole, ensure_ascii=False).replace("\x7f", "\\u007f")
