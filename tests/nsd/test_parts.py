"""Parts of nsd2bids: the noise ceiling's formula, label tables, the design; damaged files in any way."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers.nsd_tree import write_nsd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from bidsapp.errors import AppError
from bidsapp.nsd import maps
from bidsapp.nsd.design import Design, Repeats, count_repeats, read_design
from bidsapp.nsd.files import Writer
from bidsapp.nsd.stimuli import label, read_captions, read_stimulus_info


def test_the_noise_ceiling_in_closed_form():
    # A signal as strong as the noise of one trial: 1/2, 2/3, 3/4 of the variance after 1, 2, 3 repeats.
    for n, expected in ((1, 50.0), (2, 200 / 3), (3, 75.0)):
        made = maps.noise_ceiling(np.array([1.0, 0.0, np.nan]), Repeats({n: 10}, True))
        assert made[:2] == pytest.approx([expected, 0.0], abs=1e-5)
        assert np.isnan(made[2])


@given(a=st.integers(0, 900), b=st.integers(0, 900), c=st.integers(1, 900), snr=st.floats(0, 5))
def test_the_noise_ceiling_of_unequal_repeats_as_in_the_manual(a, b, c, snr):
    repeats = Repeats({n: k for n, k in ((1, c), (2, b), (3, a)) if k}, True)
    expected = 100 * snr**2 / (snr**2 + (a / 3 + b / 2 + c / 1) / (a + b + c))
    assert maps.noise_ceiling(np.array([snr]), repeats)[0] == pytest.approx(expected, rel=1e-5, abs=1e-30)


def test_the_noise_ceiling_is_what_simulated_averages_keep():
    """Share of variance of averages that the signal has, of a million simulated responses."""
    rng = np.random.default_rng(0)
    signal = 0.7 * rng.standard_normal(1_000_000)
    for n in (1, 3):
        average = signal + rng.standard_normal((n, signal.size)).mean(axis=0)
        kept = 100 * np.corrcoef(signal, average)[0, 1] ** 2
        made = maps.noise_ceiling(np.array([0.7]), Repeats({n: 1}, True))[0]
        assert made == pytest.approx(kept, abs=0.3)


def test_repeats_are_those_of_the_test_images():
    shown = [np.array([5, 9, 5, 7]), np.array([5, 7, 2])]
    assert count_repeats(shown, np.array([5, 2, 8])) == Repeats({1: 1, 3: 1}, True)
    assert count_repeats(shown, np.array([8])) == Repeats({1: 2, 2: 1, 3: 1}, False)


def test_label_tables_with_and_without_colours(tmp_path):
    path = tmp_path / "x.ctab"
    path.write_text(
        "# comment\n0 Unknown 0 0 0 0\n  2  FFA-2\t255 0 0 0\n1 mid temporal\n-1 none\n\n7 ecc4+\n"
    )
    assert maps.read_label_table(path) == {1: "mid temporal", 2: "FFA-2", 7: "ecc4+"}


def test_names_of_images_are_nsds_own():
    assert label(2951) == "nsd02951"
    assert label(73000) == "nsd73000"


def test_the_design_divides_its_trials():
    design = Design(np.arange(1, 13), np.arange(1, 25).reshape(2, 12), 3, ((2, 2), (4, 4)))
    assert design.shown(2, 1).tolist() == [13, 14, 15, 16]
    assert design.shown(2, 2).tolist() == list(range(17, 25))
    assert design.run_of_trial(2) == [1] * 4 + [2] * 4
    assert design.divided(6).shown(1, 2).tolist() == list(range(7, 13))
    with pytest.raises(ValueError, match="12 trials"):
        design.divided(5)


def test_shared_images_may_be_in_any_order(tmp_path):
    images = [[4.0, 7.0, 1.0], [7.0, 4.0, 2.0]]
    content = {"masterordering": [[1.0, 2.0, 3.0]], "subjectim": images, "sharedix": [[4.0, 7.0]]}
    savemat(tmp_path / "d.mat", content)
    design = read_design(tmp_path / "d.mat").divided(3)
    assert design.shown(2, 1).tolist() == [7, 4, 2]
    assert sorted(design.shared) == [4, 7]
    savemat(tmp_path / "d.mat", {**content, "sharedix": [[4.0, 1.0]]})
    with pytest.raises(AppError, match="sharedix"):
        read_design(tmp_path / "d.mat")


def test_a_stimpattern_that_does_not_fit_is_ignored(tmp_path):
    content = {"masterordering": [[1.0, 2.0, 1.0, 2.0]], "subjectim": [[4.0, 7.0]], "sharedix": [[4.0]]}
    for pattern in (np.ones((2, 2, 2)), np.full((1, 2, 2), 2.0), np.ones((4, 1)), "text"):
        savemat(tmp_path / "d.mat", {**content, "stimpattern": pattern})
        assert read_design(tmp_path / "d.mat").runs == ()
    savemat(tmp_path / "d.mat", {**content, "stimpattern": np.ones((2, 1, 2))})
    design = read_design(tmp_path / "d.mat")
    assert design.runs == ((2,), (2,))
    assert design.shown(1, 2).tolist() == [4, 7]


def test_a_design_that_declares_too_much_is_not_loaded(tmp_path):
    content = {"masterordering": np.ones((1, 4)), "subjectim": np.zeros((8, 2_000_000)), "sharedix": [[1.0]]}
    savemat(tmp_path / "d.mat", content, do_compression=True)
    with pytest.raises(AppError, match="not a numeric matrix of NSD's size"):
        read_design(tmp_path / "d.mat")


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, bytes]:
    root = write_nsd(tmp_path_factory.mktemp("nsd") / "nsd").root
    places = {
        "mat": "nsddata/experiments/nsd/nsd_expdesign.mat",
        "csv": "nsddata/experiments/nsd/nsd_stim_info_merged.csv",
        "ctab": "nsddata/freesurfer/subj01/label/floc-words.mgz.ctab",
        "json": "nsddata_stimuli/stimuli/nsd/annotations/captions_val2017.json",
    }
    return {kind: (root / place).read_bytes() for kind, place in places.items()}


READERS = {
    "mat": read_design,
    "csv": read_stimulus_info,
    "ctab": maps.read_label_table,
    "json": lambda path: read_captions([path]),
}


@pytest.mark.parametrize("kind", list(READERS))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_read_or_refused_with_their_path(originals, tmp_path: Path, kind, data):
    content = bytearray(originals[kind])
    places = st.integers(0, len(content) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(places) :]
    path = tmp_path / f"damaged.{kind}"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        refused = ""
        try:
            READERS[kind](path)
        except AppError as error:
            refused = str(error)
    assert refused == "" or str(path) in refused


def test_the_writer_refuses_unknown_links(tmp_path):
    with pytest.raises(ValueError, match="soft"):
        Writer(tmp_path, "soft")
