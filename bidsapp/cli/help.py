"""How a command's help is laid out: subcommands first, options in groups, examples at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from bidsapp.cli.words import normalise


class GroupedOption(click.Option):
    """An option with its group's heading in the help."""

    def __init__(self, *args: Any, group: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class Command(click.Command):
    """A command whose options are in groups, and whose words may be as BIDS Apps have them.

    Parameters
    ----------
    subcommands : mapping of str to str, optional
        Listed first in the help, with a line for each.
    examples : sequence of str
        Command lines, listed last.
    """

    def __init__(
        self,
        *args: Any,
        subcommands: dict[str, str] | None = None,
        examples: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        kwargs["context_settings"] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
        super().__init__(*args, **kwargs)
        self.subcommands, self.examples = subcommands or {}, examples

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, after :func:`bidsapp.cli.words.normalise`."""
        try:
            args = normalise(args, self, finished=not ctx.resilient_parsing)
        except click.UsageError as error:
            if not ctx.resilient_parsing:  # completion of a half-typed line
                error.ctx = ctx
                raise
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the subcommands, then each group of options."""
        if self.subcommands:
            with formatter.section("Subcommands"):
                formatter.write_dl(list(self.subcommands.items()))
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                groups.setdefault(getattr(param, "group", "") or "Other options", []).append(record)
        rest = groups.pop("Other options")
        for name, records in [*groups.items(), ("Other options" if groups else "Options", rest)]:
            with formatter.section(name):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        if self.examples:
            with formatter.section("Examples"):
                formatter.write_text("\b\n" + "\n".join(self.examples))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Complete options, also those written with ``_``."""
        word = incomplete.replace("_", "-") if incomplete.startswith("--") else incomplete
        return super().shell_complete(ctx, word)
