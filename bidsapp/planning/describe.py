"""What a run will do, in words, before it does anything: the text of ``--dry-run``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bidsapp.config import RANDOM_SETS, RunConfig, cluster_count, ladder_size
from bidsapp.planning.estimate import ResourceEstimate, Sizes, images_made, images_of_options
from bidsapp.planning.footprint import n_penalties
from bidsapp.storage.blocks import count_blocks
from bidsapp.storage.stages import NotThere, Survey
from bidsapp.system.resources import as_duration, as_text

if TYPE_CHECKING:
    from bidsapp.planning.check import CheckedRun, CheckedSubject

_FOUND = "found, will be used"
_MAY_BE_USED = "found, will be used if its models and settings are the same"


def describe_run(run: CheckedRun, config: RunConfig) -> str:
    """Describe what goes in, the stages with their sizes and rough times, and what they need."""
    recipe, config = config.recipe, replace(config, device=run.device)
    lines = [
        f"Recipe {recipe.name}: {recipe.title}",
        f"Device: {config.device}, {config.n_cpus} CPU{'s' if config.n_cpus > 1 else ''}",
        f"Output: {config.output_dir}",
        f"Work: {config.work_dir}",
    ]
    times: list[float | None] = []
    for subject in run.subjects.values():
        seconds = subject.estimate.seconds
        rows = _rows(config, subject)
        times.append(_sum([seconds[name] for name, _, state in rows if state != _FOUND]))
        lines += ["", _inputs(subject, config), *_requirements(subject.estimate, config)]
        lines.append(f"  time: {_roughly(times[-1])}")
        lines += [
            f"    {name:8} {as_duration(seconds[name]):>10}  {what}{f'; {state}' if state else ''}"
            for name, what, state in rows
        ]
    if len(times) > 1:
        estimates = [subject.estimate for subject in run.subjects.values()]
        disk, output = sum(e.disk for e in estimates), sum(e.output for e in estimates)
        lines += ["", f"All {len(times)} subjects: time {_roughly(_sum(times))}, one after the other;"]
        lines.append(f"  about {as_text(disk)} in the work folder, {as_text(output)} in the output folder")
    return "\n".join(lines)


def _sum(times: Sequence[float | None]) -> float | None:
    known = [t for t in times if t is not None]
    return sum(known) if len(known) == len(times) else None


def stages_there(config: RunConfig, subject: CheckedSubject) -> set[str]:
    """Find the stages of an earlier run that this one will use, among those that need no model.

    These are betas, responses, zscore and ridge.
    """
    from bidsapp.pipeline.decoding import choose_alphas, fit_ridge
    from bidsapp.pipeline.responses import (
        average_over_repeats,
        mask_betas,
        split_test_halves,
        zscore_by_training,
    )

    inputs, split = subject.inputs, subject.split
    survey = Survey(config.work_dir / f"sub-{inputs.label}")
    try:
        betas = mask_betas(survey, inputs, subject.mask, config.n_cpus)
        averaged = average_over_repeats(survey, betas, inputs, split)
        responses = zscore_by_training(survey, averaged)
        if all(len(target.alphas) == 1 for target in config.recipe.targets.values()):
            # Of several penalties, the one chosen is not known without the targets.
            penalties = choose_alphas(survey, responses, {}, "", config)
            halves = split_test_halves(survey, betas, responses, inputs, split)
            n = ladder_size(config, len(split.test))
            fit_ridge(survey, responses, penalties, {}, [halves.key, n], config)
    except NotThere:
        pass  # later stages depend on it, so they are missing too
    return survey.found


def _inputs(subject: CheckedSubject, config: RunConfig) -> str:
    sizes, mask = subject.sizes, subject.mask
    region = f"{mask.n_voxels:,} voxels of {', '.join(subject.inputs.masks)}"
    if config.min_noise_ceiling is not None:
        region += f" (of {mask.n_roi:,}; noise ceiling at least {config.min_noise_ceiling:g}%)"
    return (
        f"sub-{subject.inputs.label}: {sizes.n_sessions} sessions, {sizes.n_trials} trials, "
        f"{sizes.n_train} training and {sizes.n_test} test images of {subject.split.name}, {region}"
    )


def _roughly(seconds: float | None) -> str:
    if seconds is None:
        return "not known (these models were not timed on such a device)"
    return f"roughly {as_duration(seconds)}"


def _requirements(estimate: ResourceEstimate, config: RunConfig) -> list[str]:
    disk = f"{as_text(estimate.disk)} in the work folder, {as_text(estimate.output)} in the output folder"
    lines = [f"  needs: about {as_text(estimate.memory)} of memory, {disk}"]
    if config.device != "cpu":
        vram, cost = estimate.vram, estimate.image_cost
        parameters = f"{as_text(vram)} of its memory for the models" if vram else "small models"
        each = f", {as_text(cost)} per image of a batch" if cost else ""
        lines.append(f"  {config.device}: about {parameters}{each} (batches as large as fit)")
    return lines


def _rows(config: RunConfig, subject: CheckedSubject) -> list[tuple[str, str, str]]:
    """Name, size and state of each part of the run."""
    recipe, sizes, estimate = config.recipe, subject.sizes, subject.estimate
    regions = len(sizes.region_voxels)
    made = images_made(config, sizes.n_test, regions)
    scored = 2 * (made - regions * config.roi_analysis)
    dims = sum(sizes.targets.values())
    conditions = 1 + recipe.controls.null
    side = min(sizes.n_train, sizes.n_voxels)
    steps = int(recipe.diffusion.steps * recipe.diffusion.strength)
    first, second = (f"{made} images" + (f" of {s} x {s}" if s else "") for s in sizes.sides)
    sizes_of = {
        "betas": f"{sizes.n_trials} trials x {sizes.n_voxels:,} voxels, from {as_text(sizes.betas_bytes)}",
        "targets": f"{sizes.n_train + sizes.n_test} images, {len(sizes.targets)} targets of {dims:,} values",
        "ridge": f"{side:,} x {side:,} matrix, penalties: {n_penalties(config)}",
        "latents": f"{sizes.n_test} test images x {dims:,} values, conditions: {conditions}",
        "stage 1": first,
        "stage 2": f"{second}, {steps} steps",
        "scores": f"{scored} images, {', '.join(recipe.metrics.networks)}",
        **({"options": asked} if (asked := _options(config, sizes)) else {}),
        "outputs": f"{as_text(estimate.output)}, including {as_text(estimate.model_file)} for the model file",
    }
    if further := images_of_options(config, sizes.n_test, regions):
        for name in ("stage 1", "stage 2"):
            sizes_of[name] += f" ({further} of them for options)"
    states = _states(config, subject)
    return [(name, what, states.get(name, "")) for name, what in sizes_of.items()]


def _states(config: RunConfig, subject: CheckedSubject) -> dict[str, str]:
    """Look for what earlier runs left of each part."""
    folder = config.work_dir / f"sub-{subject.inputs.label}"
    patterns = {"latents": "latents_brain", "stage 1": "stage1_brain", "stage 2": "stage2_brain"}
    states = {
        name: _MAY_BE_USED for name, stage in patterns.items() if (folder / stage / "done.json").is_file()
    }
    if "stage 2" not in states and (begun := count_blocks(folder, "stage2_brain")):
        states["stage 2"] = f"{begun[0]} of {begun[1]} blocks {_MAY_BE_USED}"
    states |= {"targets": _MAY_BE_USED} if any(config.work_dir.glob("targets-*/part-*.h5")) else {}
    there = stages_there(config, subject)
    states |= {"betas": _FOUND} if {"betas", "responses", "zscore"} <= there else {}
    states |= {"ridge": _FOUND} if "ridge" in there else {}
    return states


def _options(config: RunConfig, sizes: Sizes) -> str:
    """Describe what options compute besides images; "" without them."""
    said = []
    if config.cluster_holdout:
        k = cluster_count(sizes.n_test)
        said.append(f"{k} clusters left out" if k > 1 else "too few test images for clusters")
    if config.roi_analysis:
        said.append(
            f"{len(sizes.region_voxels)} regions, each compared with {RANDOM_SETS} sets of random voxels"
        )
    return "; ".join(said)
