"""Whether stimuli can be read, from the start and end of their files; only a sample is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bidsapp.data._pixels import Bricks, decode, require_image, size_fault, size_of
from bidsapp.data._stimulus_table import Place
from bidsapp.errors import AppError, Problem

#: Images that are decoded, evenly spread over those given.
N_DECODED = 16
#: Files that are listed one by one.
_LISTED = 10
_FIX = "Copy or create the image again."
_FIX_BRICK = "Copy the file again, or correct the rows in the table of stimuli."
_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"


def check_images(places: Sequence[Place], n_decoded: int = N_DECODED) -> list[Problem]:
    """Check the images of stimuli with a few file accesses per image; missing files are left out.

    For a PNG or JPEG file, the header and the mark at its end are read: a truncated file lacks the mark.
    A file without it is decoded, and counts as damaged only if that fails. A brick must have the rows.
    In addition, a sample is decoded.
    Returns one problem for each damaged file up to ten, and one for the rest.
    """
    existing = [place for place in dict.fromkeys(places) if place.path.is_file()]
    decoded = set(range(0, len(existing), max(1, len(existing) // n_decoded))) if n_decoded else set()
    found: dict[Path, Problem] = {}
    with Bricks() as bricks:
        for index, place in enumerate(existing):
            if place.path in found:
                continue
            try:
                _look(place, bricks, whole=index in decoded)
            except AppError as error:
                fix = _FIX if place.row is None else _FIX_BRICK
                found[place.path] = Problem.of(error, place.path, fix)
    problems = list(found.values())
    if len(problems) > _LISTED:
        rest = len(problems) - _LISTED
        folder = problems[_LISTED].path
        what = f"{rest} more image{'s' if rest > 1 else ''} cannot be read, starting with this one."
        problems = [*problems[:_LISTED], Problem(folder, what, _FIX)]
    return problems


def _look(place: Place, bricks: Bricks, *, whole: bool) -> None:
    """Raise AppError if the image of a place is damaged."""
    if place.row is not None:
        if whole:
            bricks.row(place.path, place.row)
        else:
            bricks.require(place.path, place.row)
    else:
        require_image(place.path)
        if whole or not _ends_well(place.path):
            decode(place.path)


def _ends_well(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            start = stream.read(33)
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - 12))
            end = stream.read(12)
    except OSError:
        return False
    if start.startswith(_PNG_START):
        size = int.from_bytes(start[16:20], "big"), int.from_bytes(start[20:24], "big")
        return min(size) > 0 and not size_fault(*size) and end == _PNG_END
    size_of(path)
    return not start.startswith(_JPEG_START) or end.endswith(_JPEG_END)
