"""NSD's experimental design: which image was shown on which trial, and how often."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bidsapp.errors import AppError, ExitCode

_REQUIRED = {"masterordering": 2, "subjectim": 2, "sharedix": 2}
_NUMERIC = ("double", "single", "logical", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)))
#: NSD's file is below 1 MB and its largest variable has 80,000 numbers.
_MOST_BYTES = 1 << 24
_MOST_NUMBERS = 10_000_000
_MOST_INFLATED = 1 << 27


@dataclass(frozen=True)
class Design:
    """The design that all subjects share, with each subject's images.

    Attributes
    ----------
    order : ndarray of int64, (trials,)
        ``masterordering``: the image of every trial, as a 1-based column of ``images``.
    images : ndarray of int64, (subjects, images of a subject)
        ``subjectim``: 1-based 73k IDs. The shared images come first.
    n_shared : int
        Number of images that all subjects share: the test set.
    runs : tuple of tuple of int
        Number of trials in each run of each session; empty if the file does not contain it.
    """

    order: NDArray[np.int64]
    images: NDArray[np.int64]
    n_shared: int
    runs: tuple[tuple[int, ...], ...] = ()

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""
        return int(self.images.shape[0])

    @property
    def n_sessions(self) -> int:
        """Number of sessions; 0 if ``runs`` is empty."""
        return len(self.runs)

    @property
    def shared(self) -> NDArray[np.int64]:
        """1-based 73k IDs of the shared images, (n_shared,)."""
        return self.images[0, : self.n_shared]

    def n_trials(self, session: int) -> int:
        """Count the trials of a session (numbered from 1)."""
        return sum(self.runs[session - 1])

    def shown(self, subject: int, session: int) -> NDArray[np.int64]:
        """Return the 1-based 73k ID of every trial's image, in order; subjects and sessions count from 1.

        ``subjectim[subject - 1, masterordering[trial] - 1]``, as in NSD's own code.
        """
        start = sum(self.n_trials(s) for s in range(1, session))
        places = self.order[start : start + self.n_trials(session)] - 1
        shown: NDArray[np.int64] = self.images[subject - 1, places]
        return shown

    def run_of_trial(self, session: int) -> list[int] | None:
        """Return the run (from 1) of every trial of a session; None if the design does not contain it."""
        runs = self.runs[session - 1]
        if len(runs) == 1:
            return None
        return [run for run, count in enumerate(runs, start=1) for _ in range(count)]

    def divided(self, n_trials: int) -> Design:
        """Divide the trials into sessions of equal length, for files without session lengths.

        Raises
        ------
        ValueError
            If this leaves a remainder.
        """
        if n_trials < 1 or self.order.size % n_trials:
            raise ValueError(f"{self.order.size} trials do not make sessions of {n_trials}")
        return replace(self, runs=((n_trials,),) * (self.order.size // n_trials))


@dataclass(frozen=True)
class Repeats:
    """How often the images were shown whose responses are averaged.

    Attributes
    ----------
    counts : dict of int to int
        Number of repeats to number of images.
    of_test : bool
        Whether these are the shared (test) images; if no shared image was shown, they are all images.
    """

    counts: dict[int, int]
    of_test: bool

    @property
    def mean_inverse(self) -> float:
        """Mean of 1/n over images: the noise variance left after averaging, relative to one trial."""
        return sum(c / n for n, c in self.counts.items()) / sum(self.counts.values())


def count_repeats(shown: Sequence[NDArray[np.int64]], shared: NDArray[np.int64]) -> Repeats:
    """Count how often each shared image was shown in these sessions.

    ``shown`` holds the 73k ID of every trial of each session, ``shared`` those of the shared images.
    """
    images, counts = np.unique(np.concatenate(shown), return_counts=True)
    test = np.isin(images, shared)
    averaged = counts[test] if test.any() else counts
    numbers, of_images = np.unique(averaged, return_counts=True)
    found = {int(n): int(c) for n, c in zip(numbers, of_images, strict=True)}
    return Repeats(found, bool(test.any()))


def read_design(path: Path) -> Design:
    """Read ``nsd_expdesign.mat``.

    Only the arrays that are needed are loaded, and only after a check of their declared sizes.

    Raises
    ------
    AppError
        Exit code 65 if the file is damaged, lacks a variable, or is inconsistent.
    """
    arrays = _load(path)
    order, images, shared = (arrays[name] for name in _REQUIRED)
    order, shared = order.reshape(-1), shared.reshape(-1)
    if not order.size or order.min() < 1 or order.max() > images.shape[1]:
        raise _bad(path, f"masterordering must index the {images.shape[1]} images of a subject from 1")
    if images.min() < 1:
        raise _bad(path, "subjectim must hold 73k IDs, which start at 1")
    if any(np.unique(row).size != row.size for row in images):
        raise _bad(path, "subjectim lists an image twice for one subject")
    n = shared.size
    # Compared as sets: their order may differ.
    if not 0 < n <= images.shape[1] or (np.sort(images[:, :n], axis=1) != np.sort(shared)).any():
        raise _bad(path, "the first images of every subject in subjectim must be those in sharedix")
    return Design(order, images, n, _runs(arrays.get("stimpattern"), order.size))


def _runs(pattern: NDArray[np.int64] | None, n_trials: int) -> tuple[tuple[int, ...], ...]:
    """Trials of each run and session from ``stimpattern`` (sessions, runs, slots), 1 where one was shown."""
    if pattern is None or pattern.ndim != 3 or not np.isin(pattern, (0, 1)).all():
        return ()
    counts = pattern.sum(axis=2)
    if counts.sum() != n_trials or (counts.sum(axis=1) < 1).any():
        return ()
    return tuple(tuple(int(n) for n in session) for session in counts)


def _load(path: Path) -> dict[str, NDArray[np.int64]]:
    from scipy.io import loadmat, whosmat

    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise _bad(path, f"has {size} bytes, far more than NSD's own")
    if _inflates_to_more(path):
        raise _bad(path, f"inflates to more than {_MOST_INFLATED} bytes, far more than NSD's own")
    try:
        listed = {name: (shape, kind) for name, shape, kind in whosmat(path, appendmat=False)}
        wanted = _wanted(path, listed)
        content: dict[str, Any] = loadmat(path, appendmat=False, variable_names=wanted)
    except AppError:
        raise
    except Exception as error:  # damaged files raise a dozen kinds
        raise _bad(path, f"is not a readable MATLAB file ({error or type(error).__name__})") from error
    arrays = {}
    for name in wanted:
        value = np.asarray(content[name])
        number = value.dtype.kind in "iufb"
        # NaN and numbers that do not fit an integer would be cast to arbitrary values.
        if not number or not (np.abs(value) < 2**53).all() or (np.rint(value) != value).any():
            raise _bad(path, f"{name} must hold whole numbers")
        arrays[name] = value.astype(np.int64)
    return arrays


def _inflates_to_more(path: Path) -> bool:
    """Whether the compressed variables are longer than they should be, whatever they declare.

    A version 5 file is a header of 128 bytes followed by elements, each preceded by its type and length;
    type 15 is compressed by zlib (MathWorks, "MAT-File Format").
    """
    content, place, left = path.read_bytes(), 128, _MOST_INFLATED
    order = ">" if content[126:128] == b"MI" else "<"
    while place + 8 <= len(content):
        kind, length = struct.unpack_from(f"{order}II", content, place)
        place += 8
        if kind == 15:
            inflated = zlib.decompressobj()
            try:
                left -= len(inflated.decompress(content[place : place + length], left + 1))
            except zlib.error:
                return False  # damaged: loadmat raises the error
            if left < 0:
                return True
        place += length
    return False


def _wanted(path: Path, listed: Mapping[str, tuple[tuple[int, ...], str]]) -> list[str]:
    """Variables to load: the required ones, and ``stimpattern`` if it has the expected form."""
    for name, n_dims in _REQUIRED.items():
        if name not in listed:
            found = ", ".join(sorted(listed)[:10]) or "none"
            raise _bad(path, f"has no variable {name}; its variables are {found}")
        shape, kind = listed[name]
        if len(shape) != n_dims or not _is_array(shape, kind):
            raise _bad(path, f"{name} is a {kind} of shape {shape}, not a numeric matrix of NSD's size")
    shape, kind = listed.get("stimpattern", ((), ""))
    return [*_REQUIRED, "stimpattern"] if len(shape) == 3 and _is_array(shape, kind) else list(_REQUIRED)


def _is_array(shape: tuple[int, ...], kind: str) -> bool:
    return kind in _NUMERIC and 0 < np.prod(shape, dtype=float) <= _MOST_NUMBERS


def _bad(path: Path, what: str) -> AppError:
    return AppError(f"{path}: {what}. Download it again.", exit_code=ExitCode.BAD_DATA)
