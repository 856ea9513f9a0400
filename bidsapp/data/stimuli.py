"""The images that were shown: ids, split, pixels and captions.

A dataset has a table of stimuli (see :mod:`bidsapp.data._stimulus_table`) and either one image file per
stimulus or an HDF5 brick: (N, H, W, 3) of uint8, or N encoded image files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bidsapp.data._pixels import Bricks, decode, require_image, size_of
from bidsapp.data._stimulus_table import Place, find_table, read_stimulus_table
from bidsapp.data.captions import CAPTION_TABLES, read_captions
from bidsapp.data.image_check import check_images
from bidsapp.errors import AppError, ExitCode, Problem, ProblemCollector

#: Takes an iterable and a text, returns the iterable (a progress bar).
Show = Callable[[Sequence[str], str], Any]


@dataclass(frozen=True)
class StimulusSet:
    """The stimuli of a dataset. Create one with :meth:`open`; pixels are read on demand.

    Attributes
    ----------
    ids : tuple of str
        Ids without ``stim-``, in the table's order. Stimuli whose column ``present`` is 0, false or
        no are left out.
    split_column : dict of str to str
        ``train`` or ``test`` of each id that has one.
    captions_path : Path or None
        The table of captions; None if the dataset has none.
    """

    table: Path
    ids: tuple[str, ...]
    split_column: dict[str, str]
    captions_path: Path | None
    _places: Mapping[str, Place] = field(repr=False)
    _captions: Mapping[str, tuple[str, ...]] = field(repr=False)

    @classmethod
    def open(
        cls,
        bids_dir: str | os.PathLike[str],
        captions: str | os.PathLike[str] | None = None,
        *,
        found: ProblemCollector | None = None,
    ) -> StimulusSet:
        """Read the tables of ``bids_dir/stimuli``, or of the dataset that contains a derivative.

        Parameters
        ----------
        bids_dir : path
            A dataset, or a ``derivatives/<name>`` folder of one.
        captions : path, optional
            Table of captions (see :func:`~bidsapp.data.captions.read_captions`); by default that of
            the stimuli folder, if it exists.
        found : ProblemCollector, optional
            Takes what is wrong with the captions, so that everything else can still be checked.

        Raises
        ------
        AppError
            Exit code 66 without a stimuli table, 65 if it or the captions cannot be read.
        InputProblems
            Ids that are missing or listed twice, and files outside the dataset: all at once.
        """
        table = read_stimulus_table(find_table(Path(bids_dir)))
        usual = (table.path.parent / name for name in CAPTION_TABLES)
        path = Path(captions) if captions is not None else next((p for p in usual if p.is_file()), None)
        texts: Mapping[str, tuple[str, ...]] = {}
        if path is not None:
            fix = "Save it as a table of UTF-8 text with the columns stimulus_id and caption."
            with found.at(path, fix) if found is not None else nullcontext():
                texts = read_captions(path, table.ids)
        return cls(
            table=table.path,
            ids=table.ids,
            split_column=table.split_column,
            captions_path=path,
            _places=table.places,
            _captions=texts,
        )

    @property
    def folder(self) -> Path:
        """The ``stimuli`` folder."""
        return self.table.parent

    def captions(self, stimulus: str) -> tuple[str, ...]:
        """Captions of one stimulus; () if it has none."""
        return self._captions.get(stimulus, ())

    def path(self, stimulus: str) -> Path:
        """File with the pixels of one stimulus: an image, or the brick that contains it."""
        return self._place(stimulus).path

    def images(
        self, ids: Sequence[str], size: int | None = None, show: Show | None = None
    ) -> NDArray[np.uint8]:
        """Read images.

        Parameters
        ----------
        size : int, optional
            Side in pixels of the square that every image is resized to (PIL's bilinear filter). By
            default the images are not resized and must all have the same size.
        show : callable, optional
            ``show(ids, "text")`` yields the ids one by one and may draw a progress bar.

        Returns
        -------
        ndarray of uint8, shape (n, H, W, 3)
            RGB, 0 to 255, in the order of ``ids``.

        Raises
        ------
        AppError
            Exit code 66 for a missing file, 65 for one that is not an image, is too large to be decoded
            safely, or whose size differs from the others'.
        """
        order = list(ids)
        iterable = show(order, "Reading stimuli") if show is not None else order
        result: NDArray[np.uint8] | None = None
        with Bricks() as bricks:
            for index, stimulus in enumerate(iterable):
                pixels = self._pixels(stimulus, bricks)
                if size is not None and pixels.shape[:2] != (size, size):
                    resized = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)
                    pixels = np.asarray(resized)
                if result is None:
                    result = np.empty((len(order), *pixels.shape), np.uint8)
                if pixels.shape != result.shape[1:]:
                    raise _bad(
                        self.path(stimulus),
                        f"stimulus {stimulus} has {pixels.shape[1]} x {pixels.shape[0]} pixels, others "
                        f"have {result.shape[2]} x {result.shape[1]}; all must have the same size",
                    )
                result[index] = pixels
        if result is None:
            return np.empty((0, size or 0, size or 0, 3), np.uint8)
        return result

    def by_size(self, ids: Sequence[str]) -> list[list[int]]:
        """Group the positions in ``ids`` by image size, in order of appearance; reads headers only."""
        groups: dict[tuple[int, int], list[int]] = {}
        for place, size in enumerate(self._sizes(ids)):
            groups.setdefault(size, []).append(place)
        return list(groups.values())

    def size(self, stimulus: str) -> tuple[int, int]:
        """Height and width of one image in pixels; raises the errors of :meth:`images`."""
        return self._sizes([stimulus])[0]

    def common_side(self, ids: Sequence[str]) -> int | None:
        """Side in pixels of the square that images of several sizes are resized to; reads headers only.

        It is the shortest side of all, so that no image is enlarged; None if all have the same size.
        """
        sizes = set(self._sizes(ids))
        return min(min(size) for size in sizes) if len(sizes) > 1 else None

    def digest(self, stimulus: str) -> str:
        """Hexadecimal SHA-256 of a stimulus' stored bytes (of its file or its row) and its captions."""
        return self.digests([stimulus])[0]

    def digests(self, ids: Sequence[str]) -> list[str]:
        """Return the :meth:`digest` of several stimuli."""
        with Bricks() as bricks:
            return [self._digest(stimulus, bricks) for stimulus in ids]

    def files_missing(self, ids: Sequence[str] | None = None) -> list[str]:
        """Paths of missing image files, for all stimuli or for some; sorted, without duplicates."""
        paths = {self._place(stimulus).path for stimulus in (self.ids if ids is None else ids)}
        return sorted(str(path) for path in paths if not path.is_file())

    def unreadable(self, ids: Sequence[str]) -> list[Problem]:
        """Find images that cannot be read; see :func:`bidsapp.data.image_check.check_images`."""
        return check_images([self._place(stimulus) for stimulus in ids])

    def _digest(self, stimulus: str, bricks: Bricks) -> str:
        place = self._place(stimulus)
        if place.row is None:
            require_image(place.path)
        stored = place.path.read_bytes() if place.row is None else bricks.stored(place.path, place.row)
        digest = hashlib.sha256(stored)
        for caption in self.captions(stimulus):
            digest.update(b"\0" + caption.encode())
        return digest.hexdigest()

    def _sizes(self, ids: Sequence[str]) -> list[tuple[int, int]]:
        with Bricks() as bricks:
            places = [self._place(stimulus) for stimulus in ids]
            return [size_of(p.path) if p.row is None else bricks.size(p.path, p.row) for p in places]

    def _place(self, stimulus: str) -> Place:
        try:
            return self._places[stimulus]
        except KeyError:
            raise _bad(self.table, f"has no stimulus {stimulus!r}") from None

    def _pixels(self, stimulus: str, bricks: Bricks) -> NDArray[np.uint8]:
        place = self._place(stimulus)
        if place.row is not None:
            return bricks.row(place.path, place.row)
        return decode(place.path)


def _bad(path: Path, what: str) -> AppError:
    return AppError(f"{path}: {what}.", exit_code=ExitCode.BAD_DATA)
