"""The design of the simulated dataset: how large it is, and which scene is shown in which trial.

The design follows the Natural Scenes Dataset (Allen et al. 2022, doi:10.1038/s41593-021-00962-x): every
image is shown up to three times, its repeats are spread over the sessions (some are in the same session),
one set of images is shared by all subjects (the test set), and each subject sees further images of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bidsapp.seeds import seed_for

#: The stimuli are scenes of the family ``DEMO_FAMILY + seed``; the embedded models learn from others.
DEMO_FAMILY = 20_000

#: Runs of one session, as in NSD.
RUNS_PER_SESSION = 12

#: Share of the presentations whose session is drawn at random; the others are spread over the sessions.
_FREE_SESSION_SHARE = 0.3

#: Largest share of a session's trials that is lost, as when a run is cut short.
_MAX_LOST_SHARE = 0.02


def generator(seed: int, *names: str) -> np.random.Generator:
    """Make a separate random generator for each purpose, so that none depends on another's draws.

    ``names`` state what the numbers are for, e.g. ``("01", "noise", "02")``.
    """
    return np.random.default_rng(seed_for(seed, "demo", *names))


@dataclass(frozen=True)
class DatasetDesign:
    """What a simulated dataset is made from; the same values give the same dataset.

    Attributes
    ----------
    seed : int
        Everything random follows from it, stimuli included.
    n_sessions : int
        Sessions per subject.
    n_train, n_test : int
        Number of scenes that one subject sees, and of scenes that all subjects see.
    repeats : int
        How often a scene is shown. Test scenes are shown exactly as often; up to 2% of a session's trials,
        all of training scenes, are lost, but every training scene is seen at least once.
    image_size : int
        Side of the stimuli in pixels; at least 64.

    Raises
    ------
    ValueError
        For counts below 1 or a negative seed.
    """

    seed: int = 0
    n_subjects: int = 2
    n_sessions: int = 3
    n_train: int = 1000
    n_test: int = 100
    repeats: int = 3
    image_size: int = 128

    def __post_init__(self) -> None:
        for name in ("n_subjects", "n_sessions", "n_train", "n_test", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")
        if self.seed < 0:  # the families of scenes below DEMO_FAMILY belong to the training of models
            raise ValueError(f"seed is {self.seed}, it must not be negative")

    @property
    def family(self) -> int:
        """Seed of the family of scenes that the stimuli are drawn from."""
        return DEMO_FAMILY + self.seed

    def __str__(self) -> str:
        return ", ".join(
            f"{name.replace('image_', '')} {getattr(self, name)}" for name in self.__dataclass_fields__
        )


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
        Run of every trial, from 1, in ascending order.
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
        Indices of the subject's own scenes and of the shared ones, in ascending order.
    """

    label: str
    train: tuple[int, ...]
    test: tuple[int, ...]
    sessions: tuple[SessionDesign, ...]

    @property
    def scenes(self) -> tuple[int, ...]:
        """All scenes that the subject sees, in ascending order: the shared ones have the lowest indices."""
        return (*self.test, *self.train)


def make_design(dataset: DatasetDesign, subject: int) -> SubjectDesign:
    """Design the sessions of one subject, numbered from 0.

    The result depends on the subject's own number only: it does not change with more subjects.
    """
    n_sessions, n_train, n_test = dataset.n_sessions, dataset.n_train, dataset.n_test
    label = f"{subject + 1:02d}"
    rng = generator(dataset.seed, label, "design")
    test = np.arange(n_test)
    train = np.arange(n_train) + n_test + subject * n_train
    scenes = np.repeat(np.concatenate([test, train]), dataset.repeats)
    session_of = _spread(rng, n_test + n_train, dataset.repeats, n_sessions)
    kept = _lose_trials(rng, scenes, session_of, first_train=int(train[0]), n_sessions=n_sessions)
    sessions = []
    for s in range(n_sessions):
        order = _shuffle(rng, scenes[kept & (session_of == s)])
        sessions.append(SessionDesign(f"{s + 1:02d}", order, _runs(len(order))))
    return SubjectDesign(label, tuple(train.tolist()), tuple(test.tolist()), tuple(sessions))


def _spread(rng: np.random.Generator, n_scenes: int, repeats: int, n_sessions: int) -> NDArray[np.int64]:
    """Session of every presentation, (n_scenes * repeats,); session lengths differ by one trial at most."""
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
    """Choose the trials that are kept: each session loses a few, but no scene loses its last one."""
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
    """Put the trials in random order, if possible without the same scene twice in a row."""
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
    """Run of every trial; runs differ in length by one trial at most."""
    n_runs = min(RUNS_PER_SESSION, max(1, n_trials))
    return 1 + np.arange(n_trials) * n_runs // max(1, n_trials)
