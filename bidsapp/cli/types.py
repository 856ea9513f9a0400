"""What options' values may be: amounts of memory, percentages, shares of the work, named datasets."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


class Memory(click.ParamType[int]):
    """An amount of memory with its unit, in bytes: ``8GB``, ``7.5GiB``, ``900M``."""

    name = "amount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse; a bare number is refused, because MB and GB are both customary."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:([KMGT])(i?)B?|B)\s*", str(value), re.IGNORECASE)
        if not match:
            self.fail(f"{value!r} has no known unit; write for example 8GB or 900MiB", param, ctx)
        base = 1024 if match[3] else 1000
        return int(float(match[1]) * base ** _UNITS[(match[2] or "").upper()])


class Percent(click.ParamType[float]):
    """A number from 0 to 100, with or without the percent sign."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse; ``nan`` is refused, which a range by comparison would accept."""
        try:
            number = float(str(value).strip().removesuffix("%"))
        except ValueError:
            number = -1.0
        if not 0 <= number <= 100:
            self.fail(f"{value!r} is not a number from 0 to 100", param, ctx)
        return number


class Shard(click.ParamType[tuple[int, int]]):
    """A share of the work: ``K/N``, K from 1 to N."""

    name = "K/N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Parse."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", str(value), re.ASCII)
        k, n = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= k <= n:
            self.fail(f"{value!r} is not K/N with K from 1 to N; write for example 2/8", param, ctx)
        return k, n


class NamedFolder(click.ParamType[tuple[str, Path]]):
    """A dataset and its name: ``NAME=PATH``, or ``PATH`` whose last folder is the name."""

    name = "dataset"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Path]:
        """Parse; the name becomes part of BIDS URIs, and must not be one that the app uses itself."""
        if isinstance(value, tuple):
            return value
        name, equals, path = str(value).partition("=")
        if not equals:
            name, path = Path(value).absolute().name, str(value)
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or not path:
            self.fail(f"{value!r} is not NAME=PATH, with a name of letters, digits, - _ and .", param, ctx)
        if name in ("source", "input"):
            self.fail(f"the app itself uses the name {name!r}; choose another for {path}", param, ctx)
        return name, Path(path)


class RecipeName(click.ParamType[str]):
    """The name of a recipe, or the path of a TOML file."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Take any text; loading the recipe checks it."""
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        """Complete the names of the package's recipes, otherwise paths."""
        from bidsapp.config import RECIPES

        names = sorted(path.stem for path in RECIPES.glob("*.toml"))
        found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")]


class Text(click.ParamType[str]):
    """Text of a certain form.

    Parameters
    ----------
    name : str
        Shown in the help.
    fits : callable
        Whether a text has the form.
    problem : str
        What is wrong with one that does not; completes "'VALUE' ...".
    """

    def __init__(self, name: str, fits: Callable[[str], Any], problem: str) -> None:
        self.name, self._fits, self._problem = name, fits, problem

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the form."""
        if not self._fits(str(value)):
            self.fail(f"{value!r} {self._problem}", param, ctx)
        return str(value)
