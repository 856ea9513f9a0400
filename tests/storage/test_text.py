"""Atomic writing and strict reading of small files."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bidsapp.errors import AppError, ExitCode
from bidsapp.storage import text as io
from bidsapp.storage.atomic import atomic_path, clear_partials
from bidsapp.storage.files import bytes_there, sha256_file
from bidsapp.storage.locks import locked
from bidsapp.system.processes import here


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_atomic_path_keeps_suffix_and_leaves_one_file(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "new" / "x_mask.nii.gz") as temporary:
        assert temporary.name.endswith(".nii.gz")
        assert temporary.name.startswith(".x_mask.partial-")
        assert temporary.parent == tmp_path / "new"
        temporary.write_bytes(b"1")
        assert not (tmp_path / "new" / "x_mask.nii.gz").exists()
    assert _names(tmp_path / "new") == ["x_mask.nii.gz"]


def test_atomic_path_failure_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a.txt") as temporary:  # noqa: PT012
        temporary.write_text("new")
        raise ZeroDivisionError
    assert (tmp_path / "a.txt").read_text() == "old"
    assert _names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, ExitCode.IO_ERROR), (errno.EROFS, ExitCode.CANNOT_CREATE)]
)
def test_atomic_path_names_the_reason(tmp_path: Path, number: int, code: ExitCode) -> None:
    with pytest.raises(AppError, match=r"a\.txt") as caught, atomic_path(tmp_path / "a.txt"):
        raise OSError(number, os.strerror(number))
    assert caught.value.exit_code == code


def test_atomic_path_lets_other_files_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), atomic_path(tmp_path / "a.txt"):
        raise PermissionError(errno.EACCES, "denied", "/somewhere/input.nii")


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(AppError) as caught:
        io.write_text(tmp_path / "a" / "b.txt", "x")
    assert caught.value.exit_code == ExitCode.CANNOT_CREATE


def test_clear_partials_spares_the_living(tmp_path: Path) -> None:
    host = here()
    dead = tmp_path / f".a.partial-{host}-4194999-abc123.txt"  # above the largest Linux pid
    living = tmp_path / f".b.partial-{host}-{os.getpid()}-abc123.txt"
    foreign = tmp_path / f".c.partial-{host}x-4194999-abc123.txt"
    for path in (dead, living, foreign, tmp_path / "d.txt"):
        path.write_text("")
    assert clear_partials(tmp_path) == [dead]
    os.utime(foreign, (0, 0))
    assert clear_partials(tmp_path) == [foreign]
    assert _names(tmp_path) == sorted([living.name, "d.txt"])


def test_write_json_has_no_nulls_and_keeps_order(tmp_path: Path) -> None:
    obj = {"b": None, "a": np.float32(0.5), "c": {"x": None, "y": np.arange(2)}, "p": Path("q"), "é": (1,)}
    io.write_json(tmp_path / "a.json", obj)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert list(json.loads(text).items()) == [("a", 0.5), ("c", {"y": [0, 1]}), ("p", "q"), ("é", [1])]
    assert text.endswith("}\n")
    assert "é" in text
    with pytest.raises(ValueError, match="JSON compliant"):
        io.write_json(tmp_path / "b.json", {"a": float("nan")})
    with pytest.raises(ValueError, match="cannot hold None"):
        io.write_json(tmp_path / "b.json", {"a": [None]})
    assert _names(tmp_path) == ["a.json"]


def test_write_tsv_cells(tmp_path: Path) -> None:
    columns = {
        "name": ["a\tb\nc", "", None],
        "value": [np.float64(1) / 3, float("nan"), np.float32(2)],
        "count": [np.int64(3), 4, 12345678],
        "flag": [True, np.bool_(False), None],
    }
    io.write_tsv(tmp_path / "a.tsv", columns)
    assert (tmp_path / "a.tsv").read_text() == (
        "name\tvalue\tcount\tflag\na b c\t0.333333\t3\ttrue\nn/a\tn/a\t4\tfalse\nn/a\t2\t12345678\tn/a\n"
    )
    with pytest.raises(ValueError, match="unequal"):
        io.write_tsv(tmp_path / "b.tsv", {"a": [1], "b": []})


def test_read_tsv_tolerates_bom_crlf_and_blank_ends(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes("\ufeffid\tcaption\r\n1\ta\u2028b\r\n2\t\r\n\r\n".encode())
    assert io.read_tsv(tmp_path / "a.tsv") == {"id": ["1", "2"], "caption": ["a\u2028b", ""]}
    (tmp_path / "b.tsv").write_text("id\tx\n")
    assert io.read_tsv(tmp_path / "b.tsv") == {"id": [], "x": []}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "line 1: has no header"),
        (b"a\tb\n1\t2\n3\n", "line 3: has 1 cell where the header has 2"),
        (b"a\tb\n1\t2\t3\n", "line 2: has 3 cells"),
        (b"a\ta\n1\t2\n", "two columns named 'a'"),
        (b"a\t\n1\t2\n", "column 2 has no name"),
        (b"a\tb\n1\t\0\n", "line 2: holds a NUL"),
        (b"a\tb\n1\t\xff\n", "line 2: is not UTF-8"),
    ],
)
def test_read_tsv_refuses(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "bad.tsv").write_bytes(raw)
    with pytest.raises(AppError, match=message) as caught:
        io.read_tsv(tmp_path / "bad.tsv")
    assert "bad.tsv" in str(caught.value)
    assert caught.value.exit_code == ExitCode.BAD_DATA


def test_read_json_refuses(tmp_path: Path) -> None:
    for text in ("[1]", '{"a": ', "[" * 100_000, '{"a": ' + "9" * 10_000 + "}"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(AppError, match=r"bad\.json") as caught:
            io.read_json(tmp_path / "bad.json")
        assert caught.value.exit_code == ExitCode.BAD_DATA
    with pytest.raises(AppError) as caught:
        io.read_json(tmp_path / "none.json")
    assert caught.value.exit_code == ExitCode.NO_INPUT


_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\t\r\n\0\ufeff"), min_size=1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(_TEXT, _TEXT), min_size=1, max_size=6))
def test_tsv_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.getbasetemp() / "round.tsv"
    columns = {"a": [r[0] for r in rows], "b": [r[1] for r in rows]}
    io.write_tsv(path, columns)
    assert io.read_tsv(path) == columns


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_readers_never_fail_otherwise(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz"
    path.write_bytes(raw)
    for reader in (io.read_tsv, io.read_json):
        try:
            outcome: object = reader(path)
        except AppError as error:
            outcome = error.exit_code
        assert isinstance(outcome, dict) or outcome == ExitCode.BAD_DATA


def test_sha256_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "a") == expected


def test_locked_lets_one_in_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / "new" / ".lock"
    with locked(lock):
        with pytest.raises(AppError, match=r"\.lock") as caught, locked(lock, timeout=0):
            pytest.fail("the lock was given twice")
        assert caught.value.exit_code == ExitCode.TRY_AGAIN
    with locked(lock, timeout=0):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(AppError) as caught, locked(tmp_path / "file" / ".lock"):
        pytest.fail("there is no such folder")
    assert caught.value.exit_code == ExitCode.CANNOT_CREATE


def test_locked_where_the_file_system_has_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    def refuse(self: object, **_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with locked(tmp_path / ".lock"):
        assert (tmp_path / ".lock.soft").exists()
        with pytest.raises(AppError, match="delete"), locked(tmp_path / ".lock", timeout=0):
            pytest.fail("the lock was given twice")
    assert not (tmp_path / ".lock.soft").exists()


def test_bytes_are_counted_of_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "array.npy").write_bytes(b"12345")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    assert bytes_there(tmp_path) == 5
    assert bytes_there(tmp_path / "nothing") == 0


COMES_AND_GOES = """
import shutil, sys
from pathlib import Path
folder, number = Path(sys.argv[1]), 0
while True:
    made, kept = folder / f"made{number % 7}", folder / f"kept{number % 7}"
    made.mkdir()
    for name in "abcde":
        (made / name).write_bytes(b"1")
    shutil.rmtree(kept, ignore_errors=True)
    made.rename(kept)
    print(flush=True)
    number += 1
"""


def test_bytes_are_counted_while_another_job_writes_and_removes(tmp_path: Path) -> None:
    words = [sys.executable, "-c", COMES_AND_GOES, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as job:
        assert job.stdout is not None
        job.stdout.readline()
        drain = threading.Thread(target=job.stdout.read)
        drain.start()
        try:
            counted = [bytes_there(tmp_path) for _ in range(500)]
        finally:
            job.kill()
            drain.join()
    assert max(counted) > 0
