"""Images of each rung of the control ladder for a few test images, one strip per rung."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bidsapp.report.checks import RUNG_TITLES
from bidsapp.report.figures import figure_stem, remove_others, save_png, side_by_side, strip_width
from bidsapp.report.records import LadderImages, SubjectReport

#: Images in a strip.
N_SHOWN = 6

_STREAM = 0x57A1  # separates these random numbers from others of the same seed


@dataclass(frozen=True)
class Strip:
    """Images of one rung side by side in one file."""

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
    """Write one strip per rung into ``root/sub-XX/figures``, and remove those of an earlier report.

    Returns None without a control ladder.
    """
    folder, stem = figure_stem(root, report)
    found, rows, written = report.ladder, [], set()
    if found is not None:
        chosen = choose_strip(found, report.seed)
        ids = ", ".join(found.ids[i] for i in chosen)
        for rung, images in found.rungs.items():
            path = folder / f"{stem}{rung.replace('_', '')}_ladder.png"
            if not report.drawn:
                save_png(path, side_by_side([images[i] for i in chosen]))
            written.add(path.name)
            title = RUNG_TITLES.get(rung, rung) + (", stage 1" if rung in found.first_only else "")
            alt = f"{title}: images of {ids}, from left to right."
            rows.append(Strip(title, path.relative_to(root).as_posix(), alt, strip_width(len(chosen))))
    remove_others(folder, f"{stem}*_ladder.png", written)
    if not rows or found is None:
        return None
    captions = found.captions or ("",) * len(found.ids)
    rule = (
        f"{len(chosen)} of the ladder's {len(found.ids)} test images, drawn at random (seed {report.seed}) "
        "regardless of their scores. Rows show them in the same order, after the last stage of the rung."
    )
    return Strips(tuple(rows), tuple((found.ids[i], captions[i]) for i in chosen), rule)


def choose_strip(images: LadderImages, seed: int) -> list[int]:
    """Draw the images to show, in ascending order."""
    rng = np.random.default_rng([seed, _STREAM])
    return sorted(int(i) for i in rng.permutation(len(images.ids))[:N_SHOWN])
