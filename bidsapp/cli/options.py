"""Options of the command line, made from the settings of :class:`bidsapp.config.RunConfig`."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any

import click

from bidsapp.cli.help import GroupedOption
from bidsapp.cli.types import MEMORY, NAMED_FOLDER, PERCENT, RECIPE, SHARD, PathOf
from bidsapp.config import GROUPS, OPTIONS, Option, RunConfig
from bidsapp.system.resources import available_cpus

#: Types of options by :attr:`bidsapp.config.Option.kind`; ``number``, ``flag`` and ``count`` are click's.
KINDS: dict[str, click.ParamType[Any]] = {
    "text": click.STRING,
    "path": PathOf(),
    "file": PathOf(dir_okay=False),
    "folder": PathOf(file_okay=False),
    "memory": MEMORY,
    "percent": PERCENT,
    "recipe": RECIPE,
    "shard": SHARD,
    "dataset": NAMED_FOLDER,
}

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def run_options(*names: str) -> Decorator:
    """Give a command the options of some of a run's settings (default: all), in the order of their groups.

    Parameters
    ----------
    *names : str
        Fields of :class:`bidsapp.config.RunConfig`.
    """
    chosen = [
        n for group in GROUPS for n, o in OPTIONS.items() if o.group == group and (not names or n in names)
    ]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(chosen):
            command = _click_option(name)(command)
        return command

    return decorate


def _click_option(name: str) -> Decorator:
    option = OPTIONS[name]
    about: dict[str, Any] = {"help": option.help, "group": option.group, "cls": GroupedOption}
    default = next(f.default for f in fields(RunConfig) if f.name == name)
    if option.kind == "flag":
        return click.option(*option.flags.split(), is_flag=True, **about)
    if option.kind == "count":
        return click.option(*option.flags.split(), count=True, **about)
    if option.shown:
        about["help"] += f"  [default: {option.shown}]"
    elif default not in (None, (), MISSING):
        about |= {"default": default, "show_default": True}
    if option.envvar:
        about |= {"envvar": option.envvar, "show_envvar": True}
    metavar = option.metavar or ("N" if option.kind == "number" else None)
    return click.option(
        *option.flags.split(), type=_type(option), multiple=option.several, metavar=metavar, **about
    )


def _type(option: Option) -> click.ParamType[Any]:
    if option.choices:
        return click.Choice(option.choices)
    return click.IntRange(min=option.least) if option.kind == "number" else KINDS[option.kind]


def check_parts(options: Mapping[str, Any]) -> None:
    """Refuse combinations of options that do a part of a run (click.UsageError)."""
    names = ("prepare", "shard", "boilerplate_only", "reports_only")
    given = [f"--{name.replace('_', '-')}" for name in names if options[name]]
    if given and options["analysis_level"] != "participant":
        raise click.UsageError(f"{given[0]} is for the participant level only.")
    if len(given) > 1:
        raise click.UsageError(f"{given[0]} and {given[1]} are two steps; give one of them.")
    if options["dry_run"] and (options["boilerplate_only"] or options["reports_only"]):
        raise click.UsageError(f"{given[0]} does not go with --dry-run, which writes nothing.")
    if options["shard"] and options["force"]:
        raise click.UsageError("--force does not go with --shard; give it to --prepare, before the shards.")


#: The user's own limit: :func:`set_up` overwrites it for the libraries.
_OMP_NUM_THREADS = os.environ.get("OMP_NUM_THREADS", "")


def _default_cpus() -> int:
    """CPUs that this process may use, at most ``OMP_NUM_THREADS``."""
    limit = re.match(r"\s*([1-9][0-9]{0,5})\s*(,|$)", _OMP_NUM_THREADS)
    return min(available_cpus(), int(limit[1])) if limit else available_cpus()


def set_up(options: dict[str, Any]) -> None:
    """Set up logging and thread counts, before numpy and torch are imported."""
    from bidsapp.system.logging import set_up_logging

    set_up_logging(options["verbose"])
    options["n_cpus"] = options["n_cpus"] or _default_cpus()
    threads = min(options["n_cpus"], options.get("omp_nthreads") or options["n_cpus"])
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)


def command_line() -> str:
    """Give the command as typed, quoted for a shell."""
    return shlex.join(["bidsapp-recon", *sys.argv[1:]])
