"""The regions of a subject: masks, segmentations and their labels."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from bidsapp.bids import _rois
from bidsapp.bids._index import IndexedFile
from bidsapp.bids.inputs import Dataset
from bidsapp.errors import AppError
from bidsapp.storage.nifti import load_volume

LOG = logging.getLogger("bidsapp")


def region_masks(dataset: Dataset, subject: str, shape: tuple[int, ...]) -> dict[str, NDArray[np.bool_]]:
    """Find the regions of a subject.

    If several ROIs were chosen, these are the regions. Otherwise they are all that this and further datasets
    have in the betas' task and space: every mask, every segmentation as a whole (its labels above 0), and
    each of its labels, with ventral and dorsal parts joined (``V1v`` and ``V1d`` become ``V1``). Regions of
    further datasets are called ``dataset:region``.

    Parameters
    ----------
    shape : tuple of int
        (x, y, z) of the betas; images of another shape are left out.

    Returns
    -------
    dict of str to ndarray of bool, (x, y, z)
    """
    chosen = dataset.rois[subject]
    named = chosen.items() if len(chosen) > 1 else _available(dataset.region_files.get(subject, {}))
    found: dict[str, NDArray[np.bool_]] = {}
    for name, roi in named:
        try:
            volume = load_volume(roi.path)
            if volume.data.shape == shape and name not in found:
                found[name] = roi.inside(volume)
        except AppError as error:  # of a region that was not requested by name
            LOG.warning("region %s is left out: %s", name, error)
    return found


def _available(files: Mapping[str, Iterable[IndexedFile]]) -> Iterator[tuple[str, _rois.Roi]]:
    for dataset, each in files.items():
        before = f"{dataset}:" if dataset else ""
        for file in each:
            kind = file.get("suffix")
            name = file.get("label") or file.get("segmentation") or file.get("desc")
            if kind not in ("mask", "dseg") or not name:
                continue
            yield before + name, _rois.Roi(file.path)
            if kind == "dseg":
                try:
                    labels = _rois.read_labels(file.path)
                except AppError as error:
                    LOG.warning("labels of %s are left out: %s", name, error)
                    continue
                yield from ((before + k, _rois.Roi(file.path, v)) for k, v in _joined(labels).items())


def _joined(labels: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Join ventral and dorsal parts of the same name; others stay as they are."""
    found: dict[str, tuple[int, ...]] = {}
    for name, values in labels.items():
        base = name[:-1]
        if name[-1:] in ("v", "d") and {base + "v", base + "d"} <= labels.keys():
            found[base] = tuple(sorted({*found.get(base, ()), *values}))
        elif name:
            found[name] = values
    return found
