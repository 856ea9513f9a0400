"""Figures of a subject's report that are made of what a run holds: the voxels used, the rungs' pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bidsapp.bids.outputs import OutputTree
from bidsapp.data.betas import background_of, read_map
from bidsapp.report.mosaic import write_mosaic
from bidsapp.report.records import ExtraFigure, LadderPictures

if TYPE_CHECKING:
    from bidsapp.data.stimuli import StimulusSet
    from bidsapp.pipeline.records import Reconstruction


def write_voxels_used(found: Reconstruction, tree: OutputTree) -> ExtraFigure:
    """Write the mosaic of the voxels used, coloured by their noise ceiling where there is a map.

    Parameters
    ----------
    found : Reconstruction
    tree : OutputTree

    Returns
    -------
    ExtraFigure
        Of the report's section on the data.
    """
    mask, kept = found.mask, np.asarray(found.zscored["kept"], dtype=bool)
    used = np.nan_to_num(mask.to_volume(kept)) > 0
    background = background_of(found.subject.sessions[0], mask.shape)
    ceiling = None
    if found.subject.noise_ceiling is not None:
        ceiling = mask.to_volume(read_map(found.subject.noise_ceiling, mask))
    task = f"_task-{tree.task}" if tree.task else ""
    path = tree.path("figure", name=f"sub-{tree.subject}{task}_desc-voxels_mask")
    write_mosaic(path, used, mask.affine, background, ceiling, "Noise ceiling, %")
    n = f"{int(kept.sum()):,}"
    colour = "" if ceiling is None else ", coloured by their noise ceiling in per cent"
    beneath = "over the mean size of the first responses" if background.any() else "on black"
    return ExtraFigure(
        "data",
        path.relative_to(tree.out_dir).as_posix(),
        "Voxels used",
        f"Slices through the brain in three directions with the {n} voxels used{colour}.",
        f"The {n} voxels that were decoded{colour}, {beneath}. Slices are at mm in the betas' own space.",
    )


def ladder_pictures(found: Reconstruction, stimuli: StimulusSet) -> LadderPictures | None:
    """Gather the last stage of every rung; None where no ladder was climbed."""
    if not found.rungs:
        return None
    captions = tuple((stimuli.captions(i) or ("",))[0] for i in found.ladder_ids)
    last = {n: r.stage1 if r.stage2 is None else r.stage2 for n, r in found.rungs.items()}
    first_only = tuple(name for name, rung in found.rungs.items() if rung.stage2 is None)
    made = {name: images for name, images in last.items() if images is not None}
    return LadderPictures(found.ladder_ids, captions, made, first_only)
