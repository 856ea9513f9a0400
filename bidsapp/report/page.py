"""Render a template and its values to one HTML file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from bidsapp.storage.text import write_text

if TYPE_CHECKING:
    import jinja2

_TEMPLATES = Path(__file__).parent / "templates"


def render(path: Path, template: str, **values: object) -> None:
    """Render ``template`` to ``path``, atomically.

    Every value is escaped: captions, labels and error texts come from untrusted files. A value that the
    template uses but was not given is an error.
    """
    write_text(path, _environment().get_template(template).render(**values))


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
