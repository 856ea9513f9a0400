"""What a subject will need, from sizes alone: for ``--dry-run``, ``--mem`` and the check of free space."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bidsapp.config import RunConfig, ladder_size
from bidsapp.planning import option_costs, work_sizes

#: Interpreter, libraries and small models, in bytes: measured on the demo, rounded up.
BASE_MEMORY = 1_500_000_000


#: A report with its pictures and tables, in bytes: measured on the demo, rounded up.
_REPORT = 4_000_000


RATES = Path(__file__).with_name("rates.toml")


_INT16, _FLOAT32, _FLOAT64 = 2, 4, 8


#: From this many training images on, the Gram matrix is float32 (bidsapp.decoding.gram), unless it is badly
#: conditioned for the penalty.
_LARGE = 1024


#: Dimensions worked on at once (bidsapp.decoding.streaming), and how many arrays of that size there are when
#: predicting (read, centred, the next of both) and when writing the model file.
_WIDTH, _PREDICTING, _WRITING = 4096, 4, 8


@dataclass(frozen=True)
class Sizes:
    """What a subject's needs follow from.

    Attributes
    ----------
    n_sessions, n_trials, n_train, n_test, n_voxels : int
    betas_bytes : int
        Betas of all sessions, inflated.
    targets : mapping of str to int
        Values of each target.
    sides : tuple of int
        Pixels of a side of stage 1's and stage 2's square images; 0 where not known.
    image_cost : int
        Bytes of memory that one image of stage 2 takes while it is made.
    stimulus_bytes : int
        Bytes of one test image as it was shown; they are in memory together while images are compared.
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
        Bytes in the work folder at most, the targets of its stimuli among them, without what optional
        analyses keep.
    output : int
        Bytes in the output folder, ``model_file`` among them.
    model_file : int
    vram : int
        Bytes of the models' parameters on an accelerator; 0 on the CPU.
    image_cost : int
        Bytes of memory (of the accelerator, if there is one) that each image of a batch takes.
    seconds : dict of str to float or None
        Rough time of each part of the run; None where it was not measured on such a device.
    images : int
        Images of stage 2, all conditions together.
    at_once : int
        Images of a block of stage 2; 0 where the accelerator's free memory decides it.
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

    @property
    def total_seconds(self) -> float | None:
        """Rough time of the whole, None where a part is not known."""
        known = [s for s in self.seconds.values() if s is not None]
        return sum(known) if len(known) == len(self.seconds) else None


def needs(config: RunConfig, sizes: Sizes) -> ResourceEstimate:
    """Estimate what one subject needs.

    Parameters
    ----------
    config : RunConfig
        Its device is one that exists, not "auto".
    sizes : Sizes

    Returns
    -------
    ResourceEstimate
        Memory is the base, the models' parameters where they do not come with the package, and the largest of
        four moments. Three are with the training responses: the ridge (the Gram matrix and its factor, the
        operators of a penalty), the predictions (the same operators and blocks of targets), and the model
        file (Gram matrix, factor and blocks); they do not grow with the number of targets beyond a block. The
        fourth is a batch of images, on the CPU (the recipe's, halved where ``--mem`` asks for it), while the
        images that were shown are in memory. Options have moments of their own
        (:func:`bidsapp.planning.option_costs.moments`).
    """
    penalties = len({alpha for t in config.recipe.targets.values() for alpha in t.alphas})
    n_train, n_test, n_voxels = sizes.n_train, sizes.n_test, sizes.n_voxels
    rows = min(n_train, config.recipe.calibration.max_rows)
    side = min(n_train, n_voxels)
    gram = 2 * side**2 * (_FLOAT32 if side > _LARGE else _FLOAT64)
    operators = (n_test + rows) * n_train * _FLOAT32
    responses = n_train * n_voxels * _FLOAT32
    largest = max(sizes.targets.values(), default=0)
    block = n_train * min(_WIDTH, largest) * _FLOAT32
    predicting = 2 * operators + _PREDICTING * block
    moments = [responses + m for m in (gram + 3 * operators, predicting, gram + _WRITING * block)]
    moments += [
        responses + m for m in option_costs.moments(config, n_train, n_test, n_voxels, gram, 2 * block)
    ]
    parameters = _parameter_bytes(config)
    batch = at_once = 0
    if config.device == "cpu":
        at_once = _images_at_once(config, n_test, BASE_MEMORY + parameters, sizes.image_cost)
        batch = sizes.image_cost * at_once
    moments.append(batch + n_test * sizes.stimulus_bytes)
    dims = sum(sizes.targets.values())
    n_ladder = ladder_size(config, n_test)
    stored = {name: config.recipe.targets[name].stored for name in sizes.targets}
    on_disk = work_sizes.response_bytes(sizes.n_trials, n_train, n_test, n_voxels)
    on_disk += penalties * work_sizes.operator_bytes(n_train, n_test, rows, n_ladder)
    on_disk += work_sizes.target_bytes(n_train + n_test, sizes.targets, stored)
    on_disk += work_sizes.latent_bytes(dims, len(sizes.targets), n_train, n_test, n_ladder)
    on_disk += work_sizes.overhead_bytes(sizes.n_sessions, penalties)
    images = images_made(config, n_test, len(sizes.region_voxels))
    pictures = images * sizes.image_bytes
    model = model_file_bytes(n_train, n_voxels, dims, penalties, save_weights=config.save_weights)
    return ResourceEstimate(
        memory=BASE_MEMORY + parameters + max(moments),
        # One condition's pictures are there twice for a moment: in blocks and together.
        disk=on_disk + pictures + n_test * sizes.image_bytes,
        # Pixels as they are: PNG makes less of them, by how much the images themselves decide.
        output=n_test * sizes.image_bytes + model + _REPORT,
        model_file=model,
        vram=0 if config.device == "cpu" else parameters,
        image_cost=sizes.image_cost,
        seconds=_seconds(config, sizes, rows, penalties),
        images=images,
        at_once=at_once,
    )


def _images_at_once(config: RunConfig, n_test: int, held: int, cost: int) -> int:
    """Images of stage 2 at once on the CPU: batches are made to fit (bidsapp.models.batching)."""
    batch = min(config.recipe.diffusion.batch, n_test)
    while config.memory is not None and batch > 1 and held + batch * cost > config.memory:
        batch //= 2
    return batch


def model_file_bytes(
    n_train: int, n_voxels: int, n_dims: int, n_penalties: int, *, save_weights: bool = False
) -> int:
    """Size of a model file, within a hundredth (layout: bidsapp.decoding.model_writer).

    Parameters
    ----------
    n_train, n_voxels : int
    n_dims : int
        Dimensions of all targets together.
    n_penalties : int
        Different penalties, each of which has a projection.
    save_weights : bool
        With ``--save-weights``.
    """
    rank = min(n_train, n_voxels)
    size = n_penalties * n_voxels * rank * _FLOAT32 + n_dims * (rank * _INT16 + 2 * _FLOAT32 + 2 * _FLOAT64)
    return size + 4 * n_voxels * _FLOAT64 + (n_dims * n_voxels * _FLOAT32 if save_weights else 0)


def images_made(config: RunConfig, n_test: int, n_regions: int = 0) -> int:
    """Count the images of stage 2: test images, those of the ladder, and options'."""
    controls = config.recipe.controls
    rungs = controls.null + controls.oracle
    if controls.ladder:
        rungs += 2 * controls.oracle  # true tokens and true stage 1; other rungs have stage 1 only
    n = ladder_size(config, n_test)
    ladder = rungs * n + controls.ladder if n > 1 else 0
    return n_test + ladder + option_costs.further_images(config, n_test, n_regions)


def value_bytes(config: RunConfig) -> int:
    """Bytes of a value in the models: 2 in half precision, which ``--dtype auto`` takes on CUDA."""
    half = config.dtype in ("float16", "bfloat16") or (config.dtype == "auto" and config.device == "cuda")
    return _INT16 if half else _FLOAT32


def _parameter_bytes(config: RunConfig) -> int:
    """Bytes of the models' parameters; those of the package are in the base."""
    if config.recipe.models.location == "package":
        return 0
    millions = _rates()["models"].get(config.recipe.diffusion.kind, {}).get("millions", 0)
    return int(millions * 1e6 * value_bytes(config))


def _seconds(config: RunConfig, sizes: Sizes, rows: int, penalties: int) -> dict[str, float | None]:
    """Time of each part, from counts of operations and bytes, and of images, at the rates of the table."""
    rates, models = _rates()["cpu"], _model_rates(config)
    faster = config.n_cpus / float(rates["cores"])
    n, p, n_test = sizes.n_train, sizes.n_voxels, sizes.n_test
    side, dims = min(n, p), sum(sizes.targets.values())
    conditions = 1 + config.recipe.controls.null

    def products(operations: float) -> float:
        return operations / (float(rates["product"]) * faster)

    gram = products(2 * side**2 * max(n, p) + penalties * (side**3 / 3 + 2 * side**2 * (n_test + rows)))
    predictions = products(conditions * 2.0 * (n_test + rows) * n * dims)
    coefficients = products(2.0 * side**2 * dims) + side * dims * _FLOAT32 / rates["write"]
    at_once = max(1, min(config.n_cpus, sizes.n_sessions))
    regions = len(sizes.region_voxels)
    made, steps = images_made(config, n_test, regions), config.recipe.diffusion
    parts: dict[str, float | None] = {
        "betas": sizes.betas_bytes / (rates["inflate"] * at_once),
        "targets": models and (n + n_test) * models["target"] / faster,
        "ridge": gram,
        "latents": predictions,
        "stage 1": models and made * models["stage1"] / faster,
        "stage 2": models
        and made * (models["fixed"] + int(steps.steps * steps.strength) * models["step"]) / faster,
        "scores": models and 2 * (made - regions * config.roi_analysis) * models["score"] / faster,
    }
    if config.cluster_holdout or config.roi_analysis:
        counted = option_costs.operations(config, n, n_test, p, dims, penalties, sizes.region_voxels)
        parts["options"] = products(counted)
    parts["outputs"] = coefficients
    return {name: None if seconds is None else float(seconds) for name, seconds in parts.items()}


def _model_rates(config: RunConfig) -> Any:
    """Give the rates of the recipe's models on the device, None where they were not measured."""
    packaged = config.recipe.models.location == "package"
    kind = "embedded" if packaged else config.recipe.diffusion.kind
    return _rates()["models"].get(kind, {}).get(config.device)


def _rates() -> dict[str, Any]:
    return tomllib.loads(RATES.read_text(encoding="utf-8"))
