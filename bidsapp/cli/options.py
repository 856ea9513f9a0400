"""What the command line's words mean: shared options, amounts of memory, and lists as BIDS Apps have them."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from bidsapp.config import STAGES
from bidsapp.system.resources import available_cpus

LEVELS = ("participant", "group")
#: Options that take one or more values, as BIDS Apps have them.
LISTS = ("--participant-label", "--session-label", "--roi", "--captions", "--derivatives", "-d")
_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


class Memory(click.ParamType[int]):
    """An amount of memory with its unit, in bytes: ``8GB``, ``7.5GiB``, ``900M``."""

    name = "amount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse; a bare number is refused, because MB and GB are both customary."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT])(i?)B?\s*", str(value), re.IGNORECASE)
        if not match:
            self.fail(
                f"{value!r} has no unit that is known here; write for example 8GB or 900MiB", param, ctx
            )
        base = 1024 if match[3] else 1000
        return int(float(match[1]) * base ** _UNITS[match[2].upper()])


class Percent(click.ParamType[float]):
    """A share in percent, 0 to 100, with or without the sign."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse; ``nan`` is refused, which a range by comparison would let through."""
        try:
            number = float(str(value).strip().removesuffix("%"))
        except ValueError:
            number = -1.0
        if not 0 <= number <= 100:
            self.fail(f"{value!r} is no number from 0 to 100", param, ctx)
        return number


class Shard(click.ParamType[tuple[int, int]]):
    """A share of the work: ``K/N``, K from 1 to N."""

    name = "K/N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Parse."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", str(value), re.ASCII)
        k, n = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= k <= n:
            self.fail(f"{value!r} is not K/N with K from 1 to N; write for example 2/8", param, ctx)
        return k, n


class NamedFolder(click.ParamType[tuple[str, Path]]):
    """A dataset and what it is called here: ``NAME=PATH``, or ``PATH`` whose last folder names it."""

    name = "dataset"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Path]:
        """Parse; the name becomes part of BIDS URIs, and must not be one that the app uses itself."""
        if isinstance(value, tuple):
            return value
        name, equals, path = str(value).partition("=")
        if not equals:
            name, path = Path(value).absolute().name, str(value)
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or not path:
            self.fail(f"{value!r} is not NAME=PATH, with a name of letters, digits, - _ and .", param, ctx)
        if name in ("source", "input"):
            self.fail(f"the name {name!r} is taken; choose another for {path}", param, ctx)
        return name, Path(path)


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that both the app and its verbs have."""
    for option in (
        click.option(
            "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the whole run."
        ),
        click.option(
            "--n-cpus", type=click.IntRange(min=1), help="CPUs to use.  [default: those this process may use]"
        ),
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda", "mps"]),
            default="auto",
            show_default=True,
            help="Where the networks run.",
        ),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
            default="auto",
            show_default=True,
            help="Number format of the networks; auto: float16 on CUDA, float32 elsewhere.",
        ),
        click.option("-v", "--verbose", count=True, help="Say more (-vv: debugging lines, tracebacks)."),
    ):
        command = option(command)
    return command


def further_analyses(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of the participant level that add analyses to a run, and change nothing else of it."""
    for option in (
        click.option(
            "--roi-analysis",
            is_flag=True,
            help="Also decode regions one at a time: those of --roi where it names several, else all "
            "inside of it.",
        ),
        click.option(
            "--cluster-holdout",
            is_flag=True,
            help="Also predict test images without the training images of their cluster.",
        ),
        click.option(
            "--generator-seeds",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            metavar="N",
            help="Make the ladder's images from the brain under N seeds, to tell how far scores move.",
        ),
    ):
        command = option(command)
    return command


def part_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of the participant level that do a part of a run."""
    for option in (
        click.option(
            "--shard",
            type=Shard(),
            help="Make the K-th of N shares of stage 2 and stop; the command without it gathers them.",
        ),
        click.option("--prepare", is_flag=True, help="Do all that comes before stage 2 and stop."),
    ):
        command = option(command)
    return command


def check_parts(options: Mapping[str, Any]) -> None:
    """Refuse options that do not go with ``--shard`` and ``--prepare`` (click.UsageError)."""
    given = [f"--{name}" for name in ("prepare", "shard") if options[name]]
    if given and options["analysis_level"] != "participant":
        raise click.UsageError(f"{given[0]} is for the participant level only.")
    if len(given) > 1:
        raise click.UsageError("--prepare and --shard are two steps; give one of them.")
    if options["shard"] and options["force"]:
        raise click.UsageError("--force does not go with --shard; give it to --prepare, before the shards.")


def work_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of the participant level about what earlier runs left."""
    for option in (
        click.option(
            "--force",
            type=click.Choice([*STAGES, "all"]),
            multiple=True,
            metavar="STAGE",
            help=f"Compute a stage again though it is there: {', '.join(STAGES)}, or all (repeatable).",
        ),
        click.option("--keep-work", is_flag=True, help="Keep the stages of subjects that are done."),
    ):
        command = option(command)
    return command


models_dir_option = click.option(
    "--models-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="BIDSAPP_RECON_MODELS",
    show_envvar=True,
    help="Folder of downloaded model weights.  [default: bidsapp-recon/models in the user's cache]",
)


def prepare(options: dict[str, Any]) -> None:
    """Set up logging and thread counts, before numpy and torch are imported."""
    from bidsapp.system.logging import set_up_logging

    set_up_logging(options["verbose"])
    options["n_cpus"] = options["n_cpus"] or available_cpus()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(options["n_cpus"])


def command_line() -> str:
    """Give the command as typed, quoted for a shell."""
    return shlex.join(["bidsapp-recon", *sys.argv[1:]])


def normalise(argv: Sequence[str], command: click.Command) -> list[str]:
    """Accept ``_`` for ``-`` in options, and several values after ``--participant-label``.

    As in other BIDS Apps, ``--participant-label 01 02`` names two subjects. Where the positionals
    follow such a list, as many words as they need are left to them: those that end in an analysis
    level, else those of the last list that has enough.

    Raises
    ------
    click.UsageError
        For an option at the end that lacks its value.
    """
    groups = list(_groups(list(argv), command))
    multiple = _lists(command)
    short = sum(isinstance(p, click.Argument) for p in command.params)
    short -= sum(not is_option for is_option, _ in groups)
    lists = [g for is_option, g in groups if is_option and g[0] in multiple and len(g) - 2 >= short > 0]
    givers = [g for g in lists if g[-1] in LEVELS] or lists
    options: list[str] = []
    positionals: list[str] = []
    for is_option, group in groups:
        if not is_option:
            positionals += group
        elif group[0] not in multiple:
            options += group
        else:
            values = group[1:]
            if givers and group is givers[-1]:
                positionals += values[-short:]
                values = values[:-short]
            options += [word for value in values for word in (group[0], value)]
    return [*options, "--", *positionals] if positionals else options


def _lists(command: click.Command) -> set[str]:
    """Options of a command that take several values: of one name, another verb's may take one."""
    options = [p for p in command.params if isinstance(p, click.Option) and p.multiple]
    return {name for option in options for name in option.opts}.intersection(LISTS)


def _groups(words: list[str], command: click.Command) -> Iterator[tuple[bool, list[str]]]:
    """Split a command line into options with their values (True) and lone positionals (False)."""
    options = [p for p in command.params if isinstance(p, click.Option)]
    takes_value = {name for o in options if not (o.is_flag or o.count) for name in o.opts}
    multiple = _lists(command)
    flags = {"-h", *(name for o in options if o.is_flag or o.count for name in o.opts)}
    while words:
        word = words.pop(0)
        if word == "--":
            yield from ((False, [w]) for w in words)
            return
        if not word.startswith("-") or word == "-":
            yield False, [word]
            continue
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            name = name.replace("_", "-")
            complete = bool(equals) or name not in takes_value
            group = [name + equals + value]
        else:
            # In -vwDIR the letters up to the first that takes a value are flags.
            letters = word[1:]
            while letters and f"-{letters[0]}" in flags:
                letters = letters[1:]
            name, group, complete = word, [word], f"-{letters}" not in takes_value
        if not complete and (not words or (name in multiple and words[0].startswith("-"))):
            raise click.UsageError(f"Option {name!r} requires an argument.")
        if not complete:
            group.append(words.pop(0))
        while not complete and name in multiple and words and not words[0].startswith("-"):
            group.append(words.pop(0))
        yield True, group
