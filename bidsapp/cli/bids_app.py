"""The BIDS App's own command: ``bidsapp-recon BIDS_DIR OUTPUT_DIR participant|group``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from bidsapp import __version__
from bidsapp.cli.config_file import config_file_option
from bidsapp.cli.help import Command, GroupedOption
from bidsapp.cli.options import check_parts, command_line, run_options, set_up
from bidsapp.cli.types import PathOf
from bidsapp.cli.words import LEVELS
from bidsapp.config import INPUT, OPTIONS, OTHER, RunConfig, setting_name
from bidsapp.errors import AppError, ExitCode, as_shown, did_you_mean

#: Subcommands, in the order of the help, with what they do.
SUBCOMMANDS = {
    "demo": "Simulate a small dataset and run both levels on it.",
    "fetch-models": "Download and verify the weights of a recipe.",
    "nsd2bids": "Convert the Natural Scenes Dataset to the layout that the app reads.",
    "slurm": "Run both levels as jobs of a SLURM cluster.",
}
_EXAMPLES = (
    "bidsapp-recon demo ~/recon-demo",
    "bidsapp-recon BIDS_DIR OUTPUT_DIR participant --participant-label 01 02 --roi V1 hV4 --dry-run",
    "bidsapp-recon BIDS_DIR OUTPUT_DIR group",
    "bidsapp-recon slurm BIDS_DIR OUTPUT_DIR --gpus 1 --submit -- --recipe brain-diffuser",
)


def _first_words(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Complete the first word: a subcommand, or a folder."""
    found = [
        CompletionItem(name, help=text) for name, text in SUBCOMMANDS.items() if name.startswith(incomplete)
    ]
    return found or [CompletionItem(incomplete, type="dir")]


def _levels(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    return [CompletionItem(level) for level in LEVELS if level.startswith(incomplete)]


@click.command(
    "bidsapp-recon",
    cls=Command,
    subcommands=SUBCOMMANDS,
    examples=_EXAMPLES,
    options_metavar="[OPTIONS]",
)
@click.argument("bids_dir", type=PathOf(), shell_complete=_first_words)
@click.argument("output_dir", type=PathOf())
@click.argument("analysis_level", metavar="{participant|group}", shell_complete=_levels)
@run_options()
@click.option(
    "--bids-database-dir", cls=GroupedOption, group=INPUT, type=click.Path(), expose_value=False,
    help="Accepted for scripts written for fMRIPrep; no database is used.",
)  # fmt: skip
@config_file_option
@click.option(
    "--dry-run", cls=GroupedOption, group=OTHER, is_flag=True,
    help="Check everything, print the plan, compute nothing.",
)  # fmt: skip
@click.option(
    "--boilerplate-only", cls=GroupedOption, group=OTHER, is_flag=True,
    help="Write the methods text (OUTPUT_DIR/logs/CITATION.md), and stop.",
)  # fmt: skip
@click.option(
    "--reports-only", cls=GroupedOption, group=OTHER, is_flag=True,
    help="Write the reports of finished subjects again, and stop; needs OUTPUT_DIR only.",
)  # fmt: skip
@click.option(
    "--notrack", cls=GroupedOption, group=OTHER, is_flag=True, expose_value=False,
    help="Accepted for scripts written for fMRIPrep; the app never sends usage data.",
)  # fmt: skip
@click.version_option(__version__, prog_name="bidsapp-recon")
def app(**options: Any) -> int:
    """Reconstruct the images a person saw from their fMRI responses.

    BIDS_DIR is a BIDS derivative dataset of single-trial betas, OUTPUT_DIR the dataset to write.
    The participant level writes reconstructions, scores and a report for each subject. The group level
    collects the scores of all finished subjects. If BIDS_DIR shares its name with a subcommand, write
    ./demo.
    """
    level = options["analysis_level"]
    if level not in LEVELS:
        raise AppError(
            f"Unknown analysis level {level!r}: choose participant or group.{did_you_mean(level, LEVELS)}",
            exit_code=ExitCode.UNKNOWN_LEVEL,
        )
    check_parts(options)
    set_up(options)
    if level == "group":
        return _run_group(options)
    config = make_config(options)
    if options["boilerplate_only"]:
        from bidsapp.outputs.provenance import write_citation

        click.echo(write_citation(config))
        return ExitCode.OK
    if options["reports_only"]:
        from bidsapp.participant.reports import rewrite_reports

        click.echo("\n".join(map(str, rewrite_reports(config))))
        return ExitCode.OK
    from bidsapp.participant.level import run_participants
    from bidsapp.participant.summary import summary
    from bidsapp.planning.check import check_run
    from bidsapp.planning.describe import describe_run

    if options["dry_run"]:
        click.echo(as_shown(describe_run(check_run(config), config)))
        return ExitCode.OK
    code, done = run_participants(config)
    if done:
        click.echo(summary(done))
    return code


def _run_group(options: dict[str, Any]) -> ExitCode:
    from bidsapp.group.level import run_group

    outcome = run_group(
        options["output_dir"],
        participants=options["participant_label"] or None,
        command=command_line(),
        dry_run=options["dry_run"],
    )
    labels = ", ".join(f"sub-{label}" for label in outcome.subjects)
    n = len(outcome.subjects)
    click.echo(f"{n} subject{'s' if n > 1 else ''} ({labels}): {outcome.report}")
    return ExitCode.OK


def make_config(options: dict[str, Any]) -> RunConfig:
    """Make a run's settings from the command's parameters."""
    from bidsapp.config import load_recipe

    given = {name: options[setting_name(name)] for name, option in OPTIONS.items() if option.flags}
    given["recipe_given"] = given["recipe_given"] or default_recipe(options["bids_dir"])
    given["work_dir"] = given["work_dir"] or options["output_dir"] / ".work"
    given["derivatives"] = _by_name(given["derivatives"])
    return RunConfig(
        bids_dir=options["bids_dir"],
        output_dir=options["output_dir"],
        recipe=load_recipe(given["recipe_given"]),
        command=command_line(),
        **given,
    )


def _by_name(pairs: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    """Give further datasets by name (click.UsageError if two have the same)."""
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise click.UsageError(f"--derivatives: two datasets are called {twice[0]}; write NAME=PATH.")
    return dict(pairs)


def default_recipe(bids_dir: Path) -> str:
    """Choose the paper's recipe, or the embedded one for a dataset that ``bidsapp-recon demo`` simulated."""
    from bidsapp.storage.text import read_json

    try:
        description = read_json(bids_dir / "dataset_description.json")
        simulated = description["GeneratedBy"][0]["Name"] == "bidsapp-recon demo"
    except (AppError, LookupError, TypeError):
        simulated = False  # opening the dataset reports what is wrong with it
    return "embedded" if simulated else "brain-diffuser"
