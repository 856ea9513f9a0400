"""Which test images a report shows: stimulus, stage 1 and stage 2 side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bidsapp.report.labels import format_value, is_two_way, metric_label
from bidsapp.report.records import SubjectReport
from bidsapp.storage.atomic import atomic_path

#: Images in each of best, median and worst, and in the sample.
N_RANKED = 4
N_SAMPLE = 8
#: Side of one image and the gap between two, in pixels.
SIDE = 192
GAP = 6

_SAMPLE_STREAM = 0x5A3D  # separates the sample's random numbers from others of the same seed


@dataclass(frozen=True)
class Tile:
    """A test image's stimulus and its two reconstructions, in one file."""

    stimulus_id: str
    src: str
    alt: str
    caption: str
    scores: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class TileGroup:
    """Tiles shown together, and how they were chosen."""

    key: str
    title: str
    rule: str
    tiles: tuple[Tile, ...]


def rank_scores(report: SubjectReport) -> tuple[str, ...]:
    """Return the scores that rank the images: two-way identification of stage 2, then pixel correlation."""
    names = [n for n in report.per_image if n.startswith("stage2_")]
    two_way = [n for n in names if is_two_way(n.removeprefix("stage2_"))]
    two_way.sort(key=lambda n: "clip" not in n)
    return (*two_way, *(n for n in names if n == "stage2_pixcorr"))


def ranking(report: SubjectReport) -> NDArray[np.int64]:
    """Rank the test images: their indices from best to worst, (n,).

    Sorted by the first ranking score, ties by the next, and finally by stimulus id, so that the ranking
    does not depend on the order of the input; images without a value come last.
    """
    keys: list[NDArray[np.generic]] = [np.asarray(report.stimulus_ids)]
    for name in reversed(rank_scores(report)):
        keys.append(np.nan_to_num(-np.asarray(report.per_image[name], dtype=np.float64), nan=np.inf))
    return np.lexsort(keys).astype(np.int64)


def choose_images(report: SubjectReport) -> list[tuple[str, str, str, list[int]]]:
    """Choose the images to show: key, title, rule and indices of each group.

    With too few images for distinct groups, all are shown in one.
    """
    n = len(report.stimulus_ids)
    names = rank_scores(report)
    if n <= N_SAMPLE:
        rule = "From best to worst." if names else ""
        return [("all", "All test images", rule, list(ranking(report)))]
    rng = np.random.default_rng([report.seed, _SAMPLE_STREAM])
    by_id = np.argsort(np.asarray(report.stimulus_ids))
    sample = by_id[np.sort(rng.permutation(n)[:N_SAMPLE])]
    rule = f"{N_SAMPLE} of {n} test images, drawn at random (seed {report.seed}) regardless of their scores."
    groups = [("sample", "Random sample", rule, [int(i) for i in sample])]
    if not names:
        return groups
    k = min(N_RANKED, n // 3)
    ranked = [int(i) for i in ranking(report)]
    middle = ranked[(n - k) // 2 :][:k]
    titles = [_score_title(name) for name in names]
    ties = f"; ties are broken by {', then '.join(titles[1:])}" if titles[1:] else ""
    best = f"The {k} test images with the best {titles[0]}{ties}."
    return [
        *groups,
        ("best", "Best", best, ranked[:k]),
        ("median", "Median", f"The {k} test images in the middle of that ranking.", middle),
        ("worst", "Worst", f"The {k} test images at the end of that ranking.", ranked[n - k :]),
    ]


def write_tiles(root: Path, report: SubjectReport) -> tuple[TileGroup, ...]:
    """Write the images into ``root/sub-XX/figures`` and describe them; empty without images.

    At most 20 files, 3 x 192 pixels wide. Images of an earlier report of the same subject and task that
    are no longer shown are removed.
    """
    columns = (report.stimuli, report.stage1, report.stage2)
    if not report.stimulus_ids or (not report.drawn and any(c is None for c in columns)):
        return ()
    folder, stem = figure_stem(root, report)
    groups, written = [], set()
    for key, title, rule, indices in choose_images(report):
        tiles = []
        for position, index in enumerate(indices, start=1):
            path = folder / f"{stem}{key}{position}_recon.png"
            if not report.drawn:
                save_png(path, side_by_side([c[index] for c in columns if c is not None]))
            written.add(path.name)
            tiles.append(_tile(report, index, path.relative_to(root).as_posix()))
        groups.append(TileGroup(key, title, rule, tuple(tiles)))
    remove_others(folder, f"{stem}*_recon.png", written)
    return tuple(groups)


def figure_stem(root: Path, report: SubjectReport) -> tuple[Path, str]:
    """Folder of a subject's figures, and the start of their names."""
    task = f"_task-{report.task}" if report.task else ""
    return root / f"sub-{report.subject}" / "figures", f"sub-{report.subject}{task}_desc-"


def remove_others(folder: Path, pattern: str, keep: set[str]) -> None:
    """Remove the files of a pattern that an earlier report left."""
    for old in folder.glob(pattern):
        if old.name not in keep:
            old.unlink(missing_ok=True)


def side_by_side(images: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Put images next to each other, each 192 x 192 pixels, with transparent gaps.

    Parameters
    ----------
    images : list of ndarray of uint8, (H, W, 3)
        Smaller ones are enlarged (bicubic), larger ones reduced (Lanczos).

    Returns
    -------
    ndarray of uint8, (192, 192 * n + 6 * (n - 1), 4)
    """
    canvas = np.zeros((SIDE, strip_width(len(images)), 4), np.uint8)
    for i, image in enumerate(images):
        enlarge = max(image.shape[:2]) <= SIDE
        how = Image.Resampling.BICUBIC if enlarge else Image.Resampling.LANCZOS
        left = i * (SIDE + GAP)
        resized = Image.fromarray(np.ascontiguousarray(image)).resize((SIDE, SIDE), how)
        canvas[:, left : left + SIDE, :3] = np.asarray(resized)
        canvas[:, left : left + SIDE, 3] = 255
    return canvas


def strip_width(n: int) -> int:
    """Width of n images next to each other, in pixels."""
    return SIDE * n + GAP * (n - 1)


def save_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write pixels, uint8 (H, W, 3 or 4), as a PNG file, atomically; the same bytes every time."""
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", compress_level=6)


def _score_title(name: str) -> str:
    stage, _, metric = name.partition("_")
    title = metric_label(metric).title
    return f"stage-{stage.removeprefix('stage')} {title[0].lower()}{title[1:]}"


def _tile(report: SubjectReport, index: int, src: str) -> Tile:
    stimulus = report.stimulus_ids[index]
    caption = report.captions[index] if index < len(report.captions) else ""
    shown = f": {caption}" if caption else ""
    alt = f"Stimulus {stimulus}{shown}. Next to it its reconstructions from the brain, stage 1 and stage 2."
    # The first ranking score, and pixel correlation.
    names = dict.fromkeys([*rank_scores(report)[:1], "stage2_pixcorr"])
    scores = []
    for name in (n for n in names if n in report.per_image):
        metric = name.partition("_")[2]
        value = float(report.per_image[name][index])
        scores.append((_short_title(metric), format_value(metric_label(metric), value)))
    return Tile(stimulus, src, alt, caption, tuple(scores))


def _short_title(metric: str) -> str:
    return "two-way" if is_two_way(metric) else {"pixcorr": "pixel r"}.get(metric, metric_label(metric).title)
