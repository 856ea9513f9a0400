"""The subcommand ``fetch-models``: download and verify a recipe's weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from bidsapp.cli.options import models_dir_option
from bidsapp.errors import ExitCode, InputProblems


@click.command("fetch-models", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--recipe", default="brain-diffuser", show_default=True, help="Its name, or a TOML file.")
@models_dir_option
@click.option("--verify", is_flag=True, help="Hash all that is there in full, and fetch nothing.")
@click.option("-v", "--verbose", count=True, help="Say more (-vv: debugging lines, tracebacks).")
def fetch_models(recipe: str, models_dir: Path | None, verify: bool, verbose: int) -> int:
    """Download the weights that a recipe needs, and verify those that are there.

    Run it again after an interruption: it goes on where it stopped. Hashes are recorded in
    weights.lock.json in the folder. Every run compares them; this command reads every byte again.
    """
    from bidsapp.system.logging import set_up_logging

    set_up_logging(verbose)
    folder, fetched = fetch_weights(recipe, models_dir, click.echo, only_verify=verify)
    click.echo(f"{folder}: complete, " + ("all verified" if verify else f"{fetched} files fetched now"))
    return ExitCode.OK


def fetch_weights(
    recipe: str, models_dir: Path | None, say: Callable[[str], None], *, only_verify: bool = False
) -> tuple[Path, int]:
    """Fetch the weights that a recipe needs, and hash those that are there in full.

    Parameters
    ----------
    recipe : str
        Its name, or the path of a TOML file.
    models_dir : Path or None
    say : callable
        Takes a line on each file.
    only_verify : bool
        Fetch nothing.

    Returns
    -------
    folder : Path
        The models folder.
    fetched : int
        How many files were not there before.

    Raises
    ------
    AppError
        If the recipe is wrong, a file changed or can't be fetched, or (``only_verify``) one is missing.
    """
    from bidsapp.config import load_recipe
    from bidsapp.models.weights.fetching import fetch
    from bidsapp.models.weights.registry import default_models_dir
    from bidsapp.models.weights.requirements import missing_models, needed_weights
    from bidsapp.models.weights.verification import verify
    from bidsapp.planning.check import judging_networks, unknown_names

    loaded = load_recipe(recipe)
    if problems := unknown_names(loaded):
        raise InputProblems(problems)
    folder = models_dir or default_models_dir()
    uses = judging_networks(loaded)
    needed = needed_weights(loaded, uses)
    if not only_verify:
        return folder, fetch(needed, folder, say=say)
    for name in verify(needed, folder, full=True):
        say(f"{name}: verified")
    if problems := missing_models(loaded, models_dir, uses, recipe):
        raise InputProblems(problems)
    return folder, 0
