"""Outputs of a run, to compare with those of another; the contents of its pages; records of complete runs."""

from __future__ import annotations

import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path


def outputs(out: Path) -> dict[str, str]:
    """Content of all outputs except logs and reports, which contain times."""
    files = (p for p in out.rglob("*") if p.is_file() and not {".work", "logs"} & set(p.parts))
    return {
        p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
        if p.suffix != ".html"
    }


class Page(HTMLParser):
    """Everything that a browser would run, load or follow."""

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


def record_complete(root: Path) -> Path:
    """Record the tables of all subjects as those of complete runs; return ``root``."""
    for folder in root.glob("sub-*/func"):
        sizes: dict[str, dict[str, int]] = {}
        for path in folder.glob("*.tsv"):
            task = re.search(r"_(task-[A-Za-z0-9]+_)", path.name)
            name = f"{task[1]}done.json" if task else "done.json"
            sizes.setdefault(name, {})[path.relative_to(root).as_posix()] = path.stat().st_size
        for name, outputs in sizes.items():
            record = root / "logs" / folder.parent.name / name
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps({"outputs": outputs}))
    return root
