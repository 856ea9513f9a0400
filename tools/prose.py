"""Find words and phrases that plain English does not use, in documents and in the package's text.

python tools/prose.py                       README.md, the other top-level pages and docs/
python tools/prose.py bidsapp/bids FILE...  folders or files: .py (strings and comments), .md, .toml, .html

Each line of the output names the file, the line, what was found and what to write instead. Code in Markdown
and in double or single backquotes is not read, nor headings that are one lower-case word.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SUFFIXES = (".html", ".j2", ".md", ".py", ".toml")
#: White space within a paragraph.
_SPACE = r"(?:[^\S\n]+|[^\S\n]*\n[^\S\n]*)"


def _phrases() -> list[tuple[re.Pattern[str], str]]:
    """Patterns with what to write instead."""
    data = tomllib.loads((ROOT / "tools" / "phrases.toml").read_text(encoding="utf-8"))
    compiled = []
    for pattern, advice in data["phrases"].items():
        for name, words in data["words"].items():
            pattern = pattern.replace(name, f"(?:{'|'.join(words)})")
        pattern = rf"(?<![\w-])(?:{pattern})(?![\w-])".replace(" ", _SPACE)
        compiled.append((re.compile(pattern, re.IGNORECASE), advice))
    return [*compiled, (re.compile(r"[\d}] %(?!\w)"), "percent without a space (40%)")]


_PHRASES = _phrases()
_CODE = re.compile(
    r"^## [a-z-]+$|^[ \t]*(```+|~~~+).*?^[ \t]*\1[ \t]*$|``[^`]+``|`[^`\n]+`|<[^>\s]+>|\]\([^)]*\)|\{#[\w-]+\}|https?://\S+",
    re.MULTILINE | re.DOTALL,
)
_MARKUP = re.compile(r"\{%.*?%\}|\{\{.*?\}\}|\{#.*?#\}|<style.*?</style>|<[^>]+>", re.DOTALL)


class Finding(NamedTuple):
    """One phrase to change: where it is, and what to write instead."""

    path: Path
    line: int
    found: str
    advice: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.found!r} -> {self.advice}"


def check(path: Path) -> list[Finding]:
    """Find the phrases of one file.

    Parameters
    ----------
    path : Path
        Its suffix decides what is read: all text of Markdown and TOML, strings of several words and comments
        of Python, text between the tags of HTML.
    """
    source = path.read_text(encoding="utf-8")
    findings = []
    for start, text in _texts(source, path.suffix):
        for pattern, advice in _PHRASES:
            for match in pattern.finditer(text):
                line = start + text.count("\n", 0, match.start())
                findings.append(Finding(path, line, " ".join(match[0].split()), advice))
    return sorted(findings, key=lambda f: f.line)


def _texts(source: str, suffix: str) -> Iterator[tuple[int, str]]:
    """Yield (first line, prose) pieces of a file."""
    if suffix == ".py":
        yield from ((line, _blank(_CODE, text)) for line, text in _python(source))
    elif suffix in (".html", ".j2"):
        yield 1, _blank(_MARKUP, source)
    elif suffix == ".toml":
        yield 1, _blank(_CODE, "\n".join(line.replace("#", " ") for line in source.split("\n")))
    else:
        yield 1, _blank(_CODE, source)


def _blank(pattern: re.Pattern[str], text: str) -> str:
    """Replace what matches by a backquote, keeping the lines."""
    return pattern.sub(lambda m: "`" + "\n" * m[0].count("\n"), text)


def _python(source: str) -> Iterator[tuple[int, str]]:
    """Yield Python source's strings of several words, and its comments, line after line joined."""
    parts = set()
    for node in ast.walk(ast.parse(source)):  # breadth first: an f-string comes before its parts
        if isinstance(node, ast.JoinedStr):
            parts |= {id(child) for child in node.values}
            pieces = (v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
            yield node.lineno, "".join(str(piece) for piece in pieces)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.lineno, node.value if " " in node.value else ""
    block: list[str] = []
    first = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, text = token.start[0], token.string.lstrip("#: ")
        if block and line == last + 1:
            block.append(text)
        else:
            if block:
                yield first, "\n".join(block)
            block, first = [text], line
        last = line
    if block:
        yield first, "\n".join(block)


def pages() -> list[Path]:
    """List README.md, the other pages at the top of the repository, docs/ and benchmarks/."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])


def files(path: Path) -> list[Path]:
    """List the files of a folder that are read; a file itself."""
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())


def main(words: list[str]) -> int:
    """Print the findings; exit code 1 where there are any."""
    chosen = [file for word in words for file in files(Path(word))] if words else pages()
    found = [finding for path in chosen for finding in check(path)]
    print("\n".join(str(finding) for finding in found))
    print(f"{len(found)} findings in {len(chosen)} files")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
