"""The options of a participant run that another subcommand starts: parsed here, and written out again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bidsapp.cli.bids_app import app
from bidsapp.cli.words import normalise


def parse_run(bids_dir: Path, output_dir: Path, words: Sequence[str]) -> click.Context:
    """Parse the options of a participant run (click.UsageError for anything else)."""
    positionals = [str(bids_dir), str(output_dir), "participant"]
    flat = normalise([*positionals, *words], app)
    if flat[-4:] != ["--", *positionals]:
        extra = flat[flat.index("--") + 4 :]
        raise click.UsageError(f"Only options of the run may follow --, and {' '.join(extra)!r} is not one.")
    return app.make_context("bidsapp-recon", flat)


def given(context: click.Context, name: str) -> bool:
    """Whether a parameter was typed, or set in the environment or a configuration file."""
    kinds = click.core.ParameterSource
    return context.get_parameter_source(name) in (kinds.COMMANDLINE, kinds.ENVIRONMENT, kinds.DEFAULT_MAP)


def written_again(context: click.Context, leave_out: Sequence[str] = ()) -> list[list[str]]:
    """Write the options that :func:`parse_run` found, each as a list of words, with absolute paths.

    Parameters named in ``leave_out`` are not written.
    """
    lines: list[list[str]] = []
    for option in context.command.params:
        name = option.name or ""
        if not isinstance(option, click.Option) or name in leave_out or not given(context, name):
            continue
        if not option.expose_value:  # --config-file, whose options are all written
            continue
        flag, value = next(word for word in option.opts if word.startswith("--")), context.params[name]
        if option.count:
            lines.append([flag] * value)
        elif option.is_flag:
            lines += [[flag]] if value else []
        else:
            values = value if option.multiple else [value]
            lines += [[flag, _text(name, each)] for each in values]
    return lines


def _text(name: str, value: Any) -> str:
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, tuple):  # NAME=PATH
        return f"{value[0]}={value[1].absolute()}"
    if name == "recipe" and (path := recipe_file(value)):
        return str(path)
    return str(value)


def recipe_file(recipe: str | None) -> Path | None:
    """Give the absolute path of a recipe that is a file of the user's; None for a recipe of the package."""
    from bidsapp.config import RECIPES

    if recipe is None or (RECIPES / f"{recipe}.toml").is_file():
        return None
    return Path(recipe).absolute()
