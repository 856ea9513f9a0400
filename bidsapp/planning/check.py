"""Everything a run depends on, checked before anything is computed."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bidsapp.config import RunConfig
from bidsapp.errors import ExitCode, Problem, ProblemCollector, did_you_mean
from bidsapp.planning.estimate import ResourceEstimate, Sizes, estimate_resources, value_bytes
from bidsapp.recipes import Recipe
from bidsapp.records import Mask, Split, SubjectInputs
from bidsapp.storage.files import bytes_there
from bidsapp.system.resources import as_text, available_memory

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from bidsapp.bids.inputs import Dataset
    from bidsapp.data.stimuli import StimulusSet
    from bidsapp.metrics.protocols import NetworkUse

LOG = logging.getLogger("bidsapp")
#: Bytes of a stored value, for times alone: NSD's betas are int16.
_STORED = 2


@dataclass(frozen=True)
class CheckedSubject:
    """One subject's inputs that passed all checks, and what computing with them takes."""

    inputs: SubjectInputs
    split: Split
    mask: Mask
    sizes: Sizes
    estimate: ResourceEstimate


@dataclass(frozen=True)
class CheckedRun:
    """A dataset that passed all checks; its subjects by label, in the order in which they are run."""

    dataset: Dataset
    stimuli: StimulusSet
    subjects: dict[str, CheckedSubject]
    device: str

    def regions(self, label: str, config: RunConfig) -> dict[str, npt.NDArray[np.bool_]]:
        """Read the regions for ``--roi-analysis``, (x, y, z) each; none without that option."""
        from bidsapp.bids.regions import region_masks

        if not config.roi_analysis:
            return {}
        return region_masks(self.dataset, label, self.subjects[label].mask.shape)

    def region_files(self, label: str, config: RunConfig) -> list[Path]:
        """Give the images that ``--roi-analysis`` may take regions from, sorted; none without that option."""
        if not config.roi_analysis:
            return []
        each = self.dataset.region_files.get(label, {}).values()
        return sorted({f.path for files in each for f in files if f.get("suffix") in ("mask", "dseg")})


def check_run(config: RunConfig) -> CheckedRun:
    """Find the inputs and check all of them, before anything is computed.

    Raises
    ------
    AppError
        If one thing is wrong, as the check that found it reports it.
    InputProblems
        With every problem found.
    """
    if not config.bids_dir.is_dir():  # a mistyped path: nothing else is worth a message
        from bidsapp.bids.inputs import open_dataset

        open_dataset(config.bids_dir)
    found = ProblemCollector()
    config = replace(config, device=_check_machine(config, found))
    dataset, stimuli = _open_inputs(config, found)
    splits = _make_splits(config, dataset, stimuli, found) if dataset and stimuli else {}
    masks = _check_dataset(config, dataset, stimuli, splits, found) if dataset else {}
    _check_models(config, found)
    sound = not found.problems
    subjects = {}
    for inputs in dataset.subjects if dataset else ():
        label = inputs.label
        if label in splits and label in masks:
            sizes = _sizes(inputs, splits[label], masks[label], config)
            if dataset and stimuli and sound:
                shown = _stimulus_bytes(stimuli, splits[label].test)
                regions = _region_voxels(dataset, label, masks[label]) if config.roi_analysis else ()
                sizes = replace(sizes, stimulus_bytes=shown, region_voxels=regions)
            estimate = estimate_resources(config, sizes)
            subjects[label] = CheckedSubject(inputs, splits[label], masks[label], sizes, estimate)
    estimates = [subject.estimate for subject in subjects.values()]
    found.add(_memory_problems(estimates, config))
    found.add(_space_problems(estimates, config, found.problems))
    found.raise_any()
    assert dataset is not None
    assert stimuli is not None
    _warn_of_memory(estimates, config)
    chosen = config.split_variant is not None
    for note in dict.fromkeys(n for split in splits.values() for n in split_notes(split, chosen)):
        LOG.warning(note)
    if trained_on_other_images(dataset, config.recipe):
        LOG.warning(
            "The embedded models were trained on drawn scenes only. On photographs they show that the "
            "pipeline runs, not what the brain data hold."
        )
    return CheckedRun(dataset, stimuli, subjects, config.device)


def trained_on_other_images(dataset: Dataset, recipe: Recipe) -> bool:
    """Whether the recipe's models know drawn scenes only, and the stimuli are not the demo's."""
    return dataset.generated_by != "bidsapp-recon demo" and recipe.models.location == "package"


def _check_machine(config: RunConfig, found: ProblemCollector) -> str:
    """Give the device that will be used; the CPU if the one asked for does not exist."""
    from bidsapp.models.devices import choose_device, choose_dtype

    with found.at("--device"):
        device = choose_device(config.device)
        with found.at("--dtype"):
            choose_dtype(config.dtype, device)
        return device
    return "cpu"


def _open_inputs(config: RunConfig, found: ProblemCollector) -> tuple[Dataset | None, StimulusSet | None]:
    """Open the dataset and its stimuli, each even if something is wrong with the other."""
    from bidsapp.bids.folders import check_folders
    from bidsapp.bids.inputs import InputSelection, open_dataset
    from bidsapp.bids.validator import validate_input
    from bidsapp.data.stimuli import StimulusSet

    dataset = stimuli = None
    with found.at(config.bids_dir):
        selection = InputSelection(
            participants=config.participants,
            sessions=config.sessions,
            max_sessions=config.max_sessions,
            task=config.task,
            space=config.space,
            roi=config.roi,
            filters=config.filters,
            derivatives=config.derivatives,
        )
        dataset = open_dataset(config.bids_dir, selection)
    if not config.skip_bids_validation:
        with found.at(config.bids_dir):
            validate_input(config.bids_dir, config.participants)
    root = dataset.root if dataset else config.bids_dir
    if dataset is not None or (root / "stimuli").is_dir():
        with found.at(root / "stimuli"):
            stimuli = StimulusSet.open(root, config.captions, found=found)
    inputs = [config.bids_dir, root, *config.derivatives.values()]
    inputs += [stimuli.folder.parent] if stimuli else []
    found.add(check_folders(inputs, config.output_dir, config.work_dir))
    return dataset, stimuli


def _make_splits(
    config: RunConfig, dataset: Dataset, stimuli: StimulusSet, found: ProblemCollector
) -> dict[str, Split]:
    from bidsapp.data.splits import make_split, split_path

    splits = {}
    for subject in dataset.subjects:
        seen = {i for session in subject.sessions for i in session.stimulus_ids}
        path = split_path(config.split_file, subject.label)
        with found.at(path or stimuli.table):
            splits[subject.label] = make_split(stimuli, seen, path, variant=config.split_variant)
    return splits


def _check_dataset(
    config: RunConfig,
    dataset: Dataset,
    stimuli: StimulusSet | None,
    splits: dict[str, Split],
    found: ProblemCollector,
) -> dict[str, Mask]:
    """Check headers and tables, then look into the files that they found nothing wrong with.

    Returns the mask of each subject whose images are right.
    """
    from bidsapp.bids.preflight import find_problems

    wrong = {problem.path for problem in found.problems}
    readable = stimuli is None or str(stimuli.captions_path) not in wrong
    captions = readable and "clip_text" in config.recipe.target_names
    complete = splits if len(splits) == len(dataset.subjects) else None
    ceiling = config.min_noise_ceiling
    found.add(find_problems(dataset, stimuli, complete, captions=captions, min_noise_ceiling=ceiling))
    wrong = {problem.path for problem in found.problems}
    masks: dict[str, Mask] = {}
    for subject in dataset.subjects:
        images = {str(path) for path in (*subject.masks.values(), subject.noise_ceiling)}
        if subject.masks and subject.sessions and not images & wrong:
            with found.at(config.bids_dir, subject=subject.label):
                _check_betas(config, dataset, subject, masks, found)
    if stimuli is not None:
        shown = {i for u in dataset.subjects for s in u.sessions for i in s.stimulus_ids}
        used = {i for split in splits.values() for i in (*split.train, *split.test)} or shown
        found.add(stimuli.unreadable([i for i in stimuli.ids if i in used]))
    return masks


def _check_betas(
    config: RunConfig,
    dataset: Dataset,
    subject: SubjectInputs,
    masks: dict[str, Mask],
    found: ProblemCollector,
) -> None:
    """Choose a subject's voxels and sample its betas there, which takes milliseconds per session."""
    from bidsapp.bids.voxels import choose_voxels
    from bidsapp.data.sampling import check_magnitudes, sample_session

    wrong = {problem.path for problem in found.problems}
    mask = masks[subject.label] = choose_voxels(dataset, subject.label, config.min_noise_ceiling)
    sessions = [s for s in subject.sessions if str(s.betas) not in wrong]
    samples = [sample_session(session, mask) for session in sessions]
    problems = [problem for problems, _ in samples for problem in problems]
    problems += check_magnitudes(sessions, [magnitude for _, magnitude in samples])
    found.add(replace(p, subject=subject.label) for p in problems)


def split_notes(split: Split, chosen: bool = True) -> list[str]:
    """Note what a user should know about a split file; ``chosen`` is whether they chose its variant."""
    notes = []
    if split.n_variants > 1 and not chosen:
        more = f"of {split.n_variants}; --split-variant chooses another."
        notes.append(f"{split.file}: using variant {split.variant} {more}")
    if split.unknown:
        n = len(split.unknown)
        some = ", ".join(split.unknown[:5]) + (" ..." if n > 5 else "")
        left_out = f"{n} of its ids {'are' if n > 1 else 'is'} not among the dataset's stimuli"
        notes.append(f"{split.file}: {left_out} and left out: {some}")
    return notes


def _check_models(config: RunConfig, found: ProblemCollector) -> None:
    from bidsapp.models.weights.registry import missing_models

    unknown = unknown_names(config.recipe)
    uses = {} if unknown else evaluation_networks(config.recipe)
    found.add(unknown)
    found.add(missing_models(config.recipe, config.models_dir, uses, config.recipe_given))


def evaluation_networks(recipe: Recipe) -> dict[str, NetworkUse]:
    """Give the networks that the recipe chooses from its published protocol; none for the native one."""
    from bidsapp.metrics.protocols import published_protocols

    protocol = published_protocols().get(recipe.metrics.protocol)
    return {name: protocol.networks[name] for name in recipe.metrics.networks} if protocol else {}


def unknown_names(recipe: Recipe) -> list[Problem]:
    """Find the protocol or the evaluation networks in a recipe that do not exist."""
    from bidsapp.metrics.protocols import published_protocols
    from bidsapp.metrics.scoring import PROTOCOLS
    from bidsapp.models.judges.evalnets import NATIVE_NETWORKS

    name, protocols = recipe.metrics.protocol, published_protocols()
    where = f"recipe {recipe.name}"
    if name not in PROTOCOLS:
        fix = f"Set metrics.protocol in the recipe to one of {', '.join(PROTOCOLS)}."
        return [Problem(where, f"Unknown protocol {name!r}.{did_you_mean(name, PROTOCOLS)}", fix)]
    known = tuple(protocols[name].networks) if name in protocols else NATIVE_NETWORKS
    fix = f"Choose metrics.networks of the protocol {name!r} from {', '.join(known)}."
    unknown = [n for n in recipe.metrics.networks if n not in known]
    what = f"The protocol {name!r} has no network"
    return [Problem(where, f"{what} {n!r}.{did_you_mean(n, known)}", fix) for n in unknown]


def _sizes(subject: SubjectInputs, split: Split, mask: Mask, config: RunConfig) -> Sizes:
    from bidsapp.models.costs import image_cost, image_sides, target_sizes
    from bidsapp.models.suite import models_root

    root = models_root(config.recipe, config.models_dir)
    n_trials = sum(len(s.stimulus_ids) for s in subject.sessions)
    return Sizes(
        n_sessions=len(subject.sessions),
        n_trials=n_trials,
        n_train=len(split.train),
        n_test=len(split.test),
        n_voxels=mask.n_voxels,
        betas_bytes=n_trials * mask.inside.size * _STORED,
        targets=target_sizes(config.recipe, root),
        sides=image_sides(config.recipe, root),
        image_cost=image_cost(config.recipe, root, value_bytes(config)),
    )


def _region_voxels(dataset: Dataset, label: str, mask: Mask) -> tuple[int, ...]:
    """Count the voxels of each region that ``--roi-analysis`` decodes."""
    from bidsapp.analyses.regions import voxels_of
    from bidsapp.bids.regions import region_masks

    regions = region_masks(dataset, label, mask.shape)
    found = voxels_of(regions, mask.flat_index)
    return tuple(int(inside.sum()) for inside in found.values())


def _stimulus_bytes(stimuli: StimulusSet, ids: tuple[str, ...]) -> int:
    """Bytes of a test stimulus: of the first, since a dataset's images are mostly of one size."""
    height, width = stimuli.size(ids[0])
    return 3 * height * width


def _memory_problems(estimates: Iterable[ResourceEstimate], config: RunConfig) -> list[Problem]:
    """Refuse a run that does not fit, before the system kills it."""
    most = max((e.memory for e in estimates), default=0)
    if config.memory is None or most <= config.memory:
        return []
    what = f"--mem {as_text(config.memory)} is too little: a subject needs about {as_text(most)}."
    return [Problem("--mem", what, "Give more, or a smaller region of interest (--roi).", ExitCode.TRY_AGAIN)]


def _warn_of_memory(estimates: Iterable[ResourceEstimate], config: RunConfig) -> None:
    """Warn that the system may end the run; the need is an estimate, so the run is not refused."""
    most, available = max((e.memory for e in estimates), default=0), available_memory()
    if config.memory is None and available is not None and most > available:
        LOG.warning(
            "A subject needs about %s of memory, but %s is available: the system may end this run without a "
            "message. Give it more, or choose a smaller region of interest (--roi).",
            as_text(most),
            as_text(available),
        )


def _space_problems(
    estimates: list[ResourceEstimate], config: RunConfig, known: list[Problem]
) -> list[Problem]:
    """Refuse a run that does not fit on the disk; files of earlier runs in the work folder count as free."""
    from bidsapp.bids.folders import RequiredSpace, check_space

    folders = {str(config.output_dir), str(config.work_dir)}
    if not estimates or folders & {problem.path for problem in known}:
        return []
    work = sum(e.disk for e in estimates) - bytes_there(config.work_dir)
    output = sum(e.output for e in estimates)
    work_space = RequiredSpace(config.work_dir, "work", max(0, work))
    return check_space([work_space, RequiredSpace(config.output_dir, "output", output)])
