"""Check everything a run depends on before anything is computed, and say what it will do."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bidsapp.config import RunConfig
from bidsapp.errors import ExitCode, Problem, ProblemCollector, did_you_mean
from bidsapp.planning.estimate import ResourceEstimate, Sizes, needs, value_bytes
from bidsapp.recipes import Recipe
from bidsapp.records import Mask, Split, SubjectInputs
from bidsapp.storage.files import bytes_there
from bidsapp.system.resources import available_memory
from bidsapp.system.units import as_text

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
class Plan:
    """A dataset that passed all checks, and what will be done with it."""

    dataset: Dataset
    stimuli: StimulusSet
    splits: dict[str, Split]
    masks: dict[str, Mask]
    sizes: dict[str, Sizes]
    needs: dict[str, ResourceEstimate]
    device: str

    def regions(self, label: str, config: RunConfig) -> dict[str, npt.NDArray[np.bool_]]:
        """Read the regions of ``--roi-analysis`` of a subject, (x, y, z) each; none without that option."""
        from bidsapp.bids.regions import region_masks

        return region_masks(self.dataset, label, self.masks[label].shape) if config.roi_analysis else {}

    def region_files(self, label: str, config: RunConfig) -> list[Path]:
        """Give the images that ``--roi-analysis`` may take regions from (none without it), sorted."""
        if not config.roi_analysis:
            return []
        each = self.dataset.region_files.get(label, {}).values()
        return sorted({f.path for files in each for f in files if f.get("suffix") in ("mask", "dseg")})

    def describe(self, config: RunConfig) -> str:
        """Say the plan in words; see :func:`bidsapp.planning.describe.describe`."""
        from bidsapp.planning.describe import describe

        return describe(self, replace(config, device=self.device))


def plan(config: RunConfig) -> Plan:
    """Find the inputs and check all of them before anything is computed.

    Raises
    ------
    AppError
        Where one thing is wrong, as the check that found it says it.
    InputProblems
        With every problem that was found.
    """
    if not config.bids_dir.is_dir():  # a mistyped path: nothing else is worth a message
        from bidsapp.bids.inputs import open_dataset

        open_dataset(config.bids_dir)
    found = ProblemCollector()
    device = _check_machine(config, found)
    dataset, stimuli = _open_inputs(config, found)
    splits = _make_splits(config, dataset, stimuli, found) if dataset and stimuli else {}
    masks: dict[str, Mask] = {}
    if dataset is not None:
        from bidsapp.bids.preflight import check

        complete = splits if len(splits) == len(dataset.subjects) else None
        wrong = {problem.path for problem in found.problems}
        readable = stimuli is None or str(stimuli.captions_path) not in wrong
        captions = readable and "clip_text" in config.recipe.target_names
        found.add(
            check(
                dataset,
                stimuli,
                complete,
                captions=captions,
                min_noise_ceiling=config.min_noise_ceiling,
            )
        )
        masks = _check_contents(config, dataset, stimuli, splits, found)
    _check_models(config, found)
    sizes, needed = {}, {}
    if dataset is not None:
        ready = [s for s in dataset.subjects if s.label in splits and s.label in masks]
        here = replace(config, device=device)
        sizes = {s.label: _sizes(s, splits[s.label], masks[s.label], here) for s in ready}
        if stimuli is not None and not found.problems:
            shown = {label: _stimulus_bytes(stimuli, splits[label].test) for label in sizes}
            sizes = {label: replace(size, stimulus_bytes=shown[label]) for label, size in sizes.items()}
        if config.roi_analysis and not found.problems:
            within = {label: _region_voxels(dataset, label, masks[label]) for label in sizes}
            sizes = {label: replace(size, region_voxels=within[label]) for label, size in sizes.items()}
        needed = {label: needs(here, size) for label, size in sizes.items()}
        found.add(_memory_problems(needed, config))
        found.add(_space_problems(needed, config, found.problems))
    found.raise_any()
    assert dataset is not None
    assert stimuli is not None
    _warn_of_memory(needed, config)
    chosen = config.split_variant is not None
    for note in dict.fromkeys(n for split in splits.values() for n in split_notes(split, chosen)):
        LOG.warning(note)
    if dataset.generated_by != "bidsapp-recon demo" and config.recipe.models.location == "package":
        LOG.warning(
            "The embedded models know drawn scenes only; on photographs they show that the pipeline runs, "
            "not what the brain data hold."
        )
    return Plan(dataset, stimuli, splits, masks, sizes, needed, device)


def _check_machine(config: RunConfig, found: ProblemCollector) -> str:
    """Give the device that will be used; the CPU where the one asked for is not there."""
    from bidsapp.models.devices import choose_device, choose_dtype

    with found.at("--device"):
        device = choose_device(config.device)
        with found.at("--dtype"):
            choose_dtype(config.dtype, device)
        return device
    return "cpu"


def _open_inputs(config: RunConfig, found: ProblemCollector) -> tuple[Dataset | None, StimulusSet | None]:
    """Open the dataset and its stimuli, each even where something is wrong with the other."""
    from bidsapp.bids.folders import check_folders
    from bidsapp.bids.inputs import open_dataset
    from bidsapp.bids.validator import validate_input
    from bidsapp.data.stimuli import StimulusSet

    dataset = stimuli = None
    with found.at(config.bids_dir):
        dataset = open_dataset(
            config.bids_dir,
            participants=config.participants or None,
            sessions=config.sessions or None,
            max_sessions=config.max_sessions,
            task=config.task,
            space=config.space,
            roi=config.roi,
            filters=config.filters,
            derivatives=config.derivatives,
        )
    if not config.skip_bids_validation:
        with found.at(config.bids_dir):
            validate_input(config.bids_dir)
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


def _check_contents(
    config: RunConfig,
    dataset: Dataset,
    stimuli: StimulusSet | None,
    splits: dict[str, Split],
    found: ProblemCollector,
) -> dict[str, Mask]:
    """Look into betas and images as far as is quick, where nothing is known to be wrong with them.

    Gives the mask of each subject whose images are right.
    """
    from bidsapp.bids.voxels import choose_voxels
    from bidsapp.data.sampling import check_magnitudes, sample_session

    wrong = {problem.path for problem in found.problems}
    masks = {}
    for subject in dataset.subjects:
        label, images = (
            subject.label,
            {str(path) for path in (*subject.masks.values(), subject.noise_ceiling)},
        )
        if not subject.masks or images & wrong or not subject.sessions:
            continue
        with found.at(config.bids_dir, subject=label):
            masks[label] = choose_voxels(dataset, label, config.min_noise_ceiling)
            sessions = [s for s in subject.sessions if str(s.betas) not in wrong]
            looks = [sample_session(session, masks[label]) for session in sessions]
            problems = [p for problems, _ in looks for p in problems]
            problems += check_magnitudes(sessions, [magnitude for _, magnitude in looks])
            found.add(replace(p, subject=label) for p in problems)
    if stimuli is not None:
        shown = {i for u in dataset.subjects for s in u.sessions for i in s.stimulus_ids}
        used = {i for split in splits.values() for i in (*split.train, *split.test)} or shown
        found.add(stimuli.unreadable([i for i in stimuli.ids if i in used]))
    return masks


def split_notes(split: Split, chosen: bool = True) -> list[str]:
    """Say what of a split file a user should know.

    Parameters
    ----------
    split : Split
    chosen : bool
        Whether the user chose its variant.
    """
    notes = []
    if split.n_variants > 1 and not chosen:
        more = f"of {split.n_variants}; --split-variant chooses another."
        notes.append(f"{split.file}: this is variant {split.variant} {more}")
    if split.unknown:
        n = len(split.unknown)
        some = ", ".join(split.unknown[:5]) + (" ..." if n > 5 else "")
        left = (
            f"{n} of its ids {'are' if n > 1 else 'is'} not among the dataset's stimuli and left out: {some}"
        )
        notes.append(f"{split.file}: {left}")
    return notes


def _check_models(config: RunConfig, found: ProblemCollector) -> None:
    from bidsapp.models.weights.registry import missing_models

    unknown = unknown_names(config.recipe)
    uses = {} if unknown else evaluation_networks(config.recipe)
    found.add(unknown)
    found.add(missing_models(config.recipe, config.models_dir, uses, config.recipe_given))


def evaluation_networks(recipe: Recipe) -> dict[str, NetworkUse]:
    """Networks of the recipe's published protocol, as the recipe chooses; none of the native protocol's."""
    from bidsapp.metrics.protocols import published_protocols

    protocol = published_protocols().get(recipe.metrics.protocol)
    return {name: protocol.networks[name] for name in recipe.metrics.networks} if protocol else {}


def unknown_names(recipe: Recipe) -> list[Problem]:
    """Find the protocol or the evaluation networks that a recipe names and that do not exist."""
    from bidsapp.metrics.protocols import published_protocols
    from bidsapp.metrics.scoring import PROTOCOLS
    from bidsapp.models.judges.evalnets import NATIVE_NETWORKS

    name, protocols = recipe.metrics.protocol, published_protocols()
    where = f"recipe {recipe.name}"
    if name not in PROTOCOLS:
        fix = f"set metrics.protocol in the recipe to one of {', '.join(PROTOCOLS)}"
        hint = did_you_mean(name, PROTOCOLS)
        return [Problem(where, f"there is no protocol {name!r}.{hint}", fix)]
    known = tuple(protocols[name].networks) if name in protocols else NATIVE_NETWORKS
    fix = f"choose metrics.networks of the protocol {name!r} from {', '.join(known)}"
    unknown = [n for n in recipe.metrics.networks if n not in known]
    what = f"the protocol {name!r} has no network"
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
    """Voxels of each region that ``--roi-analysis`` decodes."""
    from bidsapp.analyses.regions import voxels_of
    from bidsapp.bids.regions import region_masks

    regions = region_masks(dataset, label, mask.shape)
    found = voxels_of(regions, mask.flat_index)
    return tuple(int(inside.sum()) for inside in found.values())


def _stimulus_bytes(stimuli: StimulusSet, ids: tuple[str, ...]) -> int:
    """Bytes of a test image as it is read: of the first, since a dataset's images are mostly of one size."""
    height, width = stimuli.size(ids[0])
    return 3 * height * width


def _memory_problems(needed: dict[str, ResourceEstimate], config: RunConfig) -> list[Problem]:
    """Refuse a run that is known not to fit, rather than leave it to the system to kill it."""
    most = max((n.memory for n in needed.values()), default=0)
    if config.memory is None or most <= config.memory:
        return []
    what = f"--mem {as_text(config.memory)} is too little: a subject needs about {as_text(most)}."
    return [Problem("--mem", what, "Give more, or a smaller region of interest (--roi).", ExitCode.TRY_AGAIN)]


def _warn_of_memory(needed: dict[str, ResourceEstimate], config: RunConfig) -> None:
    """Say beforehand that the system may end the run; what it needs is an estimate, so it is not refused."""
    most, there = max((n.memory for n in needed.values()), default=0), available_memory()
    if config.memory is None and there is not None and most > there:
        LOG.warning(
            "A subject needs about %s of memory, but %s is available: the system may end this run without a "
            "message. Give it more, or choose a smaller region of interest (--roi).",
            as_text(most),
            as_text(there),
        )


def _space_problems(
    needed: dict[str, ResourceEstimate], config: RunConfig, known: list[Problem]
) -> list[Problem]:
    """Refuse a run that the disk has no room for; what earlier runs left in the work folder is counted in."""
    from bidsapp.bids.folders import RequiredSpace, check_space

    folders = {str(config.output_dir), str(config.work_dir)}
    if not needed or folders & {problem.path for problem in known}:
        return []
    work = sum(n.disk for n in needed.values()) - bytes_there(config.work_dir)
    output = sum(n.output for n in needed.values())
    wanted = [
        RequiredSpace(config.work_dir, "work", max(0, work)),
        RequiredSpace(config.output_dir, "output", output),
    ]
    return check_space(wanted)
