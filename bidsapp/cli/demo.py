"""The subcommand ``demo``: simulate a dataset, run both levels on it, and show the scores."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from bidsapp.cli.help import Command, GroupedOption
from bidsapp.cli.options import command_line, run_options, set_up
from bidsapp.cli.types import PathOf
from bidsapp.errors import ExitCode

if TYPE_CHECKING:
    from bidsapp.config import RunConfig
    from bidsapp.demo.design import DatasetDesign


def run_demo(config: RunConfig, design: DatasetDesign) -> int:
    """Simulate ``config.bids_dir``, reconstruct it into ``config.output_dir``, and print the scores."""
    from bidsapp.demo.simulate import write_dataset
    from bidsapp.group.level import run_group
    from bidsapp.participant.level import run_participants
    from bidsapp.participant.summary import summary

    start = time.monotonic()
    write_dataset(config.bids_dir, design, n_cpus=config.n_cpus)
    code, done = run_participants(config)
    if not done:
        return code
    outcome = run_group(config.output_dir, command=config.command)
    click.echo(summary(done))
    click.echo(f"Group report: {outcome.report} (whole demo: {time.monotonic() - start:.0f} s)")
    return code


def _option(flag: str, **about: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    shown = {} if about.get("is_flag") else {"metavar": "N", "show_default": True}
    return click.option(flag, cls=GroupedOption, group="Simulation", **shown, **about)


@click.command("demo", cls=Command, examples=["bidsapp-recon demo ~/recon-demo --n-subjects 1"])
@click.argument("folder", metavar="DIR", type=PathOf(file_okay=False))
@_option("--simulate-only", is_flag=True, help="Write DIR/bids, and stop.")
@_option("--n-subjects", type=click.IntRange(min=1, max=8), default=2, help="Subjects.")
@_option("--n-train", type=click.IntRange(min=20), default=1000, help="Training images of each subject.")
@_option("--n-test", type=click.IntRange(min=5), default=100, help="Shared test images.")
@run_options("seed", "n_cpus", "omp_nthreads", "device", "dtype", "verbose")
def demo(**options: Any) -> int:
    """Simulate a dataset in DIR/bids, reconstruct its images into DIR/out, and print the scores.

    Subjects see drawn scenes. Their responses come from an encoding model that the decoder does not
    know, with noise as in NSD. Both levels run with the embedded recipe.
    """
    set_up(options)
    from bidsapp.config import RunConfig, load_recipe
    from bidsapp.demo.design import DatasetDesign
    from bidsapp.demo.simulate import write_dataset

    folder = options["folder"]
    counts = {name: options[name] for name in ("seed", "n_subjects", "n_train", "n_test")}
    design = DatasetDesign(**counts)
    if options["simulate_only"]:
        write_dataset(folder / "bids", design, n_cpus=options["n_cpus"])
        click.echo(f"Simulated dataset: {folder / 'bids'}")
        return ExitCode.OK
    config = RunConfig(
        bids_dir=folder / "bids",
        output_dir=folder / "out",
        work_dir=folder / "work",
        recipe=load_recipe("embedded"),
        skip_bids_validation=True,
        command=command_line(),
        **{name: options[name] for name in ("device", "dtype", "n_cpus", "omp_nthreads", "seed", "verbose")},
    )
    return run_demo(config, design)
