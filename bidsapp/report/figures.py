"""Which test images a report shows, and their pictures: stimulus, stage 1 and stage 2 side by side."""

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
#: Side of one picture and the gap between two, in pixels.
SIDE = 192
GAP = 6

_SAMPLE_STREAM = 0x5A3D  # keeps the sample's random numbers apart from others made from the same seed


@dataclass(frozen=True)
class Tile:
    """One picture of the report: a test image's stimulus and its two reconstructions."""

    index: int
    stimulus_id: str
    src: str
    alt: str
    caption: str
    scores: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class TileGroup:
    """Pictures shown together, with the rule by which they were chosen."""

    key: str
    title: str
    rule: str
    tiles: tuple[Tile, ...]


def rank_scores(report: SubjectReport) -> tuple[str, ...]:
    """Return the scores that rank the images: those asked for, or the default of :class:`SubjectReport`."""
    if report.rank_by:
        return tuple(name for name in report.rank_by if name in report.per_image)
    names = [n for n in report.per_image if n.startswith("stage2_")]
    two_way = [n for n in names if is_two_way(n.removeprefix("stage2_"))]
    two_way.sort(key=lambda n: "clip" not in n)
    return (*two_way, *(n for n in names if n == "stage2_pixcorr"))


def order(report: SubjectReport) -> NDArray[np.int64]:
    """Test images from best to worst.

    Sorted by the first ranking score, ties by the next, and at last by stimulus id, so the order
    never depends on that of the input; images without a value come last.

    Returns
    -------
    ndarray of int64, shape (n,)
    """
    keys: list[NDArray[np.generic]] = [np.asarray(report.stimulus_ids)]
    for name in reversed(rank_scores(report)):
        better = metric_label(name.partition("_")[2]).higher_is_better
        values = np.asarray(report.per_image[name], dtype=np.float64)
        keys.append(np.nan_to_num(-values if better else values, nan=np.inf))
    return np.lexsort(keys).astype(np.int64)


def choose(report: SubjectReport) -> list[tuple[str, str, str, list[int]]]:
    """Choose the images to show: key, title, rule and indices of each group.

    Where there are too few images for distinct groups, all are shown in one.
    """
    n = len(report.stimulus_ids)
    if n <= N_SAMPLE:
        return [
            (
                "all",
                "All test images",
                "From best to worst." if rank_scores(report) else "",
                list(order(report)),
            )
        ]
    rng = np.random.default_rng([report.seed, _SAMPLE_STREAM])
    by_id = np.argsort(np.asarray(report.stimulus_ids))
    sample = by_id[np.sort(rng.permutation(n)[:N_SAMPLE])]
    rule = (
        f"{N_SAMPLE} of {n} test images, drawn at random (seed {report.seed}) without looking at any score."
    )
    groups = [("sample", "A random sample", rule, [int(i) for i in sample])]
    names = rank_scores(report)
    if not names:
        return groups
    k = min(N_RANKED, n // 3)
    ranked = [int(i) for i in order(report)]
    middle = (n - k) // 2
    titles = [_score_title(name) for name in names]
    by = titles[0] + (f", ties by {' and '.join(titles[1:])}" if titles[1:] else "")
    groups += [
        ("best", "Best", f"The {k} test images with the best {by}.", ranked[:k]),
        (
            "median",
            "Median",
            f"The {k} test images in the middle of the same ranking.",
            ranked[middle : middle + k],
        ),
        ("worst", "Worst", f"The {k} test images at the end of the same ranking.", ranked[n - k :]),
    ]
    return groups


def write_tiles(root: Path, report: SubjectReport) -> tuple[TileGroup, ...]:
    """Write the pictures into ``root/sub-XX/figures`` and describe them.

    Each picture is 3 x 192 pixels wide: at most 20 files. Pictures of an earlier report of the same
    subject and task that are no longer shown are removed.

    Parameters
    ----------
    root : Path
        Folder of the report.
    report : SubjectReport

    Returns
    -------
    tuple of TileGroup
        Empty where the run has no images.
    """
    columns = (report.stimuli, report.stage1, report.stage2)
    if not report.stimulus_ids or any(c is None for c in columns):
        return ()
    folder = root / f"sub-{report.subject}" / "figures"
    task = f"_task-{report.task}" if report.task else ""
    stem = f"sub-{report.subject}{task}_desc-"
    groups, written = [], set()
    for key, title, rule, indices in choose(report):
        tiles = []
        for position, index in enumerate(indices, start=1):
            path = folder / f"{stem}{key}{position}_recon.png"
            save_png(path, triplet([c[index] for c in columns if c is not None]))
            written.add(path.name)
            tiles.append(_tile(report, index, path.relative_to(root).as_posix()))
        groups.append(TileGroup(key, title, rule, tuple(tiles)))
    for old in folder.glob(f"{stem}*_recon.png"):
        if old.name not in written:
            old.unlink(missing_ok=True)
    return tuple(groups)


def triplet(images: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Set pictures side by side, each 192 pixels high and wide, with transparent gaps.

    Parameters
    ----------
    images : list of ndarray of uint8, shape (H, W, 3)
        Smaller ones are enlarged (bicubic), larger ones reduced (Lanczos).

    Returns
    -------
    ndarray of uint8, shape (192, 192 * n + 6 * (n - 1), 4)
    """
    width = SIDE * len(images) + GAP * (len(images) - 1)
    canvas = np.zeros((SIDE, width, 4), np.uint8)
    for i, image in enumerate(images):
        enlarge = max(image.shape[:2]) <= SIDE
        how = Image.Resampling.BICUBIC if enlarge else Image.Resampling.LANCZOS
        left = i * (SIDE + GAP)
        resized = Image.fromarray(np.ascontiguousarray(image)).resize((SIDE, SIDE), how)
        canvas[:, left : left + SIDE, :3] = np.asarray(resized)
        canvas[:, left : left + SIDE, 3] = 255
    return canvas


def save_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write pixels, uint8 (H, W, 3 or 4), as a PNG file, atomically; the same bytes every time."""
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", compress_level=6)


def _score_title(name: str) -> str:
    stage, _, metric = name.partition("_")
    title = metric_label(metric).title
    return f"{title[0].lower()}{title[1:]} of stage {stage.removeprefix('stage')}"


def _tile(report: SubjectReport, index: int, src: str) -> Tile:
    stimulus = report.stimulus_ids[index]
    caption = report.captions[index] if index < len(report.captions) else ""
    shown = f": {caption}" if caption else ""
    alt = f"Stimulus {stimulus}{shown}. Beside it its reconstructions from the brain, stage 1 and stage 2."
    scores = []
    for name in _tile_scores(report):
        metric = name.partition("_")[2]
        value = float(report.per_image[name][index])
        scores.append((_short_title(metric), format_value(metric_label(metric), value)))
    return Tile(index, stimulus, src, alt, caption, tuple(scores))


def _tile_scores(report: SubjectReport) -> tuple[str, ...]:
    """Return the two scores printed below a picture: the first that ranks, and pixel correlation."""
    names = [*rank_scores(report)[:1], "stage2_pixcorr"]
    return tuple(dict.fromkeys(n for n in names if n in report.per_image))


def _short_title(metric: str) -> str:
    if is_two_way(metric):
        return "two-way"
    return {"pixcorr": "pixel r", "ssim": "SSIM"}.get(metric, metric_label(metric).title)
