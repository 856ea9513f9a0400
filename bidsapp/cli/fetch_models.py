"""The subcommand ``fetch-models``: download and verify a recipe's weights."""

from __future__ import annotations

from pathlib import Path

import click

from bidsapp.cli.help import Command
from bidsapp.cli.options import run_options
from bidsapp.cli.types import RECIPE
from bidsapp.errors import ExitCode, InputProblems


@click.command("fetch-models", cls=Command, examples=["bidsapp-recon fetch-models --recipe sd15-ip-adapter"])
@click.option(
    "--recipe", type=RECIPE, default="brain-diffuser", show_default=True,
    help="Name of a recipe, or a TOML file.",
)  # fmt: skip
@run_options("models_dir", "verbose")
@click.option("--verify", is_flag=True, help="Hash all existing files, and download nothing.")
def fetch_models(recipe: str, models_dir: Path | None, verify: bool, verbose: int) -> int:
    """Download the weights that a recipe needs, and verify existing ones.

    After an interruption, the same command resumes where it stopped. Hashes are recorded in
    weights.lock.json in the folder. Every run compares them; this command reads every byte again.
    """
    from bidsapp.config import load_recipe
    from bidsapp.models.weights import verification
    from bidsapp.models.weights.fetching import fetch
    from bidsapp.models.weights.lock import Lock
    from bidsapp.models.weights.registry import default_models_dir, files_to_fetch, missing_models
    from bidsapp.planning.check import evaluation_networks, unknown_names
    from bidsapp.system.logging import set_up_logging

    set_up_logging(verbose)
    loaded = load_recipe(recipe)
    if problems := unknown_names(loaded):
        raise InputProblems(problems)
    folder = models_dir or default_models_dir()
    uses = evaluation_networks(loaded)
    needed = files_to_fetch(loaded, uses)
    if not verify:
        fetched = fetch(needed, folder, report=click.echo)
        click.echo(f"{folder}: complete, {fetched} files downloaded")
        return ExitCode.OK
    hashes = verification.verify(needed, folder, full=True)
    recorded = Lock.read(folder).files
    for name in hashes:
        click.echo(f"{name}: " + ("verified" if name in recorded else verification.NOT_RECORDED))
    if problems := missing_models(loaded, models_dir, uses, recipe):
        raise InputProblems(problems)
    click.echo(f"{folder}: complete, all files verified")
    return ExitCode.OK
