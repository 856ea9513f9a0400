"""Figures of a subject's report: the voxels used, the rungs' images, and what regions decode to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bidsapp.bids.outputs import OutputTree, stimulus_label
from bidsapp.data.betas import background_of, read_map
from bidsapp.report.figures import save_png, side_by_side
from bidsapp.report.mosaic import Slices, write_mosaic
from bidsapp.report.records import ExtraFigure, LadderImages

if TYPE_CHECKING:
    from bidsapp.data.stimuli import StimulusSet
    from bidsapp.evidence import RoiAnalysis
    from bidsapp.pipeline.records import Reconstruction


def write_voxels_used(found: Reconstruction, tree: OutputTree) -> ExtraFigure:
    """Write the mosaic of the voxels used, coloured by their noise ceiling if there is a map."""
    mask, kept = found.mask, np.asarray(found.zscored["kept"], dtype=bool)
    used = np.nan_to_num(mask.to_volume(kept)) > 0
    background = background_of(found.subject.sessions[0], mask.shape)
    ceiling = None
    if found.subject.noise_ceiling is not None:
        ceiling = mask.to_volume(read_map(found.subject.noise_ceiling, mask))
    path = tree.path("figure", name=f"{_stem(tree)}_desc-voxels_mask")
    write_mosaic(path, Slices(used, mask.affine, background, ceiling, "Noise ceiling, %"))
    n = f"{int(kept.sum()):,}"
    colour = "" if ceiling is None else ", coloured by their noise ceiling in percent"
    beneath = "over the mean amplitude of the first responses" if background.any() else "on black"
    return ExtraFigure(
        "data",
        path.relative_to(tree.out_dir).as_posix(),
        "Voxels used",
        f"Slices through the brain in three directions with the {n} voxels used{colour}.",
        f"The {n} voxels that were decoded{colour}, {beneath}. Slice positions are in mm in the space of "
        "the betas.",
    )


def ladder_images(found: Reconstruction, stimuli: StimulusSet) -> LadderImages | None:
    """Collect the last stage of every rung; None without a control ladder."""
    if not found.rungs:
        return None
    captions = tuple((stimuli.captions(i) or ("",))[0] for i in found.ladder_ids)
    last = {n: r.stage1 if r.stage2 is None else r.stage2 for n, r in found.rungs.items()}
    first_only = tuple(name for name, rung in found.rungs.items() if rung.stage2 is None)
    made = {name: images for name, images in last.items() if images is not None}
    return LadderImages(found.ladder_ids, captions, made, first_only)


def write_region_figures(found: RoiAnalysis | None, tree: OutputTree) -> tuple[ExtraFigure, ...]:
    """Write each region's images of both stages in one file, and remove those of earlier runs."""
    stem = f"{_stem(tree)}_desc-region"
    figures, written = [], set()
    rows = zip(found.names, found.n_voxels, found.stage1, found.stage2, strict=True) if found else ()
    for number, (name, size, stage1, stage2) in enumerate(rows, start=1):
        path = tree.path("figure", name=f"{stem}{number}{stimulus_label(name)}_synthetic")
        save_png(path, side_by_side([stage1, stage2]))
        written.add(path.name)
        figures.append(
            ExtraFigure(
                section="regions",
                path=path.relative_to(tree.out_dir).as_posix(),
                title=name,
                alt=f"Decoded from activity in {name} alone: VDVAE decode, then latent diffusion.",
                caption=f"Synthetic activation: its {size:,} voxels at 1, all others at 0.",
            )
        )
    for old in tree.path("figures").glob(f"{stem}*_synthetic.png"):
        if old.name not in written:
            old.unlink(missing_ok=True)
    return tuple(figures)


def _stem(tree: OutputTree) -> str:
    return f"sub-{tree.subject}" + (f"_task-{tree.task}" if tree.task else "")
