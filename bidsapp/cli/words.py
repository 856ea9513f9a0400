"""The words of a command line, put into the order and spelling that click takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

LEVELS = ("participant", "group")


def is_list(option: click.Parameter) -> bool:
    """Whether one flag takes several values, as ``--participant-label 01 02`` does in BIDS Apps."""
    return isinstance(option, click.Option) and option.multiple and str(option.metavar).endswith("...")


def normalise(argv: Sequence[str], command: click.Command, *, finished: bool = True) -> list[str]:
    """Accept ``_`` for ``-`` in options, several values after a list option, and MB after ``--mem-mb``.

    If positionals of a ``finished`` line follow a list, as many words as they need are left to them: those
    that end in an analysis level, otherwise those of the last list that has enough.

    Raises
    ------
    click.UsageError
        For an option at the end that lacks its value.
    """
    groups = list(_groups(list(argv), command))
    lists = _lists(command)
    short = sum(isinstance(p, click.Argument) for p in command.params)
    short -= sum(not is_option for is_option, _ in groups)
    longer = [g for is_option, g in groups if is_option and g[0] in lists and len(g) - 2 >= short > 0]
    longer = longer if finished else []
    givers = [g for g in longer if g[-1] in LEVELS] or longer
    options: list[str] = []
    positionals: list[str] = []
    for is_option, group in groups:
        if not is_option:
            positionals += group
        elif group[0] not in lists:
            options += group
        else:
            values = group[1:]
            if givers and group is givers[-1]:
                positionals += values[-short:]
                values = values[:-short]
            options += [word for value in values for word in (group[0], value)]
    return [*options, "--", *positionals] if positionals else options


def _lists(command: click.Command) -> set[str]:
    return {name for option in command.params if is_list(option) for name in option.opts}


def _groups(words: list[str], command: click.Command) -> Iterator[tuple[bool, list[str]]]:
    """Split a command line into options with their values (True) and lone positionals (False)."""
    options = [p for p in command.params if isinstance(p, click.Option)]
    takes_value = {name for o in options if not (o.is_flag or o.count) for name in o.opts}
    lists = _lists(command)
    flags = {"-h", *(name for o in options if o.is_flag or o.count for name in o.opts)}
    while words:
        word = words.pop(0)
        if word == "--":
            yield from ((False, [w]) for w in words)
            return
        if not word.startswith("-") or word == "-":
            yield False, [word]
            continue
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            name = name.replace("_", "-")
            complete = bool(equals) or name not in takes_value
            group = [name, value] if equals and name == "--mem-mb" else [name + equals + value]
        else:
            # In -vwDIR the letters up to the first that takes a value are flags.
            letters = word[1:]
            while letters and f"-{letters[0]}" in flags:
                letters = letters[1:]
            name, group, complete = word, [word], f"-{letters}" not in takes_value
        if not complete and (not words or (name in lists and words[0].startswith("-"))):
            raise click.UsageError(f"Option {name!r} requires an argument.")
        if not complete:
            group.append(words.pop(0))
        while not complete and name in lists and words and not words[0].startswith("-"):
            group.append(words.pop(0))
        if group[0] == "--mem-mb" and group[-1].isdecimal():
            group[-1] += "MB"
        yield True, group
