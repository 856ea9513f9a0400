"""The text of batch scripts: readable bash in which everything from outside is quoted."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bidsapp.errors import AppError, ExitCode
from bidsapp.slurm.directives import chooses_nodes
from bidsapp.slurm.resources import Resources

#: SIGTERM a minute before the time limit and, if the site is set up so, before a preemption. It goes to the
#: batch shell ("B:"), which ``exec`` has replaced by the app.
SIGNAL = "B:TERM@60"


class Expression(str):
    """A word that bash expands between double quotes; never a user's."""

    __slots__ = ()


Line = Sequence[str]


@dataclass(frozen=True)
class Site:
    """Settings of the cluster, the same for all jobs."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    #: further sbatch options, such as ``--constraint=a100``
    directives: tuple[str, ...] = ()
    #: lines of bash that run before the app, such as ``module load apptainer``
    setup: tuple[str, ...] = ()
    #: most tasks of an array that run at the same time
    at_once: int | None = None


@dataclass(frozen=True)
class Job:
    """One job: its purpose, its resources, and its command."""

    #: of the script, of the logs and, after the prefix, of the job
    name: str
    about: str
    resources: Resources
    #: words, by line of the script
    command: Sequence[Line]
    #: labels, one task for each; empty for a job that is not an array
    subjects: tuple[str, ...] = ()
    #: tasks for each subject
    shards: int = 1
    #: created before the command runs
    folders: tuple[Path, ...] = ()
    #: replaces the site's
    partition: str | None = None

    @property
    def n_tasks(self) -> int:
        """Tasks of the array; 0 for a job that is not an array."""
        return len(self.subjects) * self.shards


def batch_script(job: Job, site: Site, prefix: str, logs: Path) -> str:
    """Write a job's batch script; ``prefix`` starts the job's name, ``logs`` is the folder of its logs."""
    lines = ["#!/usr/bin/env bash", f"# {job.about}", *_directives(job, site, prefix, logs)]
    lines += ["set -euo pipefail", ""]
    if site.setup:
        # Modules and profiles of many sites use unset variables.
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
    lines += ["", "# exec: SLURM's signals reach the app itself, which ends cleanly and can resume."]
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
    # A preempted task, or one whose node fails, goes back into the queue and appends to its log.
    lines += ["--open-mode=append", "--requeue", f"--signal={SIGNAL}", *_further(job, site)]
    return [f"#SBATCH {line}" for line in lines]


def _further(job: Job, site: Site) -> list[str]:
    """Give the user's own options; a job's own partition need not have the nodes that they choose."""
    return [d for d in site.directives if job.partition is None or not chooses_nodes(d)]


def _output(folder: Path, name: str) -> str:
    """Write the pattern of log files as sbatch reads it (AppError, exit code 64, if it cannot)."""
    text = str(folder)
    if "\\" in text or not text.isprintable():
        raise AppError(
            f"{text!r}: sbatch cannot write logs to a path with backslashes or line breaks. Choose another "
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

    A job waits until the one before it has ended, successfully or not (``afterany``): one failed subject
    must not keep the others' scores from the group level, which lists the missing ones.
    """
    lines = [
        "#!/usr/bin/env bash",
        "# Submits the jobs in this folder. Run it again to resume: finished work is not repeated.",
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")"',
        "",
    ]
    for step in chain:
        name = step.job.name
        # On a site with several clusters sbatch prints "id;cluster".
        after = f' --dependency=afterany:"${{{step.after}%%;*}}"' if step.after else ""
        lines.append(f"{name}=$(sbatch --parsable{after} {name}.sh)")
        lines.append(f'echo "{name}: job ${name}"')
    return "\n".join(lines) + "\n"
