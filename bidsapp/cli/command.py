"""The command ``bidsapp-recon``: choose a subcommand, run it, and turn every error into an exit code.

Nothing heavy is imported before the arguments are parsed.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from bidsapp.cli.bids_app import SUBCOMMANDS, app
from bidsapp.errors import RENAME, AppError, ExitCode, InputProblems, as_shown, did_you_mean, is_utf8
from bidsapp.system.limits import limit_reached
from bidsapp.system.signals import AGAIN, Stopped, ending_cleanly, leave
from bidsapp.system.streams import tolerate_closed_streams
from bidsapp.system.write_errors import cannot_write, reason

_NAME = "bidsapp-recon"
#: What a shell sets to ask for completions.
_COMPLETION = "_BIDSAPP_RECON_COMPLETE"


def subcommand(name: str) -> click.Command:
    """Load a subcommand by its name."""
    module = name.replace("-", "_")
    command: click.Command = getattr(import_module(f"bidsapp.cli.{module}"), module)
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; every error becomes a message and a documented exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if instruction := os.environ.get(_COMPLETION):
        return _complete(instruction)
    command: click.Command = app
    name = _NAME
    rest = words or ["--help"]
    if words and words[0] in SUBCOMMANDS:
        command, name, rest = subcommand(words[0]), f"{_NAME} {words[0]}", words[1:]
    try:
        _refuse_other_encodings(words)
        with ending_cleanly():
            return int(command.main(args=rest, prog_name=name, standalone_mode=False) or 0)
    except Stopped as stop:
        return 128 + stop.number
    except click.exceptions.Exit as stop:
        return int(stop.exit_code)
    except click.ClickException as error:
        error.show()
        _suggest_subcommand(words, command)
        return int(ExitCode.USAGE)
    except click.Abort:
        click.echo(f"Stopped. {AGAIN}", err=True)
        return 130
    except Exception as error:
        message, code = _explain(error)
        if _wants_traceback(words):
            traceback.print_exception(error)
        if not isinstance(error, InputProblems):  # whose lines are indented
            message = message.replace("\n", "\n  ")
        click.echo(f"Error: {as_shown(message)}", err=True)
        if code == ExitCode.UNKNOWN_LEVEL:
            _suggest_subcommand(words, command)
        return int(code)


def _refuse_other_encodings(words: Sequence[str]) -> None:
    """Refuse arguments that no text file of the output could hold (exit code 64)."""
    for word in words:
        if not is_utf8(word):
            raise AppError(f"{word}: this argument is not UTF-8. {RENAME}", exit_code=ExitCode.USAGE)


def _suggest_subcommand(words: Sequence[str], command: click.Command) -> None:
    """Name the subcommand that a mistyped first word resembles."""
    if command is not app or not words or Path(words[0]).exists():
        return
    if hint := did_you_mean(words[0], SUBCOMMANDS):
        click.echo(f"{as_shown(words[0])!r} is not a subcommand.{hint}", err=True)


def _complete(instruction: str) -> int:
    """Print a shell's completion script, or the completions of a command line (click's protocol)."""
    shell, _, what = instruction.partition("_")
    kind = get_completion_class(shell)
    if kind is None:
        return 1
    whole = kind(app, {}, _NAME, _COMPLETION)
    if what == "source":
        click.echo(whole.source())
        return 0
    words, incomplete = whole.get_completion_args()
    part = whole
    if words and words[0] in SUBCOMMANDS:
        part = kind(subcommand(words.pop(0)), {}, _NAME, _COMPLETION)
    found = part.get_completions(words, incomplete)
    click.echo("\n".join(whole.format_completion(item) for item in found))
    return 0


def _explain(error: Exception) -> tuple[str, ExitCode]:
    """Word an error for the user, and choose its exit code."""
    error = limit_reached(error) or error
    if isinstance(error, InputProblems):
        width = shutil.get_terminal_size().columns if sys.stderr.isatty() else None
        return error.as_text(width), error.exit_code
    if isinstance(error, AppError):
        return str(error), error.exit_code
    if reason(error) is not None:
        full = cannot_write(getattr(error, "filename", None) or "a file", error)
        return str(full), full.exit_code
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}. Run again with -vv for a traceback.", ExitCode.IO_ERROR
    what = f"{type(error).__name__}: {error}. This should not happen: please report it, with the"
    return f"{what} output of the same command and -vv.", ExitCode.INTERNAL


def _wants_traceback(words: Sequence[str]) -> bool:
    return sum(w.count("v") for w in words if re.fullmatch("-v+", w)) + list(words).count("--verbose") > 1


def entry() -> None:
    """Console script."""
    tolerate_closed_streams()
    leave(main())


if __name__ == "__main__":
    entry()
