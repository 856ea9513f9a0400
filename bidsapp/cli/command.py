"""The command ``bidsapp-recon``: the BIDS App's positionals, and helper verbs under the same name.

Nothing heavy is imported before the arguments are understood.
"""

from __future__ import annotations

import re
import shutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bidsapp import __version__
from bidsapp.cli.demo import demo
from bidsapp.cli.fetch_models import fetch_models
from bidsapp.cli.forwarding import App
from bidsapp.cli.nsd2bids import nsd2bids
from bidsapp.cli.options import (
    LEVELS,
    Memory,
    NamedFolder,
    Percent,
    check_parts,
    command_line,
    common,
    further_analyses,
    models_dir_option,
    normalise,
    part_options,
    prepare,
    work_options,
)
from bidsapp.cli.slurm import slurm
from bidsapp.errors import AppError, ExitCode, InputProblems, as_shown
from bidsapp.system.signals import AGAIN, Stopped, ending_cleanly, leave
from bidsapp.system.write_errors import cannot_write, reason


@click.command(
    "bidsapp-recon",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Verbs: 'bidsapp-recon demo DIR' simulates a dataset and runs everything on it, "
    "'bidsapp-recon fetch-models' downloads a recipe's weights, 'bidsapp-recon nsd2bids NSD_DIR BIDS_DIR' "
    "converts the Natural Scenes Dataset, 'bidsapp-recon slurm BIDS_DIR OUTPUT_DIR' runs both levels on a "
    "cluster ('bidsapp-recon VERB --help'). A BIDS_DIR that is called like a verb is reached as ./demo.",
)
@click.argument("bids_dir", type=click.Path(path_type=Path))
@click.argument("output_dir", type=click.Path(path_type=Path))
@click.argument("analysis_level", metavar="{participant|group}")
@click.option(
    "--participant-label", multiple=True, metavar="LABEL...", help="Subjects, with or without 'sub-'."
)
@click.option("--session-label", multiple=True, metavar="LABEL...", help="Sessions, with or without 'ses-'.")
@click.option(
    "--max-sessions",
    type=click.IntRange(min=1),
    metavar="N",
    help="Use the first N sessions of each subject (37: the paper's on NSD).",
)
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
@models_dir_option
@click.option(
    "--roi", multiple=True, default=("nsdgeneral",), show_default=True, metavar="NAME...",
    help="Masks or segmentation labels whose voxels are decoded (their union).",
)  # fmt: skip
@click.option(
    "--min-noise-ceiling",
    type=Percent(),
    help="Of these, decode only voxels whose noise ceiling is at least this, in percent.",
)
@click.option(
    "-d",
    "--derivatives",
    type=NamedFolder(),
    multiple=True,
    metavar="NAME=PATH...",
    help="Further datasets whose masks --roi may name.",
)
@click.option(
    "--split",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Train and test stimuli: TSV or JSON; {subject} in the path stands for the label.",
)
@click.option("--split-variant", metavar="ID", help="Variant of a JSON split that has several.  [default: 0]")
@click.option(
    "--captions",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Captions: TSV or CSV.  [default: those of the stimuli folder]",
)
@click.option("--save-weights", is_flag=True, help="Write the ridge's weights into the model file (large).")
@click.option(
    "--ladder-images",
    type=click.IntRange(min=0),
    metavar="N",
    help="Test images of the ladder, which tells a broken stage from noisy data; 0 for none.  "
    "[default: the recipe's]",
)
@further_analyses
@work_options
@part_options
@click.option("--skip-bids-validation", is_flag=True, help="Do not run the BIDS validator on the input.")
@click.option("--dry-run", is_flag=True, help="Check everything, print the plan, compute nothing.")
@click.option("--stop-on-first-crash", is_flag=True, help="Stop when a subject fails.")
@common
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
    check_parts(options)
    prepare(options)
    if level == "group":
        from bidsapp.group.level import run_group

        outcome = run_group(
            options["output_dir"],
            participants=options["participant_label"] or None,
            command=command_line(),
            dry_run=options["dry_run"],
        )
        labels = ", ".join(f"sub-{label}" for label in outcome.subjects)
        click.echo(f"{len(outcome.subjects)} subjects ({labels}): {outcome.report}")
        return ExitCode.OK
    config = make_config(options)
    from bidsapp.participant.level import run_participants
    from bidsapp.planning.check import plan

    if options["dry_run"]:
        click.echo(as_shown(plan(config).describe(config)))
        return ExitCode.OK
    code, _ = run_participants(config)
    return code


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
        max_sessions=options["max_sessions"],
        task=options["task_label"],
        space=options["space"],
        filters=options["bids_filter_file"],
        roi=options["roi"],
        min_noise_ceiling=options["min_noise_ceiling"],
        derivatives=_by_name(options["derivatives"]),
        split_file=options["split"],
        split_variant=options["split_variant"],
        captions=options["captions"],
        models_dir=options["models_dir"],
        device=options["device"],
        dtype=options["dtype"],
        n_cpus=options["n_cpus"],
        memory=options["mem"],
        save_weights=options["save_weights"],
        seed=options["seed"],
        ladder_images=options["ladder_images"],
        generator_seeds=options["generator_seeds"],
        cluster_holdout=options["cluster_holdout"],
        roi_analysis=options["roi_analysis"],
        skip_bids_validation=options["skip_bids_validation"],
        stop_on_first_crash=options["stop_on_first_crash"],
        force=options["force"],
        keep_work=options["keep_work"],
        prepare=options["prepare"],
        shard=options["shard"],
        verbose=options["verbose"],
        command=command_line(),
    )


def _by_name(pairs: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    """Further datasets by name (click.UsageError for a name given to two)."""
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise click.UsageError(f"--derivatives: two datasets are called {twice[0]}; write NAME=PATH.")
    return dict(pairs)


def default_recipe(bids_dir: Path) -> str:
    """Choose the paper's recipe, or the embedded one for a dataset that the verb ``demo`` simulated."""
    from bidsapp.storage.text import read_json

    try:
        description = read_json(bids_dir / "dataset_description.json")
        simulated = description["GeneratedBy"][0]["Name"] == "bidsapp-recon demo"
    except (AppError, LookupError, TypeError):
        simulated = False  # whatever is wrong with it is said when the dataset is opened
    return "embedded" if simulated else "brain-diffuser"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; every error becomes a message and a documented exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = app
    if words and words[0] in VERBS:
        command = VERBS[words.pop(0)]
    try:
        with ending_cleanly():
            args = normalise(words, command)
            whole = App(app, make_config)  # for verbs that start runs
            code = command.main(args=args, prog_name=_name(command), standalone_mode=False, obj=whole)
            return int(code or 0)
    except Stopped as stop:
        return 128 + stop.number
    except click.exceptions.Exit as stop:
        return int(stop.exit_code)
    except click.ClickException as error:
        error.show()
        return int(ExitCode.USAGE)
    except click.Abort:
        click.echo(f"Stopped. {AGAIN}", err=True)
        return 130
    except Exception as error:
        message, code = _explain(error)
        if _wants_traceback(words):
            traceback.print_exception(error)
        click.echo(f"Error: {as_shown(message)}", err=True)
        return int(code)


def _explain(error: Exception) -> tuple[str, ExitCode]:
    """Word an error for the user, and choose its exit code."""
    if isinstance(error, InputProblems):
        width = shutil.get_terminal_size().columns if sys.stderr.isatty() else None
        return error.as_text(width), error.exit_code
    if isinstance(error, AppError):
        return str(error), error.exit_code
    if reason(error) is not None:
        full = cannot_write(getattr(error, "filename", None) or "a file", error)
        return str(full), full.exit_code
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
    leave(main())


if __name__ == "__main__":
    entry()


VERBS: dict[str, click.Command] = {
    "demo": demo,
    "fetch-models": fetch_models,
    "nsd2bids": nsd2bids,
    "slurm": slurm,
}
