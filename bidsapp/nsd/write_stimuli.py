"""Write the images, their table and their captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bidsapp.errors import AppError
from bidsapp.nsd import sidecars, stimuli
from bidsapp.nsd.files import Writer
from bidsapp.nsd.plan import Plan
from bidsapp.nsd.sources import Findings, missing_captions
from bidsapp.storage.atomic import clear_partials
from bidsapp.storage.text import read_tsv


def write_stimuli(plan: Plan, root: Path, writer: Writer, found: Findings, *, png: bool) -> None:
    """Link NSD's brick of images, or write those that were shown as PNG.

    Parameters
    ----------
    plan : Plan
    root : Path
        The dataset.
    writer : Writer
    found : Findings
        Takes what is wrong with the brick.
    png : bool
    """
    if plan.brick is None:
        return
    folder = root / "stimuli"
    clear_partials(folder)
    if not png:
        writer.place(plan.brick, folder / plan.brick.name)
        return
    shown = [plan.design.shown(s.number, session.number) for s in plan.subjects for session in s.sessions]
    images = [int(i) for i in np.unique(np.concatenate(shown))]
    try:
        written = stimuli.write_pngs(plan.brick, folder, images)
    except AppError as error:
        found.damaged(error, plan.brick)
        return
    writer.written += written
    writer.kept += len(images) - written


def write_stimulus_tables(plan: Plan, root: Path, writer: Writer, found: Findings, *, png: bool) -> None:
    """Write ``stimuli.tsv`` and ``captions.tsv``: all images of NSD, whichever subjects are converted.

    The tables are the same for all subjects, so converting one after the other, or several at once, leaves
    them as they are; only ``present`` follows the PNG files that are there.
    """
    folder, info = root / "stimuli", plan.info
    images = range(1, len(info) + 1)
    ids = [f"stim-{stimuli.label(i)}" for i in images]
    present = _present(folder, len(info), png)
    columns: dict[str, Sequence[Any]] = {"stimulus_id": ids, "type": ["image"] * len(info)}
    if png:
        columns["file"] = [stimuli.png_name(i) for i in images]
    else:
        columns["file"] = [stimuli.BRICK_NAME] * len(info)
        columns["row"] = range(len(info))
    columns |= {
        "present": present.tolist(),
        "split": ["test" if shared else "train" for shared in info.shared],
        "NSD_id": images,
        "COCO_id": info.coco_id,
        "COCO_split": info.coco_split,
        "crop_box": info.crop_box,
    }
    writer.tsv(folder / "stimuli.tsv", columns)
    writer.json(folder / "stimuli.json", sidecars.stimuli_columns(list(columns)))
    if plan.captions:
        wanted = present if png else np.ones(len(info), np.bool_)
        _write_captions(plan, folder, ids, wanted, writer, found)


def _present(folder: Path, n: int, png: bool) -> NDArray[np.bool_]:
    if not png:
        return np.full(n, (folder / stimuli.BRICK_NAME).is_file())
    there = {path.name for path in folder.glob("stim-*.png")} if folder.is_dir() else set()
    return np.array([stimuli.png_name(i) in there for i in range(1, n + 1)])


def _write_captions(
    plan: Plan,
    folder: Path,
    ids: Sequence[str],
    wanted: NDArray[np.bool_],
    writer: Writer,
    found: Findings,
) -> None:
    captions: dict[int, list[str]] = {}
    damaged = False
    for file in plan.captions:
        try:
            of_file = stimuli.read_captions([file])
        except AppError as error:
            found.damaged(error, file, "Unzip COCO's annotations again.")
            damaged = True
            continue
        for image, lines in of_file.items():
            there = captions.setdefault(image, [])
            there += [line for line in lines if line not in there]
    info, path = plan.info, folder / "captions.tsv"
    texts = [captions.get(coco_id, []) for coco_id in info.coco_id]
    if not all(texts) and path.is_file():
        # An earlier run may have had files that are gone now.
        earlier = _earlier_captions(path)
        texts = [own or earlier.get(stimulus, []) for own, stimulus in zip(texts, ids, strict=True)]
    having = {split for split, own in zip(info.coco_split, texts, strict=True) if own}
    if damaged and not having:
        return
    known = {m.path for m in plan.missing}
    absent = [missing_captions(plan.nsd, split) for split in sorted({*info.coco_split} - having)]
    # A damaged file was named already.
    found.missing += [m for m in absent if m.path not in known and not damaged]
    n = sum(not own for split, own in zip(info.coco_split, texts, strict=True) if split in having)
    if n:
        found.notes.append(f"{n} images have no caption in {', '.join(map(str, plan.captions))}.")
    rows = [
        (stimulus, caption)
        for stimulus, own, want in zip(ids, texts, wanted, strict=True)
        if want
        for caption in own
    ]
    writer.tsv(path, {"stimulus_id": [r[0] for r in rows], "caption": [r[1] for r in rows]})
    writer.json(path.with_suffix(".json"), sidecars.CAPTIONS_COLUMNS)


def _earlier_captions(path: Path) -> dict[str, list[str]]:
    table = read_tsv(path)
    earlier: dict[str, list[str]] = {}
    for stimulus, caption in zip(table.get("stimulus_id", ()), table.get("caption", ()), strict=False):
        earlier.setdefault(stimulus, []).append(caption)
    return earlier
