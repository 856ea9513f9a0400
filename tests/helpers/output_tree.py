"""What a run left, to compare with what another left, and what its pages hold."""

from __future__ import annotations

import hashlib
from html.parser import HTMLParser
from pathlib import Path


def outputs(out: Path) -> dict[str, str]:
    """Content of all outputs but logs and reports, which tell times."""
    files = (p for p in out.rglob("*") if p.is_file() and not {".work", "logs"} & set(p.parts))
    return {
        p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
        if p.suffix != ".html"
    }


class Page(HTMLParser):
    """What a browser would run, load or follow."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.addresses += [str(v) for name, v in attrs if name in ("src", "href", "srcset", "data", "action")]
