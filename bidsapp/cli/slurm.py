"""The subcommand ``slurm``: both levels as jobs of a SLURM cluster, one task per subject."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bidsapp.cli.bids_app import app, make_config
from bidsapp.cli.forwarding import given, parse_run, recipe_file, written_again
from bidsapp.cli.help import Command, GroupedOption
from bidsapp.cli.options import run_options
from bidsapp.cli.types import MEMORY, Parsed, PathOf, text
from bidsapp.errors import AppError, ExitCode
from bidsapp.slurm.directives import in_place_of
from bidsapp.slurm.resources import asks_for_gpu, is_time, most_shards

if TYPE_CHECKING:
    from bidsapp.config import RunConfig
    from bidsapp.planning.check import CheckedRun
    from bidsapp.planning.estimate import ResourceEstimate
    from bidsapp.slurm.chain import Launch


LOG = logging.getLogger("bidsapp")


_TIME = text("time", is_time, "is not a time limit: minutes, HH:MM:SS, or D-HH:MM:SS")
#: A name in a batch script's header: it must not end the line or the word.
_WORD = text("text", re.compile(r"[\w.,:=+@/-]+").fullmatch, "is not a single word")
_GPUS = text("gpus", re.compile(r"([\w.-]+:)?[1-9][0-9]*").fullmatch, "is not [TYPE:]N with N from 1")
_LINE = text("line", str.isprintable, "is not one line; repeat the option for each line")


def _directive(value: str) -> str:
    """Check an option of sbatch's, as it would follow ``#SBATCH``."""
    stripped = value.strip()
    if not stripped.startswith("-") or not stripped.isprintable():
        raise ValueError(
            f"{value!r} is not an option of sbatch's; write for example --sbatch=--constraint=a100"
        )
    if instead := in_place_of(stripped):
        raise ValueError(f"{stripped}: {instead}")
    return stripped


class _Command(Command):
    """Shows where an option of the run belongs that was written among this command's own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; an unknown option that the app has gets a hint."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if any(error.option_name in p.opts for p in app.params):
                raise click.UsageError(
                    f"{error.option_name} is an option of the run: write it after --, as in "
                    f"'slurm BIDS_DIR OUTPUT_DIR --partition NAME -- {error.option_name} ...'.",
                    ctx,
                ) from error
            raise


def _option(
    *flags: str, group: str = "Jobs", **about: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(*flags, cls=GroupedOption, group=group, **about)


@click.command(
    "slurm",
    cls=_Command,
    options_metavar="[OPTIONS]",
    examples=[
        "bidsapp-recon slurm BIDS_DIR OUTPUT_DIR --partition gpu --gpus 1 --time 1-0 -- --roi V1 hV4",
        "bidsapp-recon slurm BIDS_DIR OUTPUT_DIR --sif app.sif --shards 8 --submit",
    ],
)
@click.argument("bids_dir", type=PathOf())
@click.argument("output_dir", type=PathOf())
@click.argument("run_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS OF THE RUN]")
@_option("--submit", is_flag=True, help="Submit the jobs. Without it, only the scripts are written.")
@_option(
    "--shards", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
    help="Split stage 2 of each subject into N tasks.",
)  # fmt: skip
@_option("--max-concurrent", type=click.IntRange(min=1), metavar="N", help="Most tasks at a time.")
@_option(
    "--job-name", type=_WORD, default="bidsapp-recon", show_default=True, help="Start of the jobs' names."
)
@_option("--partition", type=_WORD, group="Cluster", help="Partition.")
@_option(
    "--group-partition",
    type=_WORD,
    group="Cluster",
    help="Partition of the group job.  [default: --partition]",
)
@_option("--account", type=_WORD, group="Cluster", help="Account to charge.")
@_option("--qos", type=_WORD, group="Cluster", help="Quality of service.")
@_option(
    "--sbatch",
    type=Parsed("option", _directive),
    group="Cluster",
    multiple=True,
    help="Further option of sbatch's (repeatable).",
)
@_option(
    "--time", type=_TIME, group="Resources of a task",
    help="Time limit.  [default: 3 times the estimate + 15 min]",
)  # fmt: skip
@_option(
    "--mem", type=MEMORY, group="Resources of a task",
    help="Memory (24GB).  [default: 1.25 times the estimate]",
)  # fmt: skip
@_option(
    "--cpus", type=click.IntRange(min=1), group="Resources of a task", default=4, show_default=True,
    metavar="N", help="CPUs.",
)  # fmt: skip
@_option(
    "--gpus", type=_GPUS, group="Resources of a task", metavar="[TYPE:]N",
    help="GPUs: 1, a100:1. The app uses one.",
)  # fmt: skip
@_option("--gres", type=_WORD, group="Resources of a task", help="Generic resources, in place of --gpus.")
@_option(
    "--sif", type=PathOf(dir_okay=False), group="Environment", metavar="FILE",
    help="Apptainer image to run in.  [default: this installation]",
)  # fmt: skip
@_option(
    "--bind", type=PathOf(exists=True), group="Environment", multiple=True, metavar="DIR",
    help="Further folder to bind into the container (repeatable).",
)  # fmt: skip
@_option(
    "--setup", type=_LINE, group="Environment", multiple=True,
    help="Line of bash before the app, such as 'module load apptainer' (repeatable).",
)  # fmt: skip
@run_options("verbose")
def slurm(**options: Any) -> int:
    """Write the batch scripts of both levels, one task per subject, and submit them with --submit.

    The input is checked first, as with --dry-run, whose estimates give time and memory. Options of the run
    follow after --, such as '-- --recipe embedded --participant-label 01 02 -w /scratch/work'. The group job
    starts when all tasks have ended, with the subjects that succeeded.

    Scripts and logs are in OUTPUT_DIR/logs/slurm.
    """
    if options["gpus"] and options["gres"]:
        raise click.UsageError("--gpus and --gres are alternatives: give one of them.")
    if options["submit"] and not shutil.which("sbatch"):
        raise AppError(
            "--submit: sbatch was not found. Run this where jobs are submitted (a login node), or omit "
            "--submit and run the script that is written on such a node.",
            exit_code=ExitCode.USAGE,
        )
    from bidsapp.slurm.chain import Requested, Run, chain, write_chain
    from bidsapp.slurm.scripts import Site
    from bidsapp.system.logging import new_run_id, set_up_logging

    set_up_logging(options["verbose"])
    bids_dir, output_dir = (Path(os.path.abspath(options[name])) for name in ("bids_dir", "output_dir"))
    run = parse_run(bids_dir, output_dir, options["run_options"])
    gres = f"gpu:{options['gpus']}" if options["gpus"] else options["gres"]
    _refuse_misplaced(run, gpu=asks_for_gpu(gres), sif=options["sif"])
    settings = make_config({**run.params, "n_cpus": options["cpus"], "mem": options["mem"]})
    settings = replace(settings, work_dir=Path(os.path.abspath(settings.work_dir)))
    checked, needed = _check(settings, gpu=asks_for_gpu(gres))
    _warn_of_idle_shards(options["shards"], needed)
    steps = chain(
        Run(
            bids_dir=bids_dir,
            output_dir=output_dir,
            work_dir=settings.work_dir,
            options=_options(run, settings, gpu=asks_for_gpu(gres)),
            needs=needed,
            shards=options["shards"],
            first_options=[["--force", stage] for stage in settings.force],
        ),
        _launch(run, settings, checked, options),
        Requested(options["cpus"], options["time"], options["mem"], gres, options["group_partition"]),
    )
    site = Site(
        partition=options["partition"],
        account=options["account"],
        qos=options["qos"],
        directives=options["sbatch"],
        setup=options["setup"],
        at_once=options["max_concurrent"],
    )
    folder = output_dir / "logs" / "slurm" / new_run_id()
    submit = write_chain(steps, site, options["job_name"], folder)
    click.echo(f"{folder}: written for {len(needed)} subject{'s' if len(needed) > 1 else ''}")
    for step in steps:
        click.echo(f"  {step}")
    click.echo(_submit(submit) if options["submit"] else f"Submit with: bash {shlex.quote(str(submit))}")
    return ExitCode.OK


def _warn_of_idle_shards(shards: int, needed: dict[str, ResourceEstimate]) -> None:
    if 0 < (most := most_shards(needed.values())) < shards:
        LOG.warning(
            "--shards %d: stage 2 has at most %d blocks of images per subject; further tasks have nothing "
            "to do", shards, most,
        )  # fmt: skip


def _refuse_misplaced(run: click.Context, *, gpu: bool, sif: Path | None) -> None:
    """Refuse options of the run that the scripts set themselves (click.UsageError)."""
    for name, instead in (
        ("n_cpus", "give --cpus before the --; every task runs with that many"),
        ("mem", "give --mem before the --; each task requests it and stays under it"),
        ("prepare", "give --shards before the --; the tasks get what they need"),
        ("shard", "give --shards before the --; the tasks get what they need"),
    ):
        in_file = run.get_parameter_source(name) == click.core.ParameterSource.DEFAULT_MAP
        if given(run, name) and not (in_file and name in ("n_cpus", "mem")):  # a run.toml has these two
            raise click.UsageError(f"--{name.replace('_', '-')} after --: {instead}.")
    if run.params["device"] == "cuda" and not gpu:
        raise click.UsageError("--device cuda: ask for a GPU too (--gpus 1, before the --).")
    if sif is None and os.environ.get("BIDSAPP_RECON_CONTAINER"):
        raise click.UsageError(
            "This runs in a container, which nodes cannot start from inside: give --sif, the image's path on "
            "the cluster."
        )
    if sif is not None and not sif.is_file() and not os.environ.get("BIDSAPP_RECON_CONTAINER"):
        raise AppError(f"--sif {sif}: the file does not exist.", exit_code=ExitCode.NO_INPUT, path=sif)


def _check(settings: RunConfig, *, gpu: bool) -> tuple[CheckedRun, dict[str, ResourceEstimate]]:
    """Check the input as ``--dry-run`` does, and estimate for the device of the nodes."""
    from bidsapp.planning.check import check_run
    from bidsapp.planning.estimate import estimate_resources

    if not gpu:
        # Nodes on which no GPU is requested have none, even if this machine does.
        here = replace(settings, device="cpu" if settings.device == "auto" else settings.device)
        checked = check_run(here)
        return checked, {label: subject.estimate for label, subject in checked.subjects.items()}
    checked = check_run(replace(settings, device="cpu", dtype="auto", memory=None))
    there = replace(settings, device="cuda")
    return checked, {
        label: estimate_resources(there, subject.sizes) for label, subject in checked.subjects.items()
    }


def _options(run: click.Context, settings: RunConfig, *, gpu: bool) -> list[list[str]]:
    """Give the run's options for every task."""
    lines = written_again(run, leave_out=("participant_label", "models_dir", "force", "n_cpus", "mem"))
    if (folder := _models_dir(run, settings)) is not None:
        lines.append(["--models-dir", str(folder)])
    if gpu and settings.device == "auto":
        lines.append(["--device", "cuda"])  # a task without its GPU must fail, not run for weeks
    return lines


def _models_dir(run: click.Context, settings: RunConfig) -> Path | None:
    """Give the folder of the weights; None if they are in the package or the image."""
    from bidsapp.models.weights.registry import default_models_dir

    typed = run.get_parameter_source("models_dir") == click.core.ParameterSource.COMMANDLINE
    if os.environ.get("BIDSAPP_RECON_CONTAINER") and not typed:
        return None  # the image's own /models
    if settings.models_dir is not None:
        return Path(os.path.abspath(settings.models_dir))
    return None if settings.recipe.models.location == "package" else default_models_dir().absolute()


def _launch(run: click.Context, settings: RunConfig, checked: CheckedRun, options: dict[str, Any]) -> Launch:
    """Describe how the app starts on a node, and what it has to see there."""
    from bidsapp.slurm.binds import binds, linked_to
    from bidsapp.slurm.chain import Launch

    if options["sif"] is None:
        return Launch(sys.executable)
    read = [settings.bids_dir, checked.dataset.root, checked.stimuli.folder.parent, *options["bind"]]
    read += [settings.captions, settings.filters, recipe_file(settings.recipe_given), settings.split_file]
    read += [_models_dir(run, settings), *settings.derivatives.values()]
    folders = [Path(os.path.abspath(path)) for path in read if path is not None]
    # {subject} in a split's path: the folder above the first part that depends on it.
    folders = [next(p for p in (f, *f.parents) if "{subject}" not in str(p)) for f in folders]
    for dataset in (settings.bids_dir, checked.dataset.root, *settings.derivatives.values()):
        folders += linked_to(Path(os.path.abspath(dataset)))
    masks = [path for subject in checked.dataset.subjects for path in subject.masks.values()]
    folders += [Path(os.path.abspath(path)).parent for path in masks]
    found = binds(folders, [Path(os.path.abspath(settings.output_dir)), settings.work_dir])
    return Launch(sys.executable, Path(os.path.abspath(options["sif"])), tuple(found))


def _submit(script: Path) -> str:
    """Submit the jobs, and give sbatch's output (AppError, exit code 75, if it refuses)."""
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise AppError(
            f"SLURM refused the jobs: {(done.stderr or done.stdout).strip()}\n"
            f"Submitted before that: {done.stdout.strip() or 'nothing'}. Fix it (partition, account, "
            f"limits) and run this again; the scripts are in {script.parent}.",
            exit_code=ExitCode.TRY_AGAIN,
        )
    return done.stdout.strip()
