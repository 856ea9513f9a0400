"""What a subject will need, from sizes alone: for ``--dry-run``, ``--mem`` and the check of free space."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bidsapp.config import RANDOM_SETS, RunConfig, cluster_count, ladder_size
from bidsapp.planning.footprint import (
    BASE_MEMORY,
    FLOAT32,
    held_out_rows,
    model_file_bytes,
    n_penalties,
    peak_memory,
    work_bytes,
)

RATES = Path(__file__).with_name("rates.toml")
#: Bytes of a report with its images and tables: measured on the demo, rounded up.
_REPORT = 4_000_000


@dataclass(frozen=True)
class Sizes:
    """Sizes of one subject's data, which an estimate follows from.

    Attributes
    ----------
    betas_bytes : int
        Betas of all sessions, decompressed.
    targets : mapping of str to int
        Dimensions of each target.
    sides : tuple of int
        Pixels of a side of stage 1's and stage 2's square images; 0 if not known.
    image_cost : int
        Bytes of memory that one image takes during stage 2.
    stimulus_bytes : int
        Bytes of one test stimulus; all are in memory together while images are compared.
    region_voxels : tuple of int
        Voxels of each region that ``--roi-analysis`` decodes.
    """

    n_sessions: int
    n_trials: int
    n_train: int
    n_test: int
    n_voxels: int
    betas_bytes: int = 0
    targets: Mapping[str, int] = field(default_factory=dict)
    sides: tuple[int, int] = (0, 0)
    image_cost: int = 0
    stimulus_bytes: int = 0
    region_voxels: tuple[int, ...] = ()

    @property
    def image_bytes(self) -> int:
        """Bytes of one test image's pixels, both stages."""
        return sum(3 * side**2 for side in self.sides)


@dataclass(frozen=True)
class ResourceEstimate:
    """What one subject needs.

    Attributes
    ----------
    memory : int
        Bytes at the peak.
    disk : int
        Bytes in the work folder at most, including the targets of its stimuli, without what optional analyses
        keep.
    output : int
        Bytes in the output folder, including ``model_file``.
    vram : int
        Bytes of the models' parameters on an accelerator; 0 on the CPU.
    image_cost : int
        Bytes of memory (of the accelerator, if there is one) that each image of a batch takes.
    seconds : dict of str to float or None
        Rough time of each part of the run; None if it was not measured on such a device.
    images : int
        Images of stage 2, all conditions together.
    at_once : int
        Images of a block of stage 2; 0 if the accelerator's free memory decides.
    """

    memory: int
    disk: int
    output: int = 0
    model_file: int = 0
    vram: int = 0
    image_cost: int = 0
    seconds: dict[str, float | None] = field(default_factory=dict)
    images: int = 0
    at_once: int = 0


def estimate_resources(config: RunConfig, sizes: Sizes) -> ResourceEstimate:
    """Estimate what one subject needs; the device of ``config`` is one that exists, not "auto"."""
    parameters = _parameter_bytes(config)
    on_cpu = config.device == "cpu"
    at_once = _images_at_once(config, sizes, BASE_MEMORY + parameters) if on_cpu else 0
    images = images_made(config, sizes.n_test, len(sizes.region_voxels))
    dims = sum(sizes.targets.values())
    model = model_file_bytes(
        sizes.n_train, sizes.n_voxels, dims, n_penalties(config), save_weights=config.save_weights
    )
    return ResourceEstimate(
        memory=peak_memory(config, sizes, parameters, at_once),
        # For a moment the images of one condition exist twice: in blocks and together.
        disk=work_bytes(config, sizes) + (images + sizes.n_test) * sizes.image_bytes,
        # Raw pixels: how much smaller a PNG is depends on the images.
        output=sizes.n_test * sizes.image_bytes + model + _REPORT,
        model_file=model,
        vram=0 if on_cpu else parameters,
        image_cost=sizes.image_cost,
        seconds=_seconds(config, sizes),
        images=images,
        at_once=at_once,
    )


def _images_at_once(config: RunConfig, sizes: Sizes, held: int) -> int:
    """Images of stage 2 at once on the CPU: batches are halved to fit (bidsapp.models.batching)."""
    batch = min(config.recipe.diffusion.batch, sizes.n_test)
    while config.memory is not None and batch > 1 and held + batch * sizes.image_cost > config.memory:
        batch //= 2
    return batch


def images_made(config: RunConfig, n_test: int, n_regions: int = 0) -> int:
    """Count the images of stage 2: the test images, the ladder's, and those of options."""
    controls = config.recipe.controls
    rungs = controls.null + controls.oracle
    if controls.ladder:
        rungs += 2 * controls.oracle  # true tokens and true stage 1; other rungs have stage 1 only
    n = ladder_size(config, n_test)
    ladder = rungs * n + controls.ladder if n > 1 else 0
    return n_test + ladder + images_of_options(config, n_test, n_regions)


def images_of_options(config: RunConfig, n_test: int, n_regions: int) -> int:
    """Count the images that options add: the ladder's under each further seed, and one per region."""
    n = ladder_size(config, n_test)
    seeds = (config.generator_seeds - 1) * n if n > 1 else 0
    return seeds + (n_regions if config.roi_analysis else 0)


def value_bytes(config: RunConfig) -> int:
    """Bytes of a value in the models: 2 in half precision, which ``--dtype auto`` takes on CUDA."""
    half = config.dtype in ("float16", "bfloat16") or (config.dtype == "auto" and config.device == "cuda")
    return 2 if half else FLOAT32


def _parameter_bytes(config: RunConfig) -> int:
    """Bytes of the models' parameters; those of the package are part of the base."""
    if config.recipe.models.location == "package":
        return 0
    millions = _rates()["models"].get(config.recipe.diffusion.kind, {}).get("millions", 0)
    return int(millions * 1e6 * value_bytes(config))


def _seconds(config: RunConfig, sizes: Sizes) -> dict[str, float | None]:
    """Time of each part, from counts of operations, bytes and images, at the rates of the table."""
    rates, models = _rates()["cpu"], _model_rates(config)
    faster = config.n_cpus / float(rates["cores"])
    n, p, n_test, penalties = sizes.n_train, sizes.n_voxels, sizes.n_test, n_penalties(config)
    rows = n_test + held_out_rows(config, n)
    side, dims = min(n, p), sum(sizes.targets.values())
    conditions = 1 + config.recipe.controls.null

    def products(operations: float) -> float:
        return operations / (float(rates["product"]) * faster)

    gram = products(2 * side**2 * max(n, p) + penalties * (side**3 / 3 + 2 * side**2 * rows))
    coefficients = products(2.0 * side**2 * dims) + side * dims * FLOAT32 / rates["write"]
    at_once = max(1, min(config.n_cpus, sizes.n_sessions))
    regions = len(sizes.region_voxels)
    made, steps = images_made(config, n_test, regions), config.recipe.diffusion
    parts: dict[str, float | None] = {
        "betas": sizes.betas_bytes / (rates["inflate"] * at_once),
        "targets": models and (n + n_test) * models["target"] / faster,
        "ridge": gram,
        "latents": products(conditions * 2.0 * rows * n * dims),
        "stage 1": models and made * models["stage1"] / faster,
        "stage 2": models
        and made * (models["fixed"] + int(steps.steps * steps.strength) * models["step"]) / faster,
        "scores": models and 2 * (made - regions * config.roi_analysis) * models["score"] / faster,
    }
    if config.cluster_holdout or config.roi_analysis:
        parts["options"] = products(_operations_of_options(config, sizes))
    parts["outputs"] = coefficients
    return {name: None if seconds is None else float(seconds) for name, seconds in parts.items()}


def _operations_of_options(config: RunConfig, sizes: Sizes) -> float:
    """Multiplications and additions of the analyses that options add, besides their images."""
    n, m, p = float(sizes.n_train), float(sizes.n_test), float(sizes.n_voxels)
    side, dims, penalties = min(n, p), sum(sizes.targets.values()), n_penalties(config)
    factorise = 2 * side**2 * max(n, p) + penalties * side**3 / 3
    total = 0.0
    if config.cluster_holdout and (k := cluster_count(sizes.n_test)) > 1:
        each = 2 * side**2 * n + 2 * n * n * (n / k)  # rows of I - H of all clusters, and their solves
        total += factorise + penalties * 2 * each + 2 * dims * (2 * m * n + 2 * m * m)
    if config.roi_analysis and sizes.region_voxels:
        synthetic = 2.0 * len(sizes.region_voxels) * n * dims
        targets = len(config.recipe.targets)
        weights = targets * (2 * side**2 * m + 2 * n * p * m) + 2 * n * m * dims
        random_sets = targets * (RANDOM_SETS + 1) * 2 * m * m * sum(sizes.region_voxels)
        total += 2 * factorise + synthetic + weights + random_sets
    return total


def _model_rates(config: RunConfig) -> Any:
    """Give the rates of the recipe's models on the device, None if they were not measured."""
    packaged = config.recipe.models.location == "package"
    kind = "embedded" if packaged else config.recipe.diffusion.kind
    return _rates()["models"].get(kind, {}).get(config.device)


def _rates() -> dict[str, Any]:
    return tomllib.loads(RATES.read_text(encoding="utf-8"))
