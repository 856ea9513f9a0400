"""What a run will do, in words, before it does anything: the text of ``--dry-run``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bidsapp.config import RANDOM_SETS, RunConfig, cluster_count, ladder_size
from bidsapp.planning.estimate import ResourceEstimate, Sizes, images_made
from bidsapp.planning.option_costs import further_images
from bidsapp.records import Mask, Split, SubjectInputs
from bidsapp.storage.blocks import count_blocks
from bidsapp.storage.stages import NotThere, Survey
from bidsapp.system.units import as_duration, as_text

if TYPE_CHECKING:
    from bidsapp.planning.check import Plan

_THERE = "found, will be used"
_MAY_BE = "found, will be used if its models and settings are the same"


def describe(plan: Plan, config: RunConfig) -> str:
    """Say the plan: what goes in, the stages with their sizes and rough times, what they need.

    Parameters
    ----------
    plan : Plan
    config : RunConfig
        Its device is one that exists, not "auto".
    """
    recipe = config.recipe
    lines = [
        f"Recipe {recipe.name}: {recipe.title}",
        f"Device: {config.device}, {config.n_cpus} CPU{'s' if config.n_cpus > 1 else ''}",
        f"Output: {config.output_dir}",
        f"Work: {config.work_dir}",
    ]
    times: list[float | None] = []
    for subject in plan.dataset.subjects:
        label = subject.label
        split, needed, sizes = plan.splits[label], plan.needs[label], plan.sizes[label]
        there = stages_there(config, subject, split, plan.masks[label])
        rows = _rows(config, label, sizes, needed, there)
        left = [needed.seconds[name] for name, _, state in rows if state != _THERE]
        known = [s for s in left if s is not None]
        times.append(sum(known) if len(known) == len(left) else None)
        lines += ["", _inputs(subject, split, sizes, plan.masks[label], config), *_wants(needed, config)]
        lines.append(f"  time: {_roughly(times[-1])}")
        lines += [
            f"    {name:8} {as_duration(needed.seconds[name]):>10}  {what}{f'; {state}' if state else ''}"
            for name, what, state in rows
        ]
    if len(times) > 1:
        known = [t for t in times if t is not None]
        total = _roughly(sum(known) if len(known) == len(times) else None)
        disk = sum(n.disk for n in plan.needs.values())
        output = sum(n.output for n in plan.needs.values())
        lines += ["", f"All {len(times)} subjects: time {total}, one after the other;"]
        lines.append(f"  about {as_text(disk)} in the work folder, {as_text(output)} in the output folder")
    return "\n".join(lines)


def stages_there(config: RunConfig, subject: SubjectInputs, split: Split, mask: Mask) -> set[str]:
    """Find the stages that an earlier run left and this one will use, of those that are quick to tell.

    These are the stages before any model is needed: betas, responses, zscore and ridge.
    """
    from bidsapp.pipeline.decoding import choose_alphas, fit_ridge
    from bidsapp.pipeline.responses import (
        average_over_repeats,
        mask_betas,
        split_test_halves,
        zscore_by_training,
    )

    survey = Survey(config.work_dir / f"sub-{subject.label}")
    try:
        betas = mask_betas(survey, subject, mask, config.n_cpus)
        averaged = average_over_repeats(survey, betas, subject, split)
        responses = zscore_by_training(survey, averaged)
        if all(len(target.alphas) == 1 for target in config.recipe.targets.values()):
            # Where penalties are chosen, which ones is not known without the targets.
            penalties = choose_alphas(survey, responses, {}, "", config)
            halves = split_test_halves(survey, betas, responses, subject, split)
            n = ladder_size(config, len(split.test))
            fit_ridge(survey, responses, penalties, {}, [halves.key, n], config)
    except NotThere:
        pass  # what comes after depends on it, so it is not there either
    return survey.found


def _inputs(subject: SubjectInputs, split: Split, sizes: Sizes, mask: Mask, config: RunConfig) -> str:
    region = f"{mask.n_voxels:,} voxels of {', '.join(subject.masks)}"
    if config.min_noise_ceiling is not None:
        region += f" (of {mask.n_roi:,}; noise ceiling at least {config.min_noise_ceiling:g} %)"
    return (
        f"sub-{subject.label}: {sizes.n_sessions} sessions, {sizes.n_trials} trials, "
        f"{sizes.n_train} training and {sizes.n_test} test images of {split.name}, {region}"
    )


def _roughly(seconds: float | None) -> str:
    if seconds is None:
        return "not known (these models were not measured on such a device)"
    return f"roughly {as_duration(seconds)}"


def _wants(needed: ResourceEstimate, config: RunConfig) -> list[str]:
    disk = f"{as_text(needed.disk)} in the work folder, {as_text(needed.output)} in the output folder"
    lines = [f"  needs: about {as_text(needed.memory)} of memory, {disk}"]
    if config.device != "cpu":
        parameters = f"{as_text(needed.vram)} of its memory for the models" if needed.vram else "small models"
        each = f", {as_text(needed.image_cost)} for each image in work" if needed.image_cost else ""
        lines.append(f"  {config.device}: about {parameters}{each} (as many at once as fit)")
    return lines


def _rows(
    config: RunConfig, label: str, sizes: Sizes, needed: ResourceEstimate, there: set[str]
) -> list[tuple[str, str, str]]:
    """Name, size and state of each part of the run."""
    recipe = config.recipe
    regions = len(sizes.region_voxels)
    made = images_made(config, sizes.n_test, regions)
    scored = 2 * (made - regions * config.roi_analysis)
    dims = sum(sizes.targets.values())
    penalties = len({alpha for t in recipe.targets.values() for alpha in t.alphas})
    conditions = 1 + recipe.controls.null
    side = min(sizes.n_train, sizes.n_voxels)
    steps = int(recipe.diffusion.steps * recipe.diffusion.strength)
    first, second = (f"{made} images" + (f" of {s} x {s}" if s else "") for s in sizes.sides)
    sizes_of = {
        "betas": f"{sizes.n_trials} trials x {sizes.n_voxels:,} voxels, from {as_text(sizes.betas_bytes)}",
        "targets": f"{sizes.n_train + sizes.n_test} images, {len(sizes.targets)} targets of {dims:,} values",
        "ridge": f"{side:,} x {side:,} matrix, penalties: {penalties}",
        "latents": f"{sizes.n_test} test images x {dims:,} values, conditions: {conditions}",
        "stage 1": first,
        "stage 2": f"{second}, {steps} steps",
        "scores": f"{scored} images, {', '.join(recipe.metrics.networks)}",
        **({"options": asked} if (asked := _options(config, sizes)) else {}),
        "outputs": f"{as_text(needed.output)}, of which the model file has {as_text(needed.model_file)}",
    }
    further = further_images(config, sizes.n_test, regions)
    if further:
        for name in ("stage 1", "stage 2"):
            sizes_of[name] += f" ({further} of them for options)"
    folder = config.work_dir / f"sub-{label}"
    patterns = {"latents": "latents_brain", "stage 1": "stage1_brain", "stage 2": "stage2_brain"}
    states = {name: _MAY_BE for name, stage in patterns.items() if (folder / stage / "done.json").is_file()}
    if "stage 2" not in states and (begun := count_blocks(folder, "stage2_brain")):
        states["stage 2"] = f"{begun[0]} of {begun[1]} blocks {_MAY_BE}"
    states |= {"targets": _MAY_BE} if any(config.work_dir.glob("targets-*/part-*.h5")) else {}
    states |= {"betas": _THERE} if {"betas", "responses", "zscore"} <= there else {}
    states |= {"ridge": _THERE} if "ridge" in there else {}
    return [(name, what, states.get(name, "")) for name, what in sizes_of.items()]


def _options(config: RunConfig, sizes: Sizes) -> str:
    """Say what options compute beside images; "" without them."""
    said = []
    if config.cluster_holdout:
        k = cluster_count(sizes.n_test)
        said.append(f"{k} clusters left out" if k > 1 else "too few test images for clusters")
    if config.roi_analysis:
        said.append(f"{len(sizes.region_voxels)} regions, each beside {RANDOM_SETS} sets of random voxels")
    return "; ".join(said)
