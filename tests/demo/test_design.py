"""The simulated trial design keeps to the rules of the Natural Scenes Dataset."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bidsapp.demo.design import DatasetDesign, SubjectDesign, generator, make_design

FULL = DatasetDesign(seed=0, n_sessions=3, n_train=1000, n_test=100, repeats=3)


def sessions_of_repeats(design: SubjectDesign) -> dict[int, list[str]]:
    """Session of every presentation of each scene, in order."""
    found: dict[int, list[str]] = {scene: [] for scene in design.scenes}
    for session in design.sessions:
        for scene in session.scenes.tolist():
            found[scene].append(session.label)
    return found


@settings(max_examples=40, deadline=None)
@given(
    subject=st.integers(0, 3),
    seed=st.integers(0, 5),
    n_sessions=st.integers(1, 5),
    n_train=st.integers(1, 60),
    n_test=st.integers(1, 20),
    repeats=st.integers(1, 4),
)
def test_every_scene_is_shown_as_often_as_it_should(
    subject: int, seed: int, n_sessions: int, n_train: int, n_test: int, repeats: int
) -> None:
    counts = {"n_sessions": n_sessions, "n_train": n_train, "n_test": n_test, "repeats": repeats}
    design = make_design(DatasetDesign(seed=seed, **counts), subject)
    shown = np.concatenate([s.scenes for s in design.sessions])
    times = {scene: int(np.sum(shown == scene)) for scene in design.scenes}
    assert set(shown.tolist()) == set(design.scenes)
    assert len(design.test) == n_test
    assert len(design.train) == n_train
    assert all(times[scene] == repeats for scene in design.test)
    assert all(1 <= times[scene] <= repeats for scene in design.train)
    lost = (n_train + n_test) * repeats - len(shown)
    assert 0 <= lost <= 0.02 * (n_train + n_test) * repeats
    for session in design.sessions:
        assert len(session.runs) == len(session.scenes)
        if len(session.runs):
            assert session.runs[0] == 1
            assert set(np.diff(session.runs)) <= {0, 1}
            lengths = np.bincount(session.runs)[1:]
            assert lengths.max() - lengths.min() <= 1
            assert len(lengths) <= 12


def test_repeats_are_spread_over_sessions() -> None:
    design = make_design(FULL, 0)
    sessions = sessions_of_repeats(design)
    n_different = np.array([len(set(labels)) for labels in sessions.values()])
    assert np.mean(n_different == 3) > 0.5  # most scenes are seen in every session,
    assert np.mean(n_different < 3) > 0.1  # but not all, as in NSD
    assert all(labels == sorted(labels) for labels in sessions.values())
    lengths = [len(s.scenes) for s in design.sessions]
    assert sum(lengths) < 3300
    assert max(lengths) <= 1100
    assert min(lengths) >= 0.98 * 1100


def test_no_scene_follows_itself() -> None:
    for session in make_design(FULL, 1).sessions:
        assert np.all(session.scenes[1:] != session.scenes[:-1])


def test_subjects_share_the_test_set_only() -> None:
    designs = [make_design(FULL, s) for s in range(3)]
    assert len({d.test for d in designs}) == 1
    own = [set(d.train) for d in designs]
    assert not own[0] & own[1]
    assert not own[1] & own[2]
    assert not own[0] & own[2]
    assert all(not set(d.test) & o for d, o in zip(designs, own, strict=True))
    assert [d.label for d in designs] == ["01", "02", "03"]
    assert not np.array_equal(designs[0].sessions[0].scenes[:50], designs[1].sessions[0].scenes[:50])


def test_the_seed_decides_everything() -> None:
    first, again, other = (make_design(replace(FULL, seed=s), 0) for s in (0, 0, 1))
    same = [np.array_equal(a.scenes, b.scenes) for a, b in zip(first.sessions, again.sessions, strict=True)]
    assert all(same)
    assert not np.array_equal(first.sessions[0].scenes[:50], other.sessions[0].scenes[:50])


def test_generators_differ_by_every_name() -> None:
    draws = {
        generator(*key).integers(2**62)
        for key in [(0, "a", "bc"), (0, "ab", "c"), (0, "abc"), (0, "bc", "a"), (1, "a", "bc"), (0,)]
    }
    assert len(draws) == 6
    assert generator(3, "x").integers(2**62) == generator(3, "x").integers(2**62)


@pytest.mark.parametrize("name", ["n_subjects", "n_sessions", "n_train", "n_test", "repeats"])
def test_a_count_of_zero_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        replace(FULL, **{name: 0})
