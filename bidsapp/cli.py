"""The command ``bidsapp-recon``: the BIDS App's positionals, and helper verbs under the same name.

Nothing heavy is imported before the arguments are understood.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from bidsapp import __version__
from bidsapp.errors import AppError, ExitCode

LEVELS = ("participant", "group")
#: Options that take one or more values, as BIDS Apps have them.
_LISTS = ("--participant-label", "--session-label", "--roi")
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


def available_cpus() -> int:
    """CPUs this process may use: SLURM's allocation or the affinity, never the machine's count."""
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isdigit() and int(slurm) > 0:
        return int(slurm)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
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
        click.option("-v", "--verbose", count=True, help="Say more (-vv: debugging lines, tracebacks)."),
    ):
        command = option(command)
    return command


_models_dir = click.option(
    "--models-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="BIDSAPP_RECON_MODELS",
    show_envvar=True,
    help="Folder of downloaded model weights.  [default: bidsapp-recon/models in the user's cache]",
)


@click.command(
    "bidsapp-recon",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Verbs: 'bidsapp-recon demo DIR' simulates a dataset and runs everything on it, "
    "'bidsapp-recon fetch-models' downloads a recipe's weights ('bidsapp-recon VERB --help'). A BIDS_DIR "
    "that is called like a verb is reached as ./demo.",
)
@click.argument("bids_dir", type=click.Path(path_type=Path))
@click.argument("output_dir", type=click.Path(path_type=Path))
@click.argument("analysis_level", metavar="{participant|group}")
@click.option(
    "--participant-label", multiple=True, metavar="LABEL...", help="Subjects, with or without 'sub-'."
)
@click.option("--session-label", multiple=True, metavar="LABEL...", help="Sessions, with or without 'ses-'.")
@click.option("--task-label", help="Task, where the betas have several.")
@click.option("--space", help="Space, where the betas have several.")
@click.option(
    "--bids-filter-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="JSON that names the input files.",
)
@click.option(
    "-w",
    "--work-dir",
    type=click.Path(path_type=Path),
    help="Intermediate files.  [default: OUTPUT_DIR/.work]",
)
@click.option("--mem", type=Memory(), help="Memory to stay under, with its unit (8GB, 900MiB).")
@click.option(
    "--recipe",
    help="Name of a recipe, or a TOML file.  [default: brain-diffuser; embedded on a simulated dataset]",
)
@_models_dir
@click.option(
    "--roi", multiple=True, default=("nsdgeneral",), show_default=True, metavar="NAME...",
    help="Masks or segmentation labels whose voxels are decoded (their union).",
)  # fmt: skip
@click.option(
    "--split", type=click.Path(path_type=Path, dir_okay=False), help="Train and test stimuli: TSV or JSON."
)
@click.option("--skip-bids-validation", is_flag=True, help="Do not run the BIDS validator on the input.")
@click.option("--dry-run", is_flag=True, help="Check everything, print the plan, compute nothing.")
@click.option("--stop-on-first-crash", is_flag=True, help="Stop when a subject fails.")
@_common
@click.version_option(__version__, prog_name="bidsapp-recon")
def app(**options: Any) -> int:
    """Reconstruct the images a person saw from their fMRI responses.

    BIDS_DIR is a BIDS derivative dataset of single-trial betas, OUTPUT_DIR the dataset to write.
    The participant level makes images, scores and a report for every subject; the group level
    gathers the subjects that are done.
    """
    level = options["analysis_level"]
    if level not in LEVELS:
        raise AppError(
            f"Unknown analysis level {level!r}: choose participant or group.",
            exit_code=ExitCode.UNKNOWN_LEVEL,
        )
    _prepare(options)
    if level == "group":
        from bidsapp.group import run_group

        outcome = run_group(
            options["output_dir"],
            participants=options["participant_label"] or None,
            command=_command_line(),
            dry_run=options["dry_run"],
        )
        labels = ", ".join(f"sub-{label}" for label in outcome.subjects)
        click.echo(f"{len(outcome.subjects)} subjects ({labels}): {outcome.report}")
        return ExitCode.OK
    config = make_config(options)
    from bidsapp.levels import plan, run_participants

    if not options["skip_bids_validation"]:
        from bidsapp.bids.validator import validate_input

        validate_input(config.bids_dir)
    if options["dry_run"]:
        click.echo(plan(config).describe(config))
        return ExitCode.OK
    code, _ = run_participants(config)
    return code


@click.command("demo", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option("--simulate-only", is_flag=True, help="Write DIR/bids and stop.")
@click.option("--n-subjects", type=click.IntRange(min=1, max=8), default=2, show_default=True)
@click.option(
    "--n-train", type=click.IntRange(min=20), default=1000, show_default=True, help="Training images each."
)
@click.option(
    "--n-test", type=click.IntRange(min=5), default=100, show_default=True, help="Shared test images."
)
@_common
def demo(**options: Any) -> int:
    """Simulate a dataset in DIR/bids, reconstruct it into DIR/out, and show the scores.

    Subjects look at drawn scenes; an encoding model that the decoder does not know gives their
    responses, with noise as in NSD. Both levels run with the embedded recipe.
    """
    _prepare(options)
    from bidsapp.demo.run import run_demo

    return run_demo(
        options["folder"],
        seed=options["seed"],
        n_subjects=options["n_subjects"],
        n_train=options["n_train"],
        n_test=options["n_test"],
        simulate_only=options["simulate_only"],
        device=options["device"],
        n_cpus=options["n_cpus"],
        verbose=options["verbose"],
        command=_command_line(),
    )


@click.command("fetch-models", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--recipe", default="brain-diffuser", show_default=True, help="Its name, or a TOML file.")
@_models_dir
@click.option("-v", "--verbose", count=True, help="Say more (-vv: debugging lines, tracebacks).")
def fetch_models(recipe: str, models_dir: Path | None, verbose: int) -> int:
    """Download the weights that a recipe needs, and verify those that are there.

    Run it again after an interruption: it goes on where it stopped. Hashes are recorded in
    weights.lock.json in the folder, and verified at every run.
    """
    from bidsapp.levels import fetch_weights
    from bidsapp.runlog import set_up_logging

    set_up_logging(verbose)
    folder, fetched = fetch_weights(recipe, models_dir, click.echo)
    click.echo(f"{folder}: complete, {fetched} files fetched now")
    return ExitCode.OK


VERBS: dict[str, click.Command] = {"demo": demo, "fetch-models": fetch_models}


def make_config(options: dict[str, Any]) -> Any:
    """Make the run's frozen settings from the command line's options."""
    from bidsapp.config import RunConfig, load_recipe

    recipe = options["recipe"] or default_recipe(options["bids_dir"])
    return RunConfig(
        bids_dir=options["bids_dir"],
        output_dir=options["output_dir"],
        work_dir=options["work_dir"] or options["output_dir"] / ".work",
        recipe=load_recipe(recipe),
        recipe_given=recipe,
        participants=options["participant_label"],
        sessions=options["session_label"],
        task=options["task_label"],
        space=options["space"],
        filters=options["bids_filter_file"],
        roi=options["roi"],
        split_file=options["split"],
        models_dir=options["models_dir"],
        device=options["device"],
        n_cpus=options["n_cpus"],
        memory=options["mem"],
        seed=options["seed"],
        skip_bids_validation=options["skip_bids_validation"],
        stop_on_first_crash=options["stop_on_first_crash"],
        verbose=options["verbose"],
        command=_command_line(),
    )


def default_recipe(bids_dir: Path) -> str:
    """Choose the paper's recipe, or the embedded one for a dataset that the verb ``demo`` simulated."""
    import json

    try:
        description = json.loads((bids_dir / "dataset_description.json").read_text(encoding="utf-8"))
        simulated = description["GeneratedBy"][0]["Name"] == "bidsapp-recon demo"
    except (OSError, ValueError, LookupError, TypeError):
        simulated = False  # whatever is wrong with it is said when the dataset is opened
    return "embedded" if simulated else "brain-diffuser"


def _prepare(options: dict[str, Any]) -> None:
    """Set up logging and thread counts, before numpy and torch are imported."""
    from bidsapp.runlog import set_up_logging

    set_up_logging(options["verbose"])
    options["n_cpus"] = options["n_cpus"] or available_cpus()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(options["n_cpus"])


def _command_line() -> str:
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
    short = sum(isinstance(p, click.Argument) for p in command.params)
    short -= sum(not is_option for is_option, _ in groups)
    lists = [g for is_option, g in groups if is_option and g[0] in _LISTS and len(g) - 2 >= short > 0]
    givers = [g for g in lists if g[-1] in LEVELS] or lists
    options: list[str] = []
    positionals: list[str] = []
    for is_option, group in groups:
        if not is_option:
            positionals += group
        elif group[0] not in _LISTS:
            options += group
        else:
            values = group[1:]
            if givers and group is givers[-1]:
                positionals += values[-short:]
                values = values[:-short]
            options += [word for value in values for word in (group[0], value)]
    return [*options, "--", *positionals] if positionals else options


def _groups(words: list[str], command: click.Command) -> Iterator[tuple[bool, list[str]]]:
    """Split a command line into options with their values (True) and lone positionals (False)."""
    options = [p for p in command.params if isinstance(p, click.Option)]
    takes_value = {name for o in options if not (o.is_flag or o.count) for name in o.opts}
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
        if not complete and (not words or (name in _LISTS and words[0].startswith("-"))):
            raise click.UsageError(f"Option {name!r} requires an argument.")
        if not complete:
            group.append(words.pop(0))
        while not complete and name in _LISTS and words and not words[0].startswith("-"):
            group.append(words.pop(0))
        yield True, group


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; every error becomes a message and a documented exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = app
    if words and words[0] in VERBS:
        command = VERBS[words.pop(0)]
    try:
        result = command.main(args=normalise(words, command), prog_name=_name(command), standalone_mode=False)
        return int(result or 0)
    except click.exceptions.Exit as stop:
        return int(stop.exit_code)
    except click.ClickException as error:
        error.show()
        return int(ExitCode.USAGE)
    except click.Abort:
        click.echo("Stopped. Run the same command again to go on.", err=True)
        return 130
    except Exception as error:
        message, code = _explain(error)
        if _wants_traceback(words):
            traceback.print_exception(error)
        click.echo(f"Error: {message}", err=True)
        return int(code)


def _explain(error: Exception) -> tuple[str, ExitCode]:
    """Word an error for the user, and choose its exit code."""
    if isinstance(error, AppError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}. Run again with -vv for a traceback.", ExitCode.IO_ERROR
    what = f"{type(error).__name__}: {error}. This should not happen: please report it, with the"
    return f"{what} output of the same command and -vv.", ExitCode.INTERNAL


def _wants_traceback(words: Sequence[str]) -> bool:
    return sum(w.count("v") for w in words if re.fullmatch("-v+", w)) + list(words).count("--verbose") > 1


def _name(command: click.Command) -> str:
    return "bidsapp-recon" if command is app else f"bidsapp-recon {command.name}"


def entry() -> None:
    """Console script."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
