"""Options from a TOML file, such as the ``run.toml`` of an earlier run; the command line takes precedence."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import click

from bidsapp.cli.help import GroupedOption
from bidsapp.cli.types import PathOf
from bidsapp.config import OTHER
from bidsapp.errors import AppError, ExitCode, as_shown, did_you_mean

#: Entries of ``run.toml`` that are always given on the command line.
_POSITIONALS = ("bids_dir", "output_dir", "analysis_level")


def _read(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    if path is not None:
        ctx.default_map = {**(ctx.default_map or {}), **options_in(path, ctx.command)}


#: Decorator for a command that takes ``--config-file``.
config_file_option = click.option(
    "--config-file", cls=GroupedOption, group=OTHER, callback=_read, is_eager=True, expose_value=False,
    type=PathOf(dir_okay=False), metavar="FILE",
    help="TOML file of options (n_cpus = 8, roi = ['V1', 'hV4']), or the run.toml of an earlier run. "
    "Options on the command line take precedence.",
)  # fmt: skip


def options_in(path: Path, command: click.Command) -> dict[str, Any]:
    """Read options, at the top of a file or in its table ``[run]``, as click's ``default_map``.

    Raises
    ------
    AppError
        Exit code 66 if the file does not exist, 65 if it is not TOML.
    click.UsageError
        For an unknown option, or a value of the wrong kind.
    """
    from bidsapp.storage.text import read_text

    try:
        content = tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise AppError(
            f"--config-file {path}: not a TOML file: {error}", exit_code=ExitCode.BAD_DATA, path=path
        ) from error
    table = content["run"] if isinstance(content.get("run"), dict) else content
    options = (p for p in command.params if isinstance(p, click.Option))
    params = {_key(spelling): p for p in options for spelling in (*p.opts, str(p.name))}
    found = {}
    for key, value in table.items():
        name = _key(key)
        if name in _POSITIONALS:
            continue
        option = params.get(name)
        if option is None:
            hint = did_you_mean(name, params)
            raise click.UsageError(f"--config-file {path}: there is no option {as_shown(key)!r}.{hint}")
        words = _value(option, value, f"--config-file {path}: {as_shown(key)}")
        found[str(option.name)] = f"{words}MB" if name == "mem_mb" and words.isdecimal() else words
    return found


def _key(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _value(option: click.Option, value: Any, where: str) -> Any:
    """Check a value's kind; give it as the words of the command line that click then parses."""
    if option.is_flag:
        wanted, right = "true or false", isinstance(value, bool)
    elif option.count:
        wanted, right = "a whole number from 0", type(value) is int and value >= 0
    elif option.multiple:
        wanted, right = "a list", isinstance(value, list) and all(map(_is_word, value))
    else:
        wanted, right = "a text or a number", _is_word(value)
    if not right:
        raise click.UsageError(f"{where} should be {wanted}, not {value!r}.")
    if option.is_flag or option.count:
        return value
    return list(map(str, value)) if option.multiple else str(value)


def _is_word(value: Any) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)
