"""The text of batch scripts: bash that a person can read, with everything quoted that comes from outside."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bidsapp.errors import AppError, ExitCode
from bidsapp.slurm.directives import chooses_nodes
from bidsapp.slurm.resources import Resources

#: SIGTERM a minute before the time limit and, where the site has it so, before a preemption. It goes to the
#: batch shell ("B:"), which ``exec`` has made the app.
SIGNAL = "B:TERM@60"


class Expression(str):
    """A word that bash expands between double quotes: the app's own, never a user's."""

    __slots__ = ()


Line = Sequence[str]


@dataclass(frozen=True)
class Site:
    """What the cluster and its users agree on, the same for all jobs.

    Attributes
    ----------
    partition, account, qos : str or None
    directives : tuple of str
        Further sbatch options, ``--constraint=a100``.
    setup : tuple of str
        Lines of bash that run before the app (``module load apptainer``), as they are.
    at_once : int or None
        Most tasks of an array that run at the same time.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    directives: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    at_once: int | None = None


@dataclass(frozen=True)
class Job:
    """One job: what it is for, what it asks for, and what it runs.

    Attributes
    ----------
    name : str
        Of the script, of the logs and, after the prefix, of the job.
    about : str
        A line for people.
    resources : Resources
    command : sequence of lines
        The words of the command, as they are to be set in lines.
    subjects : tuple of str
        Labels, a task each; none for a job that is no array.
    shards : int
        Tasks of each subject.
    folders : tuple of Path
        To be made before the command runs.
    partition : str or None
        In place of the site's.
    """

    name: str
    about: str
    resources: Resources
    command: Sequence[Line]
    subjects: tuple[str, ...] = ()
    shards: int = 1
    folders: tuple[Path, ...] = ()
    partition: str | None = None

    @property
    def n_tasks(self) -> int:
        """Tasks of the array; 0 for a job that is none."""
        return len(self.subjects) * self.shards


def batch_script(job: Job, site: Site, prefix: str, logs: Path) -> str:
    """Write a job's batch script.

    Parameters
    ----------
    job : Job
    site : Site
    prefix : str
        Begins the job's name.
    logs : Path
        Folder of the log files, a file a task.
    """
    lines = ["#!/usr/bin/env bash", f"# {job.about}", *_directives(job, site, prefix, logs)]
    lines += ["set -euo pipefail", ""]
    if site.setup:
        # Modules and profiles of many sites use variables that are not set.
        lines += ["set +u", *site.setup, "set -u", ""]
    if job.subjects:
        lines.append(f"subjects=({' '.join(shlex.quote(s) for s in job.subjects)})")
        if job.shards > 1:
            lines.append(f"subject=${{subjects[SLURM_ARRAY_TASK_ID / {job.shards}]}}")
            lines.append(f"shard=$((SLURM_ARRAY_TASK_ID % {job.shards} + 1))/{job.shards}")
        else:
            lines.append("subject=${subjects[SLURM_ARRAY_TASK_ID]}")
    if job.folders:
        lines.append("mkdir -p " + " ".join(shlex.quote(str(f)) for f in job.folders))
    lines += ["", "# exec: SLURM's signals reach the app itself, which ends cleanly and can go on later."]
    words = [" ".join(map(_word, line)) for line in job.command if line]
    lines.append("exec " + " \\\n  ".join(words))
    return "\n".join(lines) + "\n"


def _word(word: str) -> str:
    return f'"{word}"' if isinstance(word, Expression) else shlex.quote(word)


def _directives(job: Job, site: Site, prefix: str, logs: Path) -> list[str]:
    asked = job.resources
    lines = [f"--job-name={prefix}-{job.name}"]
    if job.n_tasks:
        limit = f"%{site.at_once}" if site.at_once else ""
        lines.append(f"--array=0-{job.n_tasks - 1}{limit}")
    log = f"{job.name}-%A_%a.log" if job.n_tasks else f"{job.name}-%j.log"
    named = {
        "partition": job.partition or site.partition,
        "account": site.account,
        "qos": site.qos,
        "gres": asked.gres,
    }
    lines += [f"--{name}={value}" for name, value in named.items() if value]
    lines += ["--nodes=1", "--ntasks=1", f"--cpus-per-task={asked.cpus}", f"--mem={asked.memory}M"]
    lines += [f"--time={asked.time}", f"--output={_output(logs, log)}"]
    # A task that is preempted, or whose node fails, goes back into the queue and adds to its log.
    lines += ["--open-mode=append", "--requeue", f"--signal={SIGNAL}", *_further(job, site)]
    return [f"#SBATCH {line}" for line in lines]


def _further(job: Job, site: Site) -> list[str]:
    """Give the user's own options; a partition of the job's own need not have the nodes that they choose."""
    return [d for d in site.directives if job.partition is None or not chooses_nodes(d)]


def _output(folder: Path, name: str) -> str:
    """Write the pattern of log files as sbatch reads it: ``%`` doubled, quoted where there are blanks.

    Raises
    ------
    AppError
        Exit code 64 for a folder that a directive cannot express.
    """
    text = str(folder)
    if "\\" in text or not text.isprintable():
        raise AppError(
            f"{text!r}: sbatch cannot write logs where a path has backslashes or line ends. Choose another "
            "output folder.",
            exit_code=ExitCode.USAGE,
        )
    pattern = f"{text.replace('%', '%%')}/{name}"
    if any(c in pattern for c in " \"'#"):
        quoted = pattern.replace('"', '\\"')
        return f'"{quoted}"'
    return pattern


@dataclass(frozen=True)
class Step:
    """A job in a chain, and the one that it waits for."""

    job: Job
    after: str | None = None

    def __str__(self) -> str:
        asks, n = self.job.resources, self.job.n_tasks
        tasks = f"{n} task{'s' if n > 1 else ''}, each with " if n else ""
        what = f"{asks.cpus} CPU{'s' if asks.cpus > 1 else ''}, {asks.memory} MiB, {asks.time}"
        more = f", {asks.gres}" if asks.gres else ""
        return f"{self.job.name}: {tasks}{what}{more}" + (f"; after {self.after}" if self.after else "")


def submit_script(chain: Sequence[Step]) -> str:
    """Write the script that submits a chain of jobs.

    A job waits until those before it have ended, however they ended (``afterany``): one subject that failed
    must not keep the others' scores from the group, which names those that are missing.
    """
    lines = [
        "#!/usr/bin/env bash",
        "# Submits the jobs beside it. Run it again to go on: what is done is not done again.",
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")"',
        "",
    ]
    for step in chain:
        name = step.job.name
        # On a site with several clusters sbatch says "id;cluster".
        after = f' --dependency=afterany:"${{{step.after}%%;*}}"' if step.after else ""
        lines.append(f"{name}=$(sbatch --parsable{after} {name}.sh)")
        lines.append(f'echo "{name}: job ${name}"')
    return "\n".join(lines) + "\n"
