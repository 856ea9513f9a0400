"""The jobs of a dataset, in the order in which they depend on each other, and their scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bidsapp.planning.estimate import ResourceEstimate
from bidsapp.slurm.binds import Bind
from bidsapp.slurm.resources import GROUP_MEMORY, GROUP_TIME, Resources, as_limit, memory_limit, time_limit
from bidsapp.slurm.scripts import Expression, Job, Line, Site, Step, batch_script, submit_script
from bidsapp.storage.text import write_text

#: Variables that SLURM sets in a task, for what the script's header requests.
_CPUS, _MEMORY = Expression("$SLURM_CPUS_PER_TASK"), Expression("${SLURM_MEM_PER_NODE}MiB")


@dataclass(frozen=True)
class Launch:
    """How the app is started on a node."""

    #: interpreter of the installation; unused with an image
    python: str
    #: image to run in
    sif: Path | None = None
    #: for the participant level; the group level gets the writable ones
    binds: tuple[Bind, ...] = ()

    def lines(self, level: str, *, gpu: bool) -> list[Line]:
        """Give the words that precede the app's own arguments."""
        if self.sif is None:
            return [[self.python, "-m", "bidsapp"]]
        start = ["apptainer", "run", "--containall", "--no-home", *(["--nv"] if gpu else [])]
        seen = [b for b in self.binds if level == "participant" or b.writable]
        return [start, *(["--bind", str(bind)] for bind in seen), [str(self.sif)]]


@dataclass(frozen=True)
class Requested:
    """What the user requests for a task; ``time`` and ``memory`` replace the estimates unless None."""

    cpus: int
    time: str | None = None
    #: bytes
    memory: int | None = None
    gres: str | None = None
    group_partition: str | None = None


@dataclass(frozen=True)
class Run:
    """A participant run of several subjects; folders are absolute."""

    bids_dir: Path
    output_dir: Path
    work_dir: Path
    #: of every task
    options: Sequence[Line]
    #: by label
    needs: Mapping[str, ResourceEstimate]
    #: tasks for each subject's stage 2
    shards: int = 1
    #: of the first job's tasks alone (``--force``: in later jobs it would undo their work)
    first_options: Sequence[Line] = ()


def chain(run: Run, launch: Launch, asked: Requested) -> list[Step]:
    """Give the jobs of a run, each with the one that it waits for.

    These are one array and the group job. With shards there are four: ``prepare`` (everything before stage
    2), ``shard`` (a share of stage 2 in each task), ``gather`` (the rest) and the group job.

    Raises
    ------
    AppError
        Exit code 64 if there is neither an estimate of a task's time nor a time from the user.
    """
    labels, n = tuple(run.needs), run.shards
    asks = Resources(
        time=asked.time or "",
        memory=math.ceil(asked.memory / 2**20) if asked.memory else memory_limit(run.needs.values()),
        cpus=asked.cpus,
        gres=asked.gres,
    )

    def participant(name: str, about: str, *more: Line, shards: int = 1, step: str | None = None) -> Job:
        limit = asked.time or time_limit(run.needs.values(), step, n)
        places = [[str(run.bids_dir), str(run.output_dir), "participant"]]
        own: list[Line] = [["--participant-label", Expression("$subject")], *more]
        own += [["--n-cpus", _CPUS], ["--mem", _MEMORY], *run.options]
        own += run.first_options if name in ("participant", "prepare") else ()
        command = [*launch.lines("participant", gpu=asks.gpu), *places, *own]
        # A container's folders have to exist before it starts.
        folders = (run.output_dir, run.work_dir)
        return Job(name, about, replace(asks, time=limit), command, labels, shards, folders)

    if n == 1:
        jobs = [participant("participant", "The participant level, one task per subject.")]
    else:
        jobs = [
            participant(
                "prepare", "Everything before stage 2, one task per subject.", ["--prepare"], step="prepare"
            ),
            participant(
                "shard",
                f"Stage 2, {n} tasks per subject.",
                ["--shard", Expression("$shard")],
                shards=n,
                step="shard",
            ),
            participant("gather", "Scores and outputs, one task per subject.", step="gather"),
        ]
    few = Resources(as_limit(GROUP_TIME), GROUP_MEMORY, 1)
    places = [str(run.bids_dir), str(run.output_dir), "group"]
    about = "The group level: finished subjects; failed ones are listed as missing."
    command = [*launch.lines("group", gpu=False), places]
    jobs.append(Job("group", about, few, command, partition=asked.group_partition))
    before = [None, *(job.name for job in jobs)]
    return [Step(job, after) for job, after in zip(jobs, before, strict=False)]


def write_chain(steps: Sequence[Step], site: Site, prefix: str, folder: Path) -> Path:
    """Write the scripts of a chain into the folder of the tasks' logs; give the one that submits them."""
    for step in steps:
        write_text(folder / f"{step.job.name}.sh", batch_script(step.job, site, prefix, folder))
    submit = folder / "submit.sh"
    write_text(submit, submit_script(steps))
    return submit
