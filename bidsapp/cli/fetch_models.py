"""The subcommand ``fetch-models``: download and verify a recipe's weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from bidsapp.cli.help import Command
from bidsapp.cli.options import run_options
from bidsapp.cli.types import RecipeName
from bidsapp.errors import ExitCode, InputProblems


@click.command("fetch-models", cls=Command, examples=["bidsapp-recon fetch-models --recipe sd15-ip-adapter"])
@click.option(
    "--recipe",
    type=RecipeName(),
    default="brain-diffuser",
    show_default=True,
    help="Name of a recipe, or a TOML file.",
)
@run_options("models_dir", "verbose")
@click.option("--verify", is_flag=True, help="Hash all existing files, and download nothing.")
def fetch_models(recipe: str, models_dir: Path | None, verify: bool, verbose: int) -> int:
    """Download the weights that a recipe needs, and verify existing ones.

    After an interruption, the same command resumes where it stopped. Hashes are recorded in
    weights.lock.json in the folder. Every run compares them; this command reads every byte again.
    """
    from bidsapp.system.logging import set_up_logging

    set_up_logging(verbose)
    folder, fetched = fetch_weights(recipe, models_dir, click.echo, only_verify=verify)
    click.echo(f"{folder}: complete, " + ("all files verified" if verify else f"{fetched} files downloaded"))
    return ExitCode.OK


def fetch_weights(
    recipe: str, models_dir: Path | None, report: Callable[[str], None], *, only_verify: bool = False
) -> tuple[Path, int]:
    """Fetch the weights that a recipe needs, and hash existing ones in full.

    Parameters
    ----------
    recipe : str
        Its name, or the path of a TOML file.
    models_dir : Path or None
    report : callable
        Takes one line for each file.
    only_verify : bool
        Fetch nothing.

    Returns
    -------
    folder : Path
        The models folder.
    fetched : int
        Number of files downloaded now.

    Raises
    ------
    AppError
        If the recipe is wrong, a file changed or can't be fetched, or (``only_verify``) one is missing.
    """
    from bidsapp.config import load_recipe
    from bidsapp.models.weights.fetching import fetch
    from bidsapp.models.weights.registry import default_models_dir, files_to_fetch, missing_models
    from bidsapp.models.weights.verification import verify
    from bidsapp.planning.check import evaluation_networks, unknown_names

    loaded = load_recipe(recipe)
    if problems := unknown_names(loaded):
        raise InputProblems(problems)
    folder = models_dir or default_models_dir()
    uses = evaluation_networks(loaded)
    needed = files_to_fetch(loaded, uses)
    if not only_verify:
        return folder, fetch(needed, folder, say=report)
    for name in verify(needed, folder, full=True):
        report(f"{name}: verified")
    if problems := missing_models(loaded, models_dir, uses, recipe):
        raise InputProblems(problems)
    return folder, 0
