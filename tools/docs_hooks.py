"""MkDocs hook: fill pages with what the package knows, so that they cannot be out of date.

A line ``<!-- generated: NAME -->`` becomes the output of the function for that name in :data:`GENERATORS`,
a line ``<!-- included: FILE -->`` a page of the repository's top folder.
"""

from __future__ import annotations

import ast
import dataclasses
import html
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "bidsapp" / "recipes"
_SHIPPED = ("brain-diffuser", "sd15-ip-adapter", "embedded")
_MARK = re.compile(r"^<!-- (generated|included): (.+?) -->$", re.MULTILINE)
#: Links of pages at the top of the repository -> links of the site.
_LINKS = (("docs/", ""), ("SECURITY.md", "security.md"), ("CHANGES.md", "changelog.md"))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill the marks of a page (called by MkDocs)."""
    return _MARK.sub(lambda m: GENERATORS[m[2]]() if m[1] == "generated" else include(m[2]), markdown)


def on_page_content(html_text: str, **_: Any) -> str:
    """Take the roles of Sphinx out of docstrings (called by MkDocs)."""
    return re.sub(r":[a-z]+:<code>(?:~?[\w.]*\.)?([^<]+)</code>", r"<code>\1</code>", html_text)


def include(name: str) -> str:
    """Give a page of the top folder, with links as the site has them."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for old, new in _LINKS:
        text = text.replace(f"]({old}", f"]({new}")
    return text


def commands() -> dict[str, click.Command]:
    """Give the commands of the app: the BIDS App itself, then the subcommands."""
    from bidsapp.cli import app
    from bidsapp.cli.bids_app import SUBCOMMANDS
    from bidsapp.cli.command import subcommand

    return {"bidsapp-recon": app} | {f"bidsapp-recon {name}": subcommand(name) for name in SUBCOMMANDS}


class _Recorder(click.HelpFormatter):
    """Takes down a help text as Markdown instead of laying it out."""

    def __init__(self) -> None:
        super().__init__(width=10_000)
        self.usage = ""
        self.parts: list[str] = []

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        self.usage = f"{prog} {args}".strip()

    def write_text(self, text: str) -> None:
        if text.startswith("\b\n"):  # laid out by hand: examples
            self.parts.append(f"```\n{text[2:]}\n```")
            return
        self.parts.append("\n\n".join(_words(part) for part in re.split(r"\n\s*\n", text.replace("\b", ""))))

    def write_heading(self, heading: str) -> None:
        self.parts.append(f"**{heading}**")

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        self.write_heading(name)
        yield

    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        self.parts.append("\n\n".join(f"`{first}`\n:   {_words(second) or '-'}" for first, second in rows))


def _words(text: str) -> str:
    """Text of a help page on one line, with nothing that Markdown or HTML would take for markup."""
    line = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([*_\[\]{}|`])", r"\\\1", line)


def cli() -> str:
    """Options of every command, in the groups of its own help."""
    parts = []
    for name, command in commands().items():
        recorder = _Recorder()
        command.format_help(click.Context(command, info_name=name), recorder)
        parts += [f"## {name} {{#{command.name}}}", f"```\n{recorder.usage}\n```", *recorder.parts]
    return "\n\n".join(parts)


def recipe_names() -> str:
    """Table of the recipes that come with the app."""
    rows = ["| recipe | content | after |", "|---|---|---|"]
    for name in _SHIPPED:
        recipe = tomllib.loads((RECIPES / f"{name}.toml").read_text(encoding="utf-8"))
        rows.append(f"| `{recipe['name']}` | {recipe['title']} | {recipe['reference']} |")
    return "\n".join(rows)


def recipe_keys() -> str:
    """Sections and keys of the recipe's model, with the values of the recipes that come with the app."""
    from bidsapp.recipes import Recipe

    recipes = {n: tomllib.loads((RECIPES / f"{n}.toml").read_text(encoding="utf-8")) for n in _SHIPPED}
    plain = {name: about for name, about in _fields(Recipe).items() if not _section(about[0])}
    rows = "\n\n".join(f"`{name}`\n:   {_kind(kind)}: {text}" for name, (kind, text) in plain.items())
    parts = ["At the top of the file:", rows]
    for name, (kind, _) in _fields(Recipe).items():
        if section := _section(kind):
            title = name if section is kind else f"{name}.&lt;target&gt;"
            parts += [f"### [{title}] {{#{name}}}", _first_line(section.__doc__)]
            parts.append(_table(section, name, section is kind, recipes))
    for name in _SHIPPED:
        text = (RECIPES / f"{name}.toml").read_text(encoding="utf-8")
        body = "\n".join("    " + line if line else "" for line in text.splitlines())
        parts.append(
            f'??? note "{name}.toml, with the source of every number"\n\n    ```toml\n{body}\n    ```'
        )
    return "\n\n".join(parts)


def _table(section: type, name: str, single: bool, recipes: dict[str, Any]) -> str:
    columns = list(recipes)
    described = any(text for _, text in _fields(section).values())
    head = ["key", "type", *(["meaning"] if described else []), *(f"`{c}`" for c in columns)]
    rows = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for key, (kind, text) in _fields(section).items():
        cells = [f"`{key}`", _kind(kind), *([_words(text)] if described else [])]
        for recipe in recipes.values():
            if single:
                cells.append(f"`{_toml(recipe[name][key])}`")
            else:
                cells.append("<br>".join(f"{t}: `{_toml(table[key])}`" for t, table in recipe[name].items()))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _fields(model: type) -> dict[str, tuple[Any, str]]:
    """(type, description) of each field of a dataclass or a pydantic model."""
    if (found := getattr(model, "model_fields", None)) is not None:
        return {name: (field.annotation, field.description or "") for name, field in found.items()}
    hints = typing.get_type_hints(model)
    return {field.name: (hints[field.name], "") for field in dataclasses.fields(model)}


def _section(kind: Any) -> type | None:
    """Model of a section, or of each table of a section."""
    for candidate in (kind, *typing.get_args(kind)[1:]):
        if isinstance(candidate, type) and (
            dataclasses.is_dataclass(candidate) or hasattr(candidate, "model_fields")
        ):
            return candidate
    return None


def _kind(kind: Any) -> str:
    """Name a type as a reader of TOML knows it."""
    if origin := typing.get_origin(kind):
        inside = (
            [_kind(a) for a in typing.get_args(kind) if a is not ...] if origin is not typing.Literal else []
        )
        if origin is typing.Literal:
            return "one of " + ", ".join(f"`{a}`" for a in typing.get_args(kind))
        if origin in (typing.Union, types.UnionType):
            return " or ".join(inside)
        if origin in (tuple, list):
            return f"list of {inside[0]}s"
        return inside[0]
    names = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def descriptions() -> str:
    """Table of the ``desc`` labels of output files."""
    from bidsapp.bids.outputs import DESCRIPTIONS

    rows = [f"| `desc-{label}` | {_words(text)} |" for label, text in DESCRIPTIONS.items()]
    return "\n".join(["| label | content |", "|---|---|", *rows])


def packages() -> str:
    """Table of the packages and modules of ``bidsapp``, from the first lines of their docstrings."""
    rows = ["| where | content |", "|---|---|"]
    folders = sorted(p for p in (ROOT / "bidsapp").iterdir() if (p / "__init__.py").is_file())
    modules = sorted(p for p in (ROOT / "bidsapp").glob("*.py") if not p.stem.startswith("__"))
    for path in folders + modules:
        source = path / "__init__.py" if path.is_dir() else path
        doc = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8")))
        rows.append(f"| `{path.name}{'/' if path.is_dir() else ''}` | {_first_line(doc)} |")
    return "\n".join(rows)


#: Calls from the command to a written image: depth and function. A test compares them with the code.
WALK = (
    (0, "cli.bids_app.app"),
    (1, "cli.bids_app.make_config"),
    (1, "participant.level.run_participants"),
    (2, "planning.check.check_run"),
    (2, "models.startup.check_models"),
    (2, "participant.level._finish_subject"),
    (3, "participant.level._compute_subject"),
    (4, "participant.reconstruct.reconstruct"),
    (5, "participant.reconstruct.prepare_stage2"),
    (6, "pipeline.responses.mask_betas"),
    (6, "pipeline.responses.average_over_repeats"),
    (6, "pipeline.responses.zscore_by_training"),
    (6, "pipeline.images.targets_of_stimuli"),
    (6, "pipeline.decoding.fit_ridge"),
    (6, "pipeline.decoding.predict_and_calibrate"),
    (6, "pipeline.images.first_stage"),
    (5, "pipeline.images.second_stage"),
    (5, "analyses.ladder.score_rungs"),
    (5, "analyses.checks.gather_evidence"),
    (4, "outputs.subject.write_subject"),
    (5, "bids.outputs.write_images"),
)


def walk() -> str:
    """List the calls of a participant run, from the command to a written image."""
    lines = []
    for depth, name in WALK:
        module, _, function = name.rpartition(".")
        path = ROOT / "bidsapp" / f"{module.replace('.', '/')}.py"
        body = ast.parse(path.read_text(encoding="utf-8")).body
        doc = next(
            ast.get_docstring(n) for n in body if isinstance(n, ast.FunctionDef) and n.name == function
        )
        lines.append(f"{'    ' * depth}- `{name}`: {_first_line(doc)}")
    return "\n".join(lines)


def layers() -> str:
    """Layers of the import contract."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for contract in settings["tool"]["importlinter"]["contracts"]:
        if contract["type"] == "layers":
            lines = "\n".join(contract["layers"]).replace("bidsapp.", "")
            return f"```\n{lines}\n```"
    raise LookupError("pyproject.toml has no contract of layers")


def _first_line(doc: str | None) -> str:
    """First paragraph of a docstring as Markdown."""
    first = " ".join((doc or "").strip().split("\n\n")[0].split())
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", first.replace("``", "`")).replace("|", r"\|")


def api() -> str:
    """Write the reference of the public names of ``bidsapp``."""
    import bidsapp

    names = [name for name in bidsapp.__all__ if not name.startswith("_")]
    return "\n\n".join(_reference("bidsapp", name, getattr(bidsapp, name)) for name in names)


def metrics() -> str:
    """Write the reference of ``bidsapp.metrics``, less what ``bidsapp`` has itself."""
    import bidsapp
    import bidsapp.metrics

    public = {name: getattr(bidsapp.metrics, name) for name in bidsapp.metrics.__all__}
    shown = {n: thing for n, thing in public.items() if callable(thing) and n not in bidsapp.__all__}
    return "\n\n".join(_reference("bidsapp.metrics", n, thing) for n, thing in shown.items())


def _reference(package: str, name: str, thing: Any) -> str:
    path = f"{thing.__module__}.{thing.__qualname__}"
    return f"::: {path}\n    options:\n      heading: {package}.{name}\n      toc_label: {name}"


GENERATORS: dict[str, Callable[[], str]] = {
    "api": api,
    "cli": cli,
    "descriptions": descriptions,
    "layers": layers,
    "metrics": metrics,
    "packages": packages,
    "recipe keys": recipe_keys,
    "recipe names": recipe_names,
    "walk": walk,
}
