"""The helper verbs: ``bidsapp-recon demo``, ``fetch-models``, ``nsd2bids`` and ``slurm``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bidsapp.arguments import command_line, common, models_dir_option, prepare
from bidsapp.errors import ExitCode
from bidsapp.nsd_verb import nsd2bids
from bidsapp.slurm_verb import slurm


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
@common
def demo(**options: Any) -> int:
    """Simulate a dataset in DIR/bids, reconstruct it into DIR/out, and show the scores.

    Subjects look at drawn scenes; an encoding model that the decoder does not know gives their
    responses, with noise as in NSD. Both levels run with the embedded recipe.
    """
    prepare(options)
    from bidsapp.demo.run import run_demo

    return run_demo(
        options["folder"],
        seed=options["seed"],
        n_subjects=options["n_subjects"],
        n_train=options["n_train"],
        n_test=options["n_test"],
        simulate_only=options["simulate_only"],
        device=options["device"],
        dtype=options["dtype"],
        n_cpus=options["n_cpus"],
        verbose=options["verbose"],
        command=command_line(),
    )


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
    from bidsapp.levels import fetch_weights
    from bidsapp.runlog import set_up_logging

    set_up_logging(verbose)
    folder, fetched = fetch_weights(recipe, models_dir, click.echo, only_verify=verify)
    click.echo(f"{folder}: complete, " + ("all verified" if verify else f"{fetched} files fetched now"))
    return ExitCode.OK


VERBS: dict[str, click.Command] = {
    "demo": demo,
    "fetch-models": fetch_models,
    "nsd2bids": nsd2bids,
    "slurm": slurm,
}
