"""Contents of the reports: frozen records of plain values.

A score's name is ``<stage>_<metric>``, e.g. ``stage2_two_way_clip``, as in the columns of the metrics
tables; metrics without an entry in :mod:`bidsapp.report.labels` are shown under their own name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bidsapp.evidence import Evidence

#: The conditions of a run, in display order.
CONDITIONS = ("brain", "null", "oracle")
STAGES = ("stage1", "stage2")


@dataclass(frozen=True)
class ScoreRow:
    """One row of the summary table: the mean of one metric in one condition and stage.

    Attributes
    ----------
    condition : str
        ``brain``; ``null`` (responses and images shuffled against each other in training);
        ``oracle`` (true latents in place of the predicted ones).
    stage : str
        ``stage1`` or ``stage2``.
    metric : str
        e.g. ``pixcorr``, ``ssim``, ``two_way_clip``.
    mean, low, high : float
        Mean over test images and its 95% interval (None where there is none).
    chance, chance_low, chance_high : float or None
        Chance level, and the 95% range of the mean under random pairings.
    n_images : int or None
        Number of test images in the mean.
    ties : int
        Ties in two-way identification, which count one half.
    p : float or None
        Permutation p of the pairing.
    reverse : float or None
        Two-way identification of reconstructions by their stimuli.
    """

    condition: str
    stage: str
    metric: str
    mean: float
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    chance_low: float | None = None
    chance_high: float | None = None
    n_images: int | None = None
    ties: int = 0
    p: float | None = None
    reverse: float | None = None


@dataclass(frozen=True)
class RidgePenalty:
    """The ridge penalty of one target; ``note`` states how it was chosen."""

    alpha: float
    note: str = ""


@dataclass(frozen=True)
class ExtraFigure:
    """A figure that is already in the output dataset.

    Attributes
    ----------
    section : str
        ``reconstructions``, ``scores``, ``regions`` or ``data``.
    path : str
        Relative to the folder of the report, with forward slashes.
    title, alt, caption : str
        ``alt`` describes the image for those who cannot see it.
    """

    section: str
    path: str
    title: str
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class LadderImages:
    """Images of each rung of the control ladder, for the same test images.

    Attributes
    ----------
    ids, captions : tuple of str
        One entry per image (``captions`` may be empty).
    rungs : mapping of str to ndarray of uint8, (n, H, W, 3)
        Last stage of each rung, in display order; names of :data:`bidsapp.evidence.RUNGS`.
    first_only : tuple of str
        Rungs that end at stage 1.
    """

    ids: tuple[str, ...]
    captions: tuple[str, ...]
    rungs: Mapping[str, NDArray[np.uint8]]
    first_only: tuple[str, ...] = ()


@dataclass(frozen=True)
class SubjectReport:
    """Contents of ``sub-XX.html``.

    Attributes
    ----------
    subject, task, space : str
        BIDS labels without ``sub-``, ``task-``, ``space-``.
    stimulus_ids, captions : tuple of str
        One entry per test image (``captions`` may be empty).
    stimuli, stage1, stage2 : ndarray of uint8, (n, H, W, 3), or None
        In the order of ``stimulus_ids``; H and W may differ between the three. None where the run failed
        before.
    per_image : mapping of str to ndarray, (n,)
        Score name (``stage2_pixcorr``) to its value for each image, brain condition.
    penalties : mapping of str to RidgePenalty
        By target.
    counts : mapping of str to number
        In display order: ``{"sessions": 3, "trials": 2250, ...}``. The methods text uses ``sessions``,
        ``trials``, ``training images``, ``test images`` and ``voxels used`` (or ``voxels``).
    repeats : mapping of str to mapping of int to int
        ``training`` and ``test``: how many images were shown once, twice and so on.
    settings : mapping of str to value
        The recipe's settings and the options of the run; nested mappings are shown as ``a.b``.
    versions : mapping of str to str
        This app first.
    seed : int
        Of the run; it also draws the sample of images.
    errors, warnings : tuple of str
        Shown in full; the first line of each is its heading.
    run_id : str
        Folder of the run in ``logs``.
    duration_s : float or None
        Wall time in seconds.
    drawn : bool
        Whether the figures exist already; then the page alone is written, and needs no images.
    """

    subject: str
    task: str = ""
    space: str = ""
    recipe: str = ""
    stimulus_ids: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    stimuli: NDArray[np.uint8] | None = None
    stage1: NDArray[np.uint8] | None = None
    stage2: NDArray[np.uint8] | None = None
    per_image: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)
    scores: tuple[ScoreRow, ...] = ()
    penalties: Mapping[str, RidgePenalty] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)
    repeats: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    figures: tuple[ExtraFigure, ...] = ()
    ladder: LadderImages | None = None
    evidence: Evidence | None = None
    run_id: str = ""
    duration_s: float | None = None
    drawn: bool = False


@dataclass(frozen=True)
class Column:
    """One column of the group table: a metric of a stage in a condition (and task)."""

    name: str
    condition: str
    stage: str
    metric: str
    task: str = ""


@dataclass(frozen=True)
class GroupMean:
    """A mean over ``n`` subjects with its 95% t interval (None with fewer than two)."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class SubjectChecks:
    """Findings and tests of one subject's run.

    Attributes
    ----------
    counts : mapping of str to int
        Number of findings of each severity (:class:`bidsapp.evidence.Finding`); empty without their table.
    broken : tuple of (str, str)
        Stage and sentence of each finding that is ``broken``, the first cause first.
    p : mapping of str to float
        Permutation p of the subject, by column name.
    chance : mapping of str to (float, float)
        95% range of the subject's mean score under random pairings, by column name.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    broken: tuple[tuple[str, str], ...] = ()
    p: Mapping[str, float] = field(default_factory=dict)
    chance: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class SubjectEntry:
    """One subject of the group.

    ``values`` are by column name, ``n_images`` (of the brain) by task; ``report`` and ``figure`` are paths
    relative to the group report, None where the file is missing.
    """

    label: str
    values: Mapping[str, float]
    n_images: Mapping[str, int]
    report: str | None = None
    figure: str | None = None
    checks: SubjectChecks = field(default_factory=SubjectChecks)


@dataclass(frozen=True)
class MissingSubject:
    """A subject that was expected but has no scores, and why."""

    label: str
    why: str


@dataclass(frozen=True)
class GroupReport:
    """Contents of ``group.html``.

    ``columns`` are those of the table in order, all conditions (without top-1 of null and oracle if they have
    fewer images than the brain); ``means``, of all of the table's columns, and ``chance`` (of some) are by
    column name. ``warnings`` state how subjects differ.
    """

    subjects: tuple[SubjectEntry, ...]
    columns: tuple[Column, ...]
    means: Mapping[str, GroupMean]
    chance: Mapping[str, float] = field(default_factory=dict)
    missing: tuple[MissingSubject, ...] = ()
    warnings: tuple[str, ...] = ()
    table: str = "phenotype/reconmetrics.tsv"
    recipes: tuple[str, ...] = ()
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
