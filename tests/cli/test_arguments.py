"""How the command reads its words: several labels, underscores, order, units."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bidsapp.cli import app, main
from bidsapp.cli.bids_app import default_recipe
from bidsapp.cli.demo import demo
from bidsapp.cli.words import normalise


def parse(*words: str) -> dict:
    """What the app's options and positionals become."""
    return app.make_context("bidsapp-recon", normalise(words, app)).params


@pytest.mark.parametrize(("text", "value"), [("20", 20.0), ("12.5%", 12.5), ("0", 0.0), ("100 %", 100.0)])
def test_percent(text, value):
    assert parse("--min-noise-ceiling", text, *IO)["min_noise_ceiling"] == value


@pytest.mark.parametrize("text", ["nan", "-1", "100.1", "half", "inf", ""])
def test_no_percent(text):
    with pytest.raises(click.UsageError, match="not a number from 0 to 100"):
        parse("--min-noise-ceiling", text, *IO)


@pytest.mark.parametrize(
    "words",
    [
        ("-d", "rois=a/b", "c/atlases", "--roi", "x"),
        ("-d", "rois=a/b", "-d", "c/atlases"),
        ("--derivatives", "rois=a/b", "c/atlases/"),
        ("--derivatives=rois=a/b", "-dc/atlases"),
    ],
)
def test_further_datasets(words):
    for line in ((*words, *IO), (*IO, *words)):
        params = parse(*line)
        assert positionals(params) == IO
        assert params["derivatives"] == (("rois", Path("a/b")), ("atlases", Path("c/atlases")))


@pytest.mark.parametrize("value", ["=x", "a b=x", "rois=", "source=x", "input=x", "/"])
def test_names_of_datasets_that_are_refused(value):
    with pytest.raises(click.UsageError, match=r"NAME=PATH|uses the name"):
        parse("-d", value, *IO)


def test_one_file_of_captions():
    """``nsd2bids`` takes several after the same option."""
    with pytest.raises(click.UsageError, match="unexpected extra argument"):
        parse(*IO, "--captions", "a.tsv", "b.tsv")
    assert parse("--captions", "a.tsv", *IO)["captions"] == Path("a.tsv")


def test_two_datasets_of_one_name(capsys):
    assert main([*IO, "-d", "x=a", "x=b"]) == 64
    assert "two datasets are called x" in capsys.readouterr().err


def positionals(params: dict) -> tuple[str, str, str]:
    return str(params["bids_dir"]), str(params["output_dir"]), params["analysis_level"]


IO = ("bids", "out", "participant")


@pytest.mark.parametrize(
    "words",
    [
        ("--participant-label", "01", "02", *IO),
        (*IO, "--participant-label", "01", "02"),
        ("bids", "--participant-label", "01", "02", "out", "participant"),
        ("bids", "out", "--participant_label", "01", "02", "participant"),
        ("--participant-label", "01", "--participant-label", "02", *IO),
        ("--participant_label=01", "--participant-label=02", *IO),
        ("--participant-label", "01", "02", "-v", *IO),
        ("--participant-label", "01", "02", "--", *IO),
        ("-w", "work", "--participant-label", "01", "02", *IO),
    ],
)
def test_several_labels_anywhere(words):
    params = parse(*words)
    assert positionals(params) == IO
    assert params["participant_label"] == ("01", "02")


def test_labels_keep_their_words_where_another_list_comes_later():
    params = parse("--participant-label", "01", "02", "03", "04", "05", "--roi", "V1", *IO)
    assert positionals(params) == IO
    assert params["participant_label"] == ("01", "02", "03", "04", "05")
    assert params["roi"] == ("V1",)


def test_the_level_says_which_list_the_positionals_end():
    params = parse("--participant-label", "01", *IO, "--roi", "V1", "V2", "V3", "V4", "V5")
    assert positionals(params) == IO
    assert params["participant_label"] == ("01",)
    assert params["roi"] == ("V1", "V2", "V3", "V4", "V5")


@pytest.mark.parametrize("work", [("-w", "here"), ("-where",), ("--work-dir=here",), ("--work_dir", "here")])
def test_short_and_long_values_leave_the_positionals_in_order(work):
    params = parse("bids", *work, "out", "participant")
    assert positionals(params) == IO
    assert str(params["work_dir"]) == "here"


def test_flags_and_a_value_in_one_word():
    params = parse("bids", "-vw", "here", "out", "-vv", "participant")
    assert positionals(params) == IO
    assert (params["verbose"], str(params["work_dir"])) == (3, "here")


def test_underscores_are_dashes_in_names_only():
    params = parse(*IO, "--n_cpus", "3", "--bids_filter_file", "my_filter.json", "--skip_bids_validation")
    assert params["n_cpus"] == 3
    assert str(params["bids_filter_file"]) == "my_filter.json"
    assert params["skip_bids_validation"] is True


def test_words_after_two_dashes_are_positionals():
    params = parse("--seed", "4", "--", "-bids", "--out", "participant")
    assert positionals(params) == ("-bids", "--out", "participant")
    assert params["seed"] == 4


def test_a_list_without_values_is_refused():
    with pytest.raises(click.UsageError, match="participant-label"):
        parse(*IO, "--participant-label")


def test_defaults():
    params = parse(*IO)
    assert params["roi"] == ("nsdgeneral",)
    assert params["recipe"] is None
    assert params["participant_label"] == ()


def test_the_demo_has_its_own_words():
    words = ("--n_train", "40", "here", "-v", "--simulate_only")
    params = demo.make_context("demo", normalise(words, demo)).params
    assert (params["n_train"], str(params["folder"]), params["simulate_only"]) == (40, "here", True)


_WORDS = """--participant-label --roi --session_label --seed -w -v --dry-run --space=x --nonsense -vw -wx -- -
bids out participant 01 02 --help -h --mem 8GB"""
OPTION_WORDS = st.sampled_from([*_WORDS.split(), "", "a b"])


@given(st.lists(OPTION_WORDS | st.text(max_size=5), max_size=12))
@example(["--", "-x", "y"])
@example(["-", "--roi", "a"])
def test_no_word_is_lost(words):
    try:
        got = normalise(words, app)
    except click.UsageError:  # an option at the end that lacks its value
        assert words
        return

    def spelled(word: str) -> str:
        name, equals, value = word.partition("=")
        return name.replace("_", "-") + equals + value if word.startswith("--") else word

    # A list option's name may be repeated before its values, and one "--" parts the positionals.
    free = {"--", "--participant-label", "--session-label", "--roi"}
    assert Counter(map(spelled, got)) - Counter(free) <= Counter(map(spelled, words)) + Counter(
        {name: len(words) for name in free}
    )
    for word, count in Counter(map(spelled, words)).items():
        if word not in free:
            assert Counter(map(spelled, got))[word] == count
        elif word != "--":
            assert word in map(spelled, got)


@given(
    st.permutations(["--participant-label 01 02", "--roi V1 V2", "--seed 5", "-v", "--space=T1w", "-w work"]),
    st.sampled_from(["before", "after", "apart"]),
    st.integers(0, 6),
)
def test_the_order_of_options_changes_nothing(groups, where, cut):
    def words(parts):
        return [w for g in parts for w in g.split()]

    if where == "before":
        line = [*words(groups), *IO]
    elif where == "after":
        line = [*IO, *words(groups)]
    else:
        line = [*words(groups[:cut]), *IO, *words(groups[cut:])]
    params = parse(*line)
    assert positionals(params) == IO
    assert params["participant_label"] == ("01", "02")
    assert params["roi"] == ("V1", "V2")
    assert (params["seed"], params["verbose"], params["space"]) == (5, 1, "T1w")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8GB", 8_000_000_000),
        ("8G", 8_000_000_000),
        ("8gib", 8 * 1024**3),
        ("7.5 GiB", int(7.5 * 1024**3)),
        ("900MiB", 900 * 1024**2),
        ("512k", 512_000),
        ("1T", 10**12),
    ],
)
def test_memory_with_units(text, value):
    assert parse(*IO, "--mem", text)["mem"] == value


@pytest.mark.parametrize("text", ["8", "8000000000", "GB", "-3GB", "8 bananas", "1e3GB", "", "8GBB"])
def test_memory_without_a_unit_is_refused(text):
    with pytest.raises(click.UsageError, match=r"no known unit.*8GB"):
        parse(*IO, f"--mem={text}")


@pytest.mark.parametrize(
    ("description", "recipe"),
    [
        ('{"GeneratedBy": [{"Name": "bidsapp-recon demo"}]}', "embedded"),
        ('{"GeneratedBy": [{"Name": "nsd2bids"}]}', "brain-diffuser"),
        ('{"GeneratedBy": "bidsapp-recon demo"}', "brain-diffuser"),
        ("[]", "brain-diffuser"),
        ("{", "brain-diffuser"),
        (None, "brain-diffuser"),
    ],
)
def test_real_data_meet_the_papers_recipe(tmp_path, description, recipe):
    if description is not None:
        (tmp_path / "dataset_description.json").write_text(description)
    assert default_recipe(tmp_path) == recipe


@pytest.mark.parametrize(
    ("limit", "typed", "expected"),
    [
        ("", None, 8),
        ("3", None, 3),
        ("4,2", None, 4),
        ("0", None, 8),
        ("many", None, 8),
        ("99", None, 8),
        ("3", 6, 6),
    ],
)
def test_omp_num_threads_limits_the_default_of_n_cpus(limit, typed, expected, monkeypatch):
    from bidsapp.cli import options

    monkeypatch.setattr(options, "available_cpus", lambda: 8)
    monkeypatch.setattr(options, "_OMP_NUM_THREADS", limit)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    given = {"verbose": 0, "n_cpus": typed}
    options.set_up(given)
    assert given["n_cpus"] == expected
