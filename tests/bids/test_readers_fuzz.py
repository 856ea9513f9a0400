"""Whatever bytes a table, a filter or a split file holds, the reader returns or refuses by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bidsapp.bids._filters import read_filters
from bidsapp.bids._rois import read_labels
from bidsapp.bids._trials import read_trials
from bidsapp.data.captions import read_captions
from bidsapp.data.splits import make_split
from bidsapp.data.stimuli import StimulusSet
from bidsapp.errors import AppError, ExitCode

_NAMES = ["stimulus_id", "stim_id", "label", "file", "row", "split", "caption", "beta_index", "index", "name"]
_CELLS = st.one_of(
    st.sampled_from(
        ["stim-a", "a", "n/a", "", "0", "1", "-1", "train", "test", "x.hdf5", "../a", "1e9", '"', "٣"]
    ),
    st.text(max_size=4),
)
_TABLES = st.lists(st.sampled_from(_NAMES), min_size=1, max_size=5).flatmap(
    lambda names: st.lists(st.lists(_CELLS, min_size=len(names), max_size=len(names)), max_size=5).map(
        lambda rows: "\n".join("\t".join(r) for r in [names, *rows]).encode("utf-8", "surrogatepass")
    )
)
_JSON_LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5))
_JSON = st.recursive(
    _JSON_LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["betas", "mask", "desc", "run", "variants", "variant_id", "train_ids", "test_ids", "name"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


class _Stimuli:
    ids = ("a", "b")
    split_column: ClassVar[dict[str, str]] = {"a": "train", "b": "test"}
    folder = Path("stimuli")


def _open_stimuli(path: Path) -> object:
    folder = path.parent / "d" / "stimuli"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stimuli.tsv").write_bytes(path.read_bytes())
    return StimulusSet.open(path.parent / "d")


def _labels(path: Path) -> object:
    return read_labels(path.with_name("x.nii.gz"))


_TSV_READERS: list[Callable[[Path], object]] = [
    read_trials,
    read_captions,
    _open_stimuli,
    _labels,
    lambda p: make_split(_Stimuli(), ["a", "b"], p),
]


def _refusal(call: Callable[[], object]) -> AppError | None:
    """The named error that a call ends in; any other exception fails the test."""
    try:
        call()
    except AppError as error:
        return error
    return None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(_TABLES, st.binary(max_size=60)), reader=st.sampled_from(_TSV_READERS))
def test_tables(content: bytes, reader: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_bytes(content)
    error = _refusal(lambda: reader(path))
    assert error is None or (error.exit_code == ExitCode.BAD_DATA and str(error))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=_JSON, split=st.booleans())
def test_json(content: Any, split: bool, tmp_path: Path) -> None:
    import json

    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    error = _refusal(lambda: make_split(_Stimuli(), ["a", "b"], path) if split else read_filters(path))
    named = (ExitCode.BAD_DATA, ExitCode.USAGE)
    assert error is None or (error.exit_code in named and "x.json" in str(error))


def test_the_fuzzed_readers_do_read(tmp_path: Path) -> None:
    """Guards the tests above against readers that refuse everything."""
    path = tmp_path / "x.tsv"
    path.write_text(
        "stimulus_id\tcaption\tsplit\tbeta_index\tindex\tname\na\tc\ttrain\t1\t1\tn\nb\td\ttest\t0\t2\tm\n"
    )
    assert read_trials(path) == ("b", "a")
    assert read_captions(path) == {"a": ("c",), "b": ("d",)}
    assert _labels(path) == {"n": (1,), "m": (2,)}
    assert make_split(_Stimuli(), ["a", "b"], path).train == ("a",)
    (tmp_path / "x.json").write_text('{"betas": {"run": [1, "02"], "ses": "ses-1", "desc": null}}')
    filters = read_filters(tmp_path / "x.json")
    assert filters.by_kind == {"betas": {"run": ("1", "02"), "session": "1", "desc": None}}
    with pytest.raises(AppError):
        read_filters(path)
