"""The words of a participant run that another command starts: understood here, written again for there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bidsapp.cli.options import normalise

if TYPE_CHECKING:
    from bidsapp.config import RunConfig


@dataclass(frozen=True)
class App:
    """The app itself, for verbs that start it.

    Attributes
    ----------
    command : click.Command
    settings : callable
        Makes a run's settings of the command's parameters.
    """

    command: click.Command
    settings: Callable[[dict[str, Any]], RunConfig]


def understand(app: App, bids_dir: Path, output_dir: Path, words: Sequence[str]) -> click.Context:
    """Parse the options of a participant run.

    Parameters
    ----------
    app : App
    bids_dir, output_dir : Path
        Absolute.
    words : sequence of str
        Options alone, as typed.

    Returns
    -------
    click.Context
        With the parameters, and where each came from.

    Raises
    ------
    click.UsageError
        For options that the app refuses, and for anything that is no option.
    """
    positionals = [str(bids_dir), str(output_dir), "participant"]
    flat = normalise([*positionals, *words], app.command)
    if flat[-4:] != ["--", *positionals]:
        extra = flat[flat.index("--") + 4 :]
        raise click.UsageError(f"After -- come options of the run, and {' '.join(extra)!r} is none.")
    return app.command.make_context("bidsapp-recon", flat)


def given(context: click.Context, name: str) -> bool:
    """Tell whether a parameter was typed or set in the environment, rather than left to its default."""
    source = context.get_parameter_source(name)
    kinds = click.core.ParameterSource
    return source in (kinds.COMMANDLINE, kinds.ENVIRONMENT)


def written_again(context: click.Context, leave_out: Sequence[str] = ()) -> list[list[str]]:
    """Write the options that were given, an option a list, with absolute paths.

    Parameters
    ----------
    context : click.Context
        Of :func:`understand`.
    leave_out : sequence of str
        Names of parameters.
    """
    lines: list[list[str]] = []
    for option in context.command.params:
        name = option.name or ""
        if not isinstance(option, click.Option) or name in leave_out or not given(context, name):
            continue
        flag, value = max(option.opts, key=len), context.params[name]
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
    """Give the absolute path of a recipe that is a file of the user's, None for one that has a name."""
    from bidsapp.config import RECIPES

    if recipe is None or (RECIPES / f"{recipe}.toml").is_file():
        return None
    return Path(recipe).absolute()
