"""What options' values may be: amounts of memory, percentages, parts of stage 2, named datasets."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem


class Parsed(click.ParamType[Any]):
    """A value that a function reads from text.

    Parameters
    ----------
    name : str
        Shown in the help.
    parse : callable
        Raises ValueError with what is wrong and how to write it.
    """

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse text; any other value is one that was parsed before."""
        try:
            return self._parse(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


def text(name: str, fits: Callable[[str], Any], problem: str) -> Parsed:
    """Text of a certain form; ``problem`` completes "'VALUE' ..." for other text."""

    def parse(value: str) -> str:
        if not fits(value):
            raise ValueError(f"{value!r} {problem}")
        return value

    return Parsed(name, parse)


def _bytes(value: str) -> int:
    """Read ``8GB``, ``7.5GiB``, ``900M``; a bare number is refused, because MB and GB are both customary."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:([KMGT])(i?)B?|B)\s*", value, re.IGNORECASE)
    if not match:
        raise ValueError(f"{value!r} has no known unit; write for example 8GB or 900MiB")
    power = " KMGT".index((match[2] or " ").upper())
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def _percent(value: str) -> float:
    """Read a number from 0 to 100; ``nan`` is refused, which a range by comparison would accept."""
    try:
        number = float(value.strip().removesuffix("%"))
    except ValueError:
        number = -1.0
    if not 0 <= number <= 100:
        raise ValueError(f"{value!r} is not a number from 0 to 100")
    return number


def _shard(value: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", value, re.ASCII)
    k, n = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= k <= n:
        raise ValueError(f"{value!r} is not K/N with K from 1 to N; write for example 2/8")
    return k, n


def _named_folder(value: str) -> tuple[str, Path]:
    """Read ``NAME=PATH``, or ``PATH`` whose last folder is the name, which becomes part of BIDS URIs."""
    name, equals, path = value.partition("=")
    if not equals:
        name, path = Path(value).absolute().name, value
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or not path:
        raise ValueError(f"{value!r} is not NAME=PATH, with a name of letters, digits, - _ and .")
    if name in ("source", "input"):
        raise ValueError(f"the app itself uses the name {name!r}; choose another for {path}")
    return name, Path(path)


class PathOf(click.Path):
    """A path; an empty one (a shell variable that is not set) is not the current folder."""

    def __init__(self, **kinds: bool) -> None:
        super().__init__(path_type=Path, **kinds)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse an empty path."""
        if value == "":
            self.fail("the path is empty. Is a shell variable not set?", param, ctx)
        return super().convert(value, param, ctx)


class _RecipeName(click.ParamType[str]):
    """The name of a recipe, or the path of a TOML file."""

    name = "text"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        """Complete the names of the package's recipes, otherwise paths."""
        from bidsapp.config import RECIPES

        names = sorted(path.stem for path in RECIPES.glob("*.toml"))
        found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")]


MEMORY = Parsed("amount", _bytes)
PERCENT = Parsed("percent", _percent)
SHARD = Parsed("K/N", _shard)
NAMED_FOLDER = Parsed("dataset", _named_folder)
RECIPE = _RecipeName()
