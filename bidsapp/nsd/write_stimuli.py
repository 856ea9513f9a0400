"""Writing the images, their table and their captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bidsapp.errors import AppError, ExitCode
from bidsapp.nsd import sidecars, stimuli
from bidsapp.nsd.files import Writer
from bidsapp.nsd.plan import ConversionPlan
from bidsapp.nsd.sources import Inventory, missing_captions
from bidsapp.storage.atomic import atomic_path, clear_partials
from bidsapp.storage.hdf5 import DAMAGED
from bidsapp.storage.text import read_tsv
from bidsapp.system.logging import track


def write_stimuli(
    plan: ConversionPlan, root: Path, writer: Writer, inventory: Inventory, *, png: bool
) -> None:
    """Link NSD's brick of images into the dataset ``root``, or write the images that were shown as PNG."""
    if plan.brick is None:
        return
    folder = root / "stimuli"
    clear_partials(folder)
    if not png:
        writer.link_or_copy(plan.brick.path, folder / stimuli.BRICK_NAME)
        return
    shown = [plan.design.shown(s.number, session.number) for s in plan.subjects for session in s.sessions]
    images = [int(i) for i in np.unique(np.concatenate(shown)) if plan.brick.written[i - 1]]
    try:
        written = _write_pngs(plan.brick.path, folder, images)
    except AppError as error:
        inventory.add_damaged(error, plan.brick.path)
        return
    writer.written += written
    writer.kept += len(images) - written


def _write_pngs(brick_path: Path, folder: Path, images: Sequence[int]) -> int:
    """Write images, given by 73k IDs, as ``stim-<label>_image.png`` unless they exist; return how many."""
    from PIL import Image

    missing = [i for i in images if not (folder / stimuli.png_name(i)).is_file()]
    if not missing:
        return 0
    with stimuli.open_brick(brick_path) as brick:
        for image in track(missing, "writing the stimuli"):
            try:
                pixels = np.asarray(brick[image - 1], np.uint8)
            except DAMAGED as error:
                what = f"{brick_path}: row {image - 1} cannot be read ({error})."
                raise AppError(what, exit_code=ExitCode.BAD_DATA) from error
            with atomic_path(folder / stimuli.png_name(image)) as temporary:
                Image.fromarray(pixels).save(temporary, format="PNG", compress_level=6)
    return len(missing)


def write_stimulus_tables(
    plan: ConversionPlan, root: Path, writer: Writer, inventory: Inventory, *, png: bool
) -> None:
    """Write ``stimuli.tsv`` and ``captions.tsv`` for all images of NSD, whichever subjects are converted.

    The tables do not depend on the subjects, so they can be converted one by one or in parallel; only
    ``present`` depends on which PNG files exist.
    """
    folder, info = root / "stimuli", plan.info
    images = range(1, len(info) + 1)
    ids = [f"stim-{stimuli.label(i)}" for i in images]
    present = _present(plan, folder, png)
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
        chosen = present if png else np.ones(len(info), np.bool_)
        of_image = _read_captions(plan, folder, ids, inventory)
        if of_image is not None:
            rows = [(i, c) for i, own, use in zip(ids, of_image, chosen, strict=True) if use for c in own]
            path = folder / "captions.tsv"
            writer.tsv(path, {"stimulus_id": [r[0] for r in rows], "caption": [r[1] for r in rows]})
            writer.json(path.with_suffix(".json"), sidecars.CAPTIONS_COLUMNS)


def _present(plan: ConversionPlan, folder: Path, png: bool) -> NDArray[np.bool_]:
    """Whether the dataset has the pixels of each image."""
    n = len(plan.info)
    if not png:
        found = (folder / stimuli.BRICK_NAME).is_file()
        return plan.brick.written if found and plan.brick else np.full(n, found)
    names = {path.name for path in folder.glob("stim-*.png")} if folder.is_dir() else set()
    return np.array([stimuli.png_name(i) in names for i in range(1, n + 1)])


def _read_captions(
    plan: ConversionPlan, folder: Path, ids: Sequence[str], inventory: Inventory
) -> list[list[str]] | None:
    """Return the captions of each image; None if all files are damaged."""
    captions: dict[int, list[str]] = {}
    damaged = False
    for file in plan.captions:
        try:
            of_file = stimuli.read_captions([file])
        except AppError as error:
            inventory.add_damaged(error, file, "Unzip COCO's annotations again.")
            damaged = True
            continue
        for image, lines in of_file.items():
            known = captions.setdefault(image, [])
            known += [line for line in lines if line not in known]
    info, path = plan.info, folder / "captions.tsv"
    texts = [captions.get(coco_id, []) for coco_id in info.coco_id]
    if not all(texts) and path.is_file():
        # An earlier run may have had files that are missing now.
        earlier = _earlier_captions(path)
        texts = [own or earlier.get(stimulus, []) for own, stimulus in zip(texts, ids, strict=True)]
    covered = {split for split, own in zip(info.coco_split, texts, strict=True) if own}
    if damaged and not covered:
        return None
    if not damaged:  # a damaged file was reported already
        reported = {m.path for m in inventory.missing}
        absent = [missing_captions(plan.nsd, split) for split in sorted({*info.coco_split} - covered)]
        inventory.missing += [m for m in absent if m.path not in reported]
    n = sum(not own for split, own in zip(info.coco_split, texts, strict=True) if split in covered)
    if n:
        inventory.notes.append(f"{n} images have no caption in {', '.join(map(str, plan.captions))}.")
    return texts


def _earlier_captions(path: Path) -> dict[str, list[str]]:
    table = read_tsv(path)
    earlier: dict[str, list[str]] = {}
    for stimulus, caption in zip(table.get("stimulus_id", ()), table.get("caption", ()), strict=False):
        earlier.setdefault(stimulus, []).append(caption)
    return earlier
