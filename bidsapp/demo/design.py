"""The trial design of the simulated dataset: which scene is shown in which trial.

Designed as the Natural Scenes Dataset is (Allen et al. 2022, doi:10.1038/s41593-021-00962-x): every
image is shown up to three times, its repeats are spread over the sessions (some fall in one session),
one set of images is shared by all subjects (the test set), the others are of each subject's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bidsapp.seeds import seed_for

#: The stimuli are scenes of the family ``DEMO_FAMILY + seed``; the embedded models learn from others.
DEMO_FAMILY = 20_000

#: Runs of one session, as in NSD.
RUNS_PER_SESSION = 12

#: Share of the presentations whose session is drawn at random; the others fall one in each session.
_FREE_SESSION_SHARE = 0.3

#: Largest share of a session's trials that is lost, as when a run is cut short.
_MAX_LOST_SHARE = 0.02


def generator(seed: int, *names: str) -> np.random.Generator:
    """Give a random generator of its own to each purpose, so that none depends on another's draws.

    Parameters
    ----------
    seed : int
        The run's seed.
    *names : str
        What the numbers are for, e.g. ``("01", "noise", "02")``.

    Returns
    -------
    numpy.random.Generator
    """
    return np.random.default_rng(seed_for(seed, "demo", *names))


@dataclass(frozen=True)
class SessionDesign:
    """The trials of one session.

    Attributes
    ----------
    label : str
        Session label without ``ses-``.
    scenes : ndarray of int64, shape (trials,)
        Index of the scene shown in every trial.
    runs : ndarray of int64, shape (trials,)
        Run of every trial, from 1, never falling.
    """

    label: str
    scenes: NDArray[np.int64]
    runs: NDArray[np.int64]


@dataclass(frozen=True)
class SubjectDesign:
    """What one subject sees.

    Attributes
    ----------
    label : str
        Subject label without ``sub-``.
    train, test : tuple of int
        Indices of the subject's own scenes and of the shared ones, rising.
    sessions : tuple of SessionDesign
    """

    label: str
    train: tuple[int, ...]
    test: tuple[int, ...]
    sessions: tuple[SessionDesign, ...]

    @property
    def scenes(self) -> tuple[int, ...]:
        """All scenes that the subject sees, rising: the shared ones have the lowest indices."""
        return (*self.test, *self.train)


def subject_labels(n_subjects: int) -> tuple[str, ...]:
    """Labels of the subjects, ``01`` first."""
    return tuple(f"{i + 1:02d}" for i in range(n_subjects))


def make_design(
    subject: int, *, seed: int, n_sessions: int, n_train: int, n_test: int, repeats: int
) -> SubjectDesign:
    """Design the sessions of one subject.

    The result depends on the subject's own number only: it does not change with more subjects.

    Parameters
    ----------
    subject : int
        The subject's number, from 0.
    seed : int
        The run's seed.
    n_sessions : int
        Number of sessions.
    n_train, n_test : int
        Number of the subject's own scenes, and of the scenes that all subjects share.
    repeats : int
        How often a scene is shown. Test scenes are shown exactly as often; of the training trials up
        to 2 % a session are lost, but every training scene is seen at least once.

    Returns
    -------
    SubjectDesign

    Raises
    ------
    ValueError
        If a count is below 1.
    """
    counts = {"n_sessions": n_sessions, "n_train": n_train, "n_test": n_test, "repeats": repeats}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is {count}, it must be at least 1")
    label = subject_labels(subject + 1)[-1]
    rng = generator(seed, label, "design")
    test = np.arange(n_test)
    train = np.arange(n_train) + n_test + subject * n_train
    scenes = np.repeat(np.concatenate([test, train]), repeats)
    session_of = _spread(rng, n_test + n_train, repeats, n_sessions)
    kept = _lose_trials(rng, scenes, session_of, first_train=int(train[0]), n_sessions=n_sessions)
    sessions = []
    for s in range(n_sessions):
        order = _shuffle(rng, scenes[kept & (session_of == s)])
        sessions.append(SessionDesign(f"{s + 1:02d}", order, _runs(len(order))))
    return SubjectDesign(label, tuple(train.tolist()), tuple(test.tolist()), tuple(sessions))


def _spread(rng: np.random.Generator, n_scenes: int, repeats: int, n_sessions: int) -> NDArray[np.int64]:
    """Session of every presentation, (n_scenes * repeats,): sessions of equal length but for one trial."""
    start = rng.permutation(n_scenes) * repeats
    session_of = ((start[:, None] + np.arange(repeats)) % n_sessions).ravel()
    free = rng.choice(len(session_of), int(_FREE_SESSION_SHARE * len(session_of)), replace=False)
    session_of[free] = session_of[rng.permutation(free)]
    return session_of


def _lose_trials(
    rng: np.random.Generator,
    scenes: NDArray[np.int64],
    session_of: NDArray[np.int64],
    *,
    first_train: int,
    n_sessions: int,
) -> NDArray[np.bool_]:
    """Say which trials are kept: each session loses a few of its own, no scene loses its last."""
    kept = np.ones(len(scenes), dtype=bool)
    left = np.bincount(scenes)
    for s in range(n_sessions):
        candidates = rng.permutation(np.flatnonzero((session_of == s) & (scenes >= first_train)))
        n_lost = int(rng.uniform(0, _MAX_LOST_SHARE) * np.sum(session_of == s))
        for trial in candidates:
            if n_lost == 0:
                break
            if left[scenes[trial]] > 1:
                kept[trial] = False
                left[scenes[trial]] -= 1
                n_lost -= 1
    return kept


def _shuffle(rng: np.random.Generator, scenes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Put the trials in random order, without a scene twice in a row where that can be had."""
    order = rng.permutation(scenes)
    for _ in range(100):
        same = np.flatnonzero(order[1:] == order[:-1]) + 1
        if len(same) == 0:
            break
        for i in same.tolist():
            j = int(rng.integers(len(order)))
            order[i], order[j] = order[j], order[i]
    return order


def _runs(n_trials: int) -> NDArray[np.int64]:
    """Run of every trial: runs of nearly equal length."""
    n_runs = min(RUNS_PER_SESSION, max(1, n_trials))
    return 1 + np.arange(n_trials) * n_runs // max(1, n_trials)


def sessions_of_repeats(design: SubjectDesign, scenes: Sequence[int]) -> dict[int, tuple[str, ...]]:
    """Session labels of every presentation of the given scenes, in order of presentation."""
    found: dict[int, list[str]] = {scene: [] for scene in scenes}
    for session in design.sessions:
        for scene in session.scenes.tolist():
            if scene in found:
                found[scene].append(session.label)
    return {scene: tuple(labels) for scene, labels in found.items()}
