"""The subcommand ``nsd2bids``: NSD's own files to the layout that the app reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bidsapp.cli.help import Command
from bidsapp.cli.options import run_options
from bidsapp.cli.types import PathOf
from bidsapp.errors import ExitCode
from bidsapp.nsd.layout import BETAS, LINKS, SPACES, STIMULI

if TYPE_CHECKING:
    from bidsapp.nsd.convert import Outcome


@click.command(
    "nsd2bids",
    cls=Command,
    examples=["bidsapp-recon nsd2bids ~/nsd ~/nsd-bids --participant-label 01 02 --dry-run"],
)
@click.argument("nsd_dir", type=PathOf())
@click.argument("bids_dir", type=PathOf())
@click.option(
    "--participant-label", multiple=True, metavar="LABEL...", help="Subjects.  [default: all with betas]"
)
@click.option(
    "--session-label", multiple=True, metavar="LABEL...",
    help="Sessions, for example nsd01; others are not looked for.  [default: all]",
)  # fmt: skip
@click.option(
    "--betas", type=click.Choice(BETAS), default=BETAS[0], show_default=True, help="Version of the betas."
)
@click.option(
    "--space", type=click.Choice(SPACES), default=SPACES[0], show_default=True, help="Space of the betas."
)
@click.option(
    "--stimuli", type=click.Choice(STIMULI), default=STIMULI[0], show_default=True,
    help="NSD's HDF5 file of all images, or one PNG for each image shown.",
)  # fmt: skip
@click.option(
    "--captions", multiple=True, metavar="COCO_JSON...", type=PathOf(dir_okay=False),
    help="COCO's captions_train2017.json and captions_val2017.json.  [default: those in NSD_DIR]",
)  # fmt: skip
@click.option(
    "--link", type=click.Choice(LINKS), default=LINKS[0], show_default=True,
    help="How betas and the HDF5 file get into the dataset; they are never rewritten.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="List what was found and what is missing; write nothing.")
@run_options("verbose")
def nsd2bids(**options: Any) -> int:
    """Convert the Natural Scenes Dataset to the BIDS layout that this app reads.

    NSD_DIR is NSD's download, the folder with nsddata, nsddata_betas and nsddata_stimuli; BIDS_DIR is
    the dataset to write. Missing files are listed with their location in NSD's bucket, and the rest is
    converted. The same command again completes the dataset.
    """
    from bidsapp.nsd.convert import convert
    from bidsapp.nsd.plan import Settings
    from bidsapp.system.logging import set_up_logging

    set_up_logging(options["verbose"])
    outcome = convert(
        options["nsd_dir"],
        options["bids_dir"],
        Settings(
            participants=options["participant_label"],
            sessions=options["session_label"],
            **{name: options[name] for name in ("betas", "space", "stimuli", "link", "captions")},
        ),
        dry_run=options["dry_run"],
    )
    _report(outcome, options["bids_dir"], dry_run=options["dry_run"])
    return int(outcome.exit_code)


def _report(outcome: Outcome, bids_dir: Path, *, dry_run: bool) -> None:
    """List what was converted on standard output, and what was not on standard error."""
    found = outcome.inventory
    for subject in outcome.subjects:
        click.echo(subject.summary())
    if dry_run:
        click.echo(f"{bids_dir}: nothing was written (--dry-run)")
    else:
        click.echo(f"{bids_dir}: files written: {outcome.written}, up to date: {outcome.kept}")
    for note in found.notes:
        click.echo(f"Note: {note}", err=True)
    for problem in found.problems:
        click.echo(
            f"Not usable: {problem.path}\n    {problem.what}\n    How to fix it: {problem.fix}", err=True
        )
    for missing in found.missing:
        click.echo(f"Missing: {missing.path}\n    {missing.what}\n    Get it: {missing.origin}", err=True)
    if outcome.exit_code != ExitCode.OK:
        count = len(found.missing) + len(found.problems)
        listed = f"{count} {'entry' if count == 1 else 'entries'} above"
        click.echo(f"{listed}: get what they name and run the same command again.", err=True)
