"""Check everything a run depends on before anything is computed, and say what it will do."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bidsapp.config import Recipe, RunConfig
from bidsapp.errors import AppError, ExitCode, InputProblems, Problem
from bidsapp.estimate import Needs, as_text, needs
from bidsapp.records import Split, SubjectInputs

if TYPE_CHECKING:
    from bidsapp.bids.inputs import Dataset
    from bidsapp.data.stimuli import StimulusSet
    from bidsapp.metrics.protocols import NetworkUse

LOG = logging.getLogger("bidsapp")


@dataclass(frozen=True)
class Plan:
    """A dataset that passed all checks, and what will be done with it."""

    dataset: Dataset
    stimuli: StimulusSet
    splits: dict[str, Split]
    needs: dict[str, Needs]

    def describe(self, config: RunConfig) -> str:
        """Say the plan in words, for ``--dry-run``."""
        lines = [f"Recipe {config.recipe.name}: {config.recipe.title}", f"Output: {config.output_dir}"]
        for subject in self.dataset.subjects:
            split, needed = self.splits[subject.label], self.needs[subject.label]
            trials = sum(len(s.stimulus_ids) for s in subject.sessions)
            lines.append(
                f"sub-{subject.label}: {len(subject.sessions)} sessions, {trials} trials, "
                f"{len(split.train)} training and {len(split.test)} test images, "
                f"voxels of {', '.join(subject.masks) or 'no mask'}; "
                f"about {as_text(needed.memory)} of memory, {as_text(needed.disk)} in {config.work_dir}"
            )
        return "\n".join(lines)


def plan(config: RunConfig) -> Plan:
    """Find the inputs and check all of them before anything is computed.

    Raises
    ------
    AppError
        If there is no dataset, or nothing in it matches.
    InputProblems
        With every problem that was found.
    """
    from bidsapp.bids.inputs import open_dataset
    from bidsapp.bids.preflight import check
    from bidsapp.data.splits import make_split
    from bidsapp.data.stimuli import StimulusSet
    from bidsapp.models.devices import choose_device
    from bidsapp.models.suite import missing_models

    choose_device(config.device)
    dataset = open_dataset(
        config.bids_dir,
        participants=config.participants or None,
        sessions=config.sessions or None,
        task=config.task,
        space=config.space,
        roi=config.roi,
        filters=config.filters,
    )
    stimuli = StimulusSet.open(dataset.root)
    problems: list[Problem] = unknown_names(config.recipe)
    uses = {} if problems else judging_networks(config.recipe)
    problems += missing_models(config.recipe, config.models_dir, uses, config.recipe_given)
    splits = {}
    for subject in dataset.subjects:
        seen = {i for session in subject.sessions for i in session.stimulus_ids}
        try:
            splits[subject.label] = make_split(stimuli, seen, config.split_file)
        except InputProblems as error:
            problems += [p for p in error.problems if p not in problems]
    complete = splits if len(splits) == len(dataset.subjects) else None
    problems = check(dataset, stimuli, complete, config.output_dir, config.work_dir) + problems
    if problems:
        raise InputProblems(problems)
    if dataset.generated_by != "bidsapp-recon demo" and config.recipe.models.location == "package":
        LOG.warning(
            "The embedded models know drawn scenes only; on photographs they show that the pipeline runs, "
            "not what the brain data hold."
        )
    needed = {s.label: _needs(dataset, s, splits[s.label], config) for s in dataset.subjects}
    _check_memory(needed, config)
    return Plan(dataset, stimuli, splits, needed)


def judging_networks(recipe: Recipe) -> dict[str, NetworkUse]:
    """Networks of the recipe's published protocol, as the recipe chooses; none of the native protocol's."""
    from bidsapp.metrics.protocols import published_protocols

    protocol = published_protocols().get(recipe.metrics.protocol)
    return {name: protocol.networks[name] for name in recipe.metrics.networks} if protocol else {}


def unknown_names(recipe: Recipe) -> list[Problem]:
    """Find the protocol or the judging networks that a recipe names and that do not exist."""
    from bidsapp.metrics.protocol import PROTOCOLS
    from bidsapp.metrics.protocols import published_protocols
    from bidsapp.models.evalnets import NATIVE_NETWORKS

    name, protocols = recipe.metrics.protocol, published_protocols()
    where = f"recipe {recipe.name}"
    if name not in PROTOCOLS:
        mend = f"set metrics.protocol in the recipe to one of {', '.join(PROTOCOLS)}"
        return [Problem(where, f"there is no protocol {name!r}", mend)]
    known = tuple(protocols[name].networks) if name in protocols else NATIVE_NETWORKS
    mend = f"choose metrics.networks of the protocol {name!r} from {', '.join(known)}"
    unknown = [n for n in recipe.metrics.networks if n not in known]
    return [Problem(where, f"the protocol {name!r} has no network {n!r}", mend) for n in unknown]


def _needs(dataset: Dataset, subject: SubjectInputs, split: Split, config: RunConfig) -> Needs:
    from bidsapp.bids.inputs import count_voxels
    from bidsapp.models.sizes import target_sizes
    from bidsapp.models.suite import models_root

    sizes = target_sizes(config.recipe, models_root(config.recipe, config.models_dir))
    trials = sum(len(s.stimulus_ids) for s in subject.sessions)
    voxels = count_voxels(dataset, subject.label)
    return needs(config, trials, len(split.train), len(split.test), voxels, sizes)


def _check_memory(needed: dict[str, Needs], config: RunConfig) -> None:
    """Refuse a run that is known not to fit, rather than leave it to the system to kill it."""
    most = max((n.memory for n in needed.values()), default=0)
    if config.memory is not None and most > config.memory:
        raise AppError(
            f"--mem {as_text(config.memory)} is too little: a subject needs about {as_text(most)}. "
            "Give more, or a smaller region of interest (--roi).",
            exit_code=ExitCode.TRY_AGAIN,
        )
