"""The jobs of a dataset, in the order in which they wait for each other, and their scripts in a folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bidsapp.planning.estimate import Needs
from bidsapp.slurm.binds import Bind
from bidsapp.slurm.resources import GROUP_MEMORY, GROUP_TIME, Resources, as_limit, memory_limit, time_limit
from bidsapp.slurm.scripts import Expression, Job, Line, Site, Step, batch_script, submit_script
from bidsapp.storage.text import write_text

#: Variables that SLURM sets in a task, of what the script's header asks for.
_CPUS, _MEMORY = Expression("$SLURM_CPUS_PER_TASK"), Expression("${SLURM_MEM_PER_NODE}MiB")


@dataclass(frozen=True)
class Launch:
    """How the app is started on a node.

    Attributes
    ----------
    python : str
        Interpreter of the installation; unused with an image.
    sif : Path or None
        Image to run in.
    binds : tuple of Bind
        What the participant level sees there; the group level sees what is writable.
    """

    python: str
    sif: Path | None = None
    binds: tuple[Bind, ...] = ()

    def lines(self, level: str, *, gpu: bool) -> list[Line]:
        """Give the words before the app's own arguments."""
        if self.sif is None:
            return [[self.python, "-m", "bidsapp"]]
        start = ["apptainer", "run", "--containall", "--no-home", *(["--nv"] if gpu else [])]
        seen = [b for b in self.binds if level == "participant" or b.writable]
        return [start, *(["--bind", str(bind)] for bind in seen), [str(self.sif)]]


@dataclass(frozen=True)
class Asked:
    """What the user asks for a task, in place of the estimates' time and memory where not None.

    ``memory`` is in bytes.
    """

    cpus: int
    time: str | None = None
    memory: int | None = None
    gres: str | None = None
    group_partition: str | None = None


@dataclass(frozen=True)
class Run:
    """A participant run of several subjects.

    Attributes
    ----------
    bids_dir, output_dir, work_dir : Path
        Absolute.
    options : sequence of lines
        Of every task, as they are.
    needs : mapping of str to Needs
        By label.
    shards : int
        Tasks of each subject's stage 2.
    first_options : sequence of lines
        Of the first job's tasks alone (``--force``: those after it would undo its work).
    """

    bids_dir: Path
    output_dir: Path
    work_dir: Path
    options: Sequence[Line]
    needs: Mapping[str, Needs]
    shards: int = 1
    first_options: Sequence[Line] = ()


def chain(run: Run, launch: Launch, asked: Asked) -> list[Step]:
    """Give the jobs of a run, each with the one that it waits for.

    One array and the group job; with shards four: ``prepare`` (all before stage 2), ``shard`` (a share of
    stage 2 a task), ``gather`` (the rest of a subject) and the group job.

    Raises
    ------
    AppError
        Exit code 64 where neither the user nor the estimates say how long a task takes.
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
        # A container's folders have to be there before it starts.
        folders = (run.output_dir, run.work_dir)
        return Job(name, about, replace(asks, time=limit), command, labels, shards, folders)

    if n == 1:
        jobs = [participant("participant", "The participant level, a subject a task.")]
    else:
        jobs = [
            participant("prepare", "All before stage 2, a subject a task.", ["--prepare"], step="prepare"),
            participant(
                "shard",
                f"Stage 2, {n} tasks a subject.",
                ["--shard", Expression("$shard")],
                shards=n,
                step="shard",
            ),
            participant("gather", "Scores and outputs, a subject a task.", step="gather"),
        ]
    few = Resources(as_limit(GROUP_TIME), GROUP_MEMORY, 1)
    places = [str(run.bids_dir), str(run.output_dir), "group"]
    about = "The group level: the subjects that are done; those that failed are named as missing."
    command = [*launch.lines("group", gpu=False), places]
    jobs.append(Job("group", about, few, command, partition=asked.group_partition))
    before = [None, *(job.name for job in jobs)]
    return [Step(job, after) for job, after in zip(jobs, before, strict=False)]


def write_chain(steps: Sequence[Step], site: Site, prefix: str, folder: Path) -> Path:
    """Write the scripts of a chain into a folder, beside which SLURM puts the tasks' logs.

    Returns
    -------
    Path
        The script that submits them.
    """
    for step in steps:
        write_text(folder / f"{step.job.name}.sh", batch_script(step.job, site, prefix, folder))
    submit = folder / "submit.sh"
    write_text(submit, submit_script(steps))
    return submit
