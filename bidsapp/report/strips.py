"""What each rung of the ladder made of a few test images: a strip of pictures a rung."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bidsapp.report.checks import RUNG_TITLES
from bidsapp.report.figures import save_png, triplet
from bidsapp.report.records import LadderPictures, SubjectReport

#: Images in a strip.
N_SHOWN = 6

_STREAM = 0x57A1  # keeps these random numbers apart from others made from the same seed


@dataclass(frozen=True)
class Strip:
    """One rung's pictures, side by side in one file."""

    title: str
    src: str
    alt: str
    width: int


@dataclass(frozen=True)
class Strips:
    """All rungs, the images that they show (id and caption), and how these were chosen."""

    rows: tuple[Strip, ...]
    images: tuple[tuple[str, str], ...]
    rule: str


def write_strips(root: Path, report: SubjectReport) -> Strips | None:
    """Write a strip for every rung into ``root/sub-XX/figures``; those of an earlier report are removed.

    Parameters
    ----------
    root : Path
        Folder of the report.
    report : SubjectReport

    Returns
    -------
    Strips or None
        None where the run has no ladder.
    """
    folder = root / f"sub-{report.subject}" / "figures"
    task = f"_task-{report.task}" if report.task else ""
    start, written = f"sub-{report.subject}{task}_desc-", set()
    found, rows = report.ladder, []
    chosen: list[int] = choose(found, report.seed) if found else []
    for rung, images in found.rungs.items() if found else ():
        path = folder / f"{start}{rung.replace('_', '')}_ladder.png"
        pixels: NDArray[np.uint8] = triplet([images[i] for i in chosen])
        save_png(path, pixels)
        written.add(path.name)
        src, title = path.relative_to(root).as_posix(), RUNG_TITLES.get(rung, rung)
        title += ", stage 1" if found is not None and rung in found.first_only else ""
        rows.append(Strip(title, src, _alt(title, found, chosen), pixels.shape[1]))
    for old in folder.glob(f"{start}*_ladder.png"):
        if old.name not in written:
            old.unlink(missing_ok=True)
    if not rows or found is None:
        return None
    captions = found.captions or ("",) * len(found.ids)
    n, of = len(chosen), len(found.ids)
    rule = (
        f"{n} of the ladder's {of} test images, drawn at random (seed {report.seed}) without looking at any "
        "score. Each line shows them in the same order, after the last stage that its rung makes."
    )
    return Strips(tuple(rows), tuple((found.ids[i], captions[i]) for i in chosen), rule)


def choose(pictures: LadderPictures, seed: int) -> list[int]:
    """Draw the images to show, in rising order of their place."""
    rng = np.random.default_rng([seed, _STREAM])
    return sorted(int(i) for i in rng.permutation(len(pictures.ids))[:N_SHOWN])


def _alt(title: str, found: LadderPictures | None, chosen: list[int]) -> str:
    ids = ", ".join(found.ids[i] for i in chosen) if found else ""
    return f"{title}: pictures of {ids}, from left to right."
