"""Turns a template and its values into one HTML file."""

from __future__ import annotations

from pathlib import Path

from bidsapp.io import write_text

_TEMPLATES = Path(__file__).parent / "templates"


def render(path: Path, template: str, **values: object) -> None:
    """Render ``template`` to ``path``, atomically.

    Every value is escaped: captions, labels and error texts come from files of others. A value that
    the template names and that is not given is an error.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_text(path, environment.get_template(template).render(**values))
