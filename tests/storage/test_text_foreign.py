"""Tables and JSON files as other programs and other systems write them; attacks on memory and time."""

from __future__ import annotations

import json
import time
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from bidsapp.data.stimuli import StimulusSet
from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.text import normalized, read_json, read_text, read_tsv


def test_duplicate_keys_are_found_in_linear_time(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    keys = [f'"k{i}": 0' for i in range(40_000)]
    path.write_text("{" + ", ".join([*keys, keys[-1]]) + "}")
    start = time.process_time()
    with pytest.raises(AppError, match="k39999"):
        read_json(path)
    assert time.process_time() - start < 3
    path.write_text('{"a": {"b": 1, "c": 2, "b": 1}}')  # sibling: in an inner object
    with pytest.raises(AppError, match="'b' twice"):
        read_json(path)
    path.write_text('{"a": [{"b": 1}, {"b": 1}]}')  # sibling: the same key of two objects
    assert read_json(path) == {"a": [{"b": 1}, {"b": 1}]}


@pytest.mark.parametrize(
    ("reader", "size"), [(read_json, 20 << 20), (read_tsv, 100 << 20), (read_text, 100 << 20)]
)
def test_large_files_are_refused_by_size(tmp_path: Path, reader, size: int) -> None:
    path = tmp_path / "sub-01_statmap.json"
    with path.open("wb") as stream:
        stream.truncate(size)  # not one byte of it is there
    with pytest.raises(AppError, match="bytes") as caught:
        reader(path)
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert str(size) in str(caught.value)


def test_a_limit_can_be_raised_for_files_that_are_large(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"annotations": ["x" * (17 << 20)]}))
    assert len(read_json(path, most=1 << 28)["annotations"][0]) == 17 << 20


@pytest.mark.parametrize(
    "content", ["a\tb\r1\t2\r3\t4\r", "a\tb\r1\t2\r3\t4", "a\tb\r\r1\t2\r3\t4\r\r".replace("\r\r1", "\r1")]
)
def test_tables_with_line_ends_of_old_macs(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.tsv").write_bytes(content.encode())
    assert read_tsv(tmp_path / "t.tsv") == {"a": ["1", "3"], "b": ["2", "4"]}


@pytest.mark.parametrize(
    "header", ["stim_id \tbeta_index", " stim_id\tbeta_index ", "stim_id\xa0\tbeta_index "][:3]
)
def test_blanks_around_names_of_columns(tmp_path: Path, header: str) -> None:
    (tmp_path / "t.tsv").write_text(f"{header}\nx\t0\n")
    assert read_tsv(tmp_path / "t.tsv") == {"stim_id": ["x"], "beta_index": ["0"]}
    (tmp_path / "t.tsv").write_text("a\ta \n1\t2\n")
    with pytest.raises(AppError, match="two columns named 'a'"):
        read_tsv(tmp_path / "t.tsv")


def test_accents_composed_and_decomposed_are_the_same(tmp_path: Path) -> None:
    """macOS writes the names of files decomposed; a table typed elsewhere has them composed."""
    composed, decomposed = (unicodedata.normalize(form, "café_Ängström") for form in ("NFC", "NFD"))
    assert composed != decomposed
    (tmp_path / "t.tsv").write_text(f"{decomposed}\n{decomposed}\n")
    assert read_tsv(tmp_path / "t.tsv") == {composed: [composed]}
    (tmp_path / "t.json").write_text(json.dumps({"train_ids": [decomposed]}))  # escaped
    assert normalized(read_json(tmp_path / "t.json")) == {"train_ids": [composed]}
    (tmp_path / "t.json").write_text(json.dumps({decomposed: {"x": decomposed}}, ensure_ascii=False))
    assert normalized(read_json(tmp_path / "t.json")) == {composed: {"x": composed}}
    assert normalized({"a": 1}) == {"a": 1}


@pytest.mark.parametrize("place", ["stim-{}_image.png", "images/{}.png", "named-{}.png"])
@pytest.mark.parametrize(("table", "disk"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "NFC")])
def test_images_are_found_under_either_spelling(tmp_path: Path, place: str, table: str, disk: str) -> None:
    name = {form: unicodedata.normalize(form, "café") for form in ("NFC", "NFD")}
    path = tmp_path / "stimuli" / place.format(name[disk])
    path.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(path)
    stimulus = name[table] + (".png" if "images" in place else "")
    file = place.format(name[table]) if "named" in place else "n/a"
    rows = f"stimulus_id\tfile\tsplit\n{stimulus}\t{file}\ttrain\n"
    (tmp_path / "stimuli" / "stimuli.tsv").write_text(rows, encoding="utf-8")
    stimuli = StimulusSet.open(tmp_path)
    assert stimuli.files_missing() == []
    assert stimuli.images(stimuli.ids, size=8).mean(axis=(0, 1, 2)).tolist() == [255, 0, 0]
