"""What becomes of NSD's volumes: masks, labels with their names, the noise ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.text import read_text


def mask_of(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Give 1 where a ROI volume is above 0; NSD marks voxels outside by 0 and, in cortex, by -1."""
    return (values > 0).astype(np.uint8)


def labels_of(path: Path, values: NDArray[np.float64]) -> NDArray[np.int16]:
    """Give a segmentation's labels, 0 where NSD has 0 or -1.

    Raises
    ------
    AppError
        Exit code 65 where the values are no labels.
    """
    inside = np.where(values > 0, values, 0)
    if inside.max(initial=0) > np.iinfo(np.int16).max or (inside != np.rint(inside)).any():
        raise _bad(path, "must hold labels, whole numbers, but it has other values above 0")
    return inside.astype(np.int16)


def read_label_table(path: Path) -> dict[int, str]:
    """Read a FreeSurfer colour table (``.ctab``): a number and a name a line, perhaps with a colour.

    Returns
    -------
    dict of int to str
        Labels above 0, sorted.

    Raises
    ------
    AppError
        Exit code 65 with the line that is no such entry.
    """
    names: dict[int, str] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            value = int(words[0])
        except ValueError as error:
            raise _bad(path, f"line {number}: {words[0][:40]!r} is no label number") from error
        colour = words[-4:]
        named = words[1:-4] if len(words) > 5 and all(w.isdecimal() for w in colour) else words[1:]
        if value > 0 and named:
            names[value] = " ".join(named)[:80]
    return dict(sorted(names.items()))


@dataclass(frozen=True)
class Repeats:
    """How often the images were shown whose responses are averaged.

    Attributes
    ----------
    counts : dict of int to int
        Number of repeats to number of images.
    of_test : bool
        Whether these are the shared (test) images; else all images, where no shared one was shown.
    """

    counts: dict[int, int]
    of_test: bool

    @property
    def mean_inverse(self) -> float:
        """Mean of 1/n over images: the noise variance that averaging leaves, as a share of one trial's."""
        return sum(c / n for n, c in self.counts.items()) / sum(self.counts.values())


def count_repeats(shown: Sequence[NDArray[np.int64]], shared: NDArray[np.int64]) -> Repeats:
    """Count how often each shared image was shown in these sessions.

    Parameters
    ----------
    shown : sequence of ndarray of int64, (trials,)
        73k IDs of every trial of each session.
    shared : ndarray of int64
        73k IDs of the shared images.
    """
    images, counts = np.unique(np.concatenate(shown), return_counts=True)
    test = np.isin(images, shared)
    averaged = counts[test] if test.any() else counts
    numbers, of_images = np.unique(averaged, return_counts=True)
    found = {int(n): int(c) for n, c in zip(numbers, of_images, strict=True)}
    return Repeats(found, bool(test.any()))


def noise_ceiling(ncsnr: NDArray[np.float64], repeats: Repeats) -> NDArray[np.float32]:
    """Give the share of variance of averaged responses that the stimulus can explain.

    ``100 * ncsnr^2 / (ncsnr^2 + 1/n)`` for averages of n trials (Allen et al. 2022, Methods, "Noise
    ceiling estimation"); where images differ in n, 1/n is averaged over them, in the NSD Data Manual's words
    ``(A/3 + B/2 + C/1) / (A + B + C)`` for A, B and C images with 3, 2 and 1 trials.

    Parameters
    ----------
    ncsnr : ndarray of float64
        Standard deviation of the signal by that of the noise of one trial.
    repeats : Repeats

    Returns
    -------
    ndarray of float32
        Percent, 0 to 100; NaN where ncsnr is no number from 0 on.
    """
    squared = np.where(np.isfinite(ncsnr) & (ncsnr >= 0), ncsnr, np.nan) ** 2
    ceiling: NDArray[np.float32] = (100 * squared / (squared + repeats.mean_inverse)).astype(np.float32)
    return ceiling


def _bad(path: Path, what: str) -> AppError:
    return AppError(f"{path}: {what}.", exit_code=ExitCode.BAD_DATA, path=path)
