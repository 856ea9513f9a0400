"""Count what makes the package easy to find one's way in, and exit 1 where a limit is exceeded.

``python tools/house.py`` prints the counts; ``--list`` also names what was counted.
"""

from __future__ import annotations

import argparse
import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_ARGUMENTS, MOST_LINES = 6, 400
#: The limit that holds today, and the goal. Lower a limit when a count has come down; never raise one.
LIMITS = {
    "modules at the top of bidsapp/": (8, 8),
    "lines in bidsapp/": (31_200, 28_000),
    "import layers": (12, 12),
    "layer contracts that are not exhaustive": (0, 0),
    f"functions of more than {MOST_ARGUMENTS} arguments": (0, 0),
    f"files of more than {MOST_LINES} lines": (0, 0),
}


def files() -> Iterator[tuple[str, str]]:
    """Give the package's files: path and text."""
    for path in sorted((ROOT / "bidsapp").rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), path.read_text()


def long_signatures() -> Iterator[str]:
    """Name the functions with too many arguments (self and cls do not count)."""
    for path, text in files():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                given = node.args
                names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
                n = len(names) - (names[:1] in (["self"], ["cls"]))
                if n > MOST_ARGUMENTS:
                    yield f"{path}:{node.lineno} {node.name} ({n})"


def counts() -> Iterator[tuple[int, list[str]]]:
    """Give each count of ``LIMITS``, in its order, with the names of what was counted."""
    lines = {path: text.count("\n") for path, text in files()}
    top = [path for path in lines if path.count("/") == 1 and not path.endswith("/__init__.py")]
    yield len(top), top
    yield sum(lines.values()), []
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    contracts = [c for c in settings["contracts"] if c["type"] == "layers"]
    yield max(len(c["layers"]) for c in contracts), []
    not_exhaustive = [c["name"] for c in contracts if not c.get("exhaustive")]
    yield len(not_exhaustive), not_exhaustive
    signatures = list(long_signatures())
    yield len(signatures), signatures
    long_files = [f"{path} ({n})" for path, n in lines.items() if n > MOST_LINES]
    yield len(long_files), long_files


def main() -> int:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="name what was counted")
    with_names = parser.parse_args().list
    exceeded = False
    print(f"{'':40}{'count':>8}{'limit':>8}{'goal':>8}")
    for (name, (limit, goal)), (count, found) in zip(LIMITS.items(), counts(), strict=True):
        exceeded |= count > limit
        print(f"{name:40}{count:8}{limit:8}{goal:8}{'  EXCEEDED' if count > limit else ''}")
        if with_names or count > limit:
            for what in found:
                print(f"  {what}")
    return int(exceeded)


if __name__ == "__main__":
    sys.exit(main())
