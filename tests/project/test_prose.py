"""Documents and the package's text are plain English: spelling, and phrases that ``tools/prose.py`` lists."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("prose", ROOT / "tools" / "prose.py")
assert _SPEC is not None
assert _SPEC.loader is not None
prose = importlib.util.module_from_spec(_SPEC)
sys.modules["prose"] = prose
_SPEC.loader.exec_module(prose)

PACKAGE = prose.files(ROOT / "bidsapp")
PAGES = prose.pages()


@pytest.mark.parametrize("path", PAGES + PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_phrases(path: Path) -> None:
    found = prose.check(path)
    assert not found, "\n" + "\n".join(str(finding) for finding in found)


def test_spelling() -> None:
    command = [sys.executable, "-m", "codespell_lib", *map(str, [*PAGES, *PACKAGE])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("suffix", "text", "line", "found"),
    [
        (".md", "Fine.\nIt writes a row\nan image.\n", 2, "a row an image"),
        (".md", "```sh\nsay it\n```\nand `say` it\nThe log says so.", 5, "says"),
        (".md", "[the verb](verb.md)", 1, "verb"),
        (".md", "It is 40 % of it.", 1, "0 %"),
        (".py", 'x = 1\n"""Doc.\n\nThe picture.\n"""\n', 4, "picture"),
        (".py", 'x = "picture"  # a key\nprint(f"{x} is no number")\n', 2, "is no number"),
        (".py", "# one line, and\n# by luck another\n", 2, "luck"),
        (".py", 'print("these " "verbs")\n', 1, "verbs"),
        (".py", 'f"{x:.0f} % of it"\n', 1, "} %"),
        (".toml", "a = 1  # see, it is\n# to go on with\n", 2, "go on"),
        (".html", '<p class="picture">{{ picture }} says</p>\n', 1, "says"),
    ],
)
def test_what_is_found(tmp_path: Path, suffix: str, text: str, line: int, found: str) -> None:
    path = tmp_path / f"page{suffix}"
    path.write_text(text)
    assert [(finding.line, finding.found) for finding in prose.check(path)] == [(line, found)]


@pytest.mark.parametrize(
    "text",
    [
        "There is no mask. It is no longer needed. The two share a name and a row.",
        "Alongside, besides that, a verbose log. 40% of the images; 2% more.",
        "The value of a voxel, the image of a subject, and give the file a name.",
    ],
)
def test_plain_english_passes(tmp_path: Path, text: str) -> None:
    path = tmp_path / "page.md"
    path.write_text(text)
    assert prose.check(path) == []
