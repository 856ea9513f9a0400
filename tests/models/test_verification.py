"""Weights are recorded once they have worked, verified ever after, and not read again without need."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from helpers.read_only import read_only
from hypothesis import example, given
from hypothesis import strategies as st

from bidsapp.errors import AppError, ExitCode
from bidsapp.models.weights import verification
from bidsapp.models.weights.lock import LOCK, Lock, own_folder
from bidsapp.models.weights.registry import Part, RequiredFile, WeightFile, _missing
from bidsapp.models.weights.verification import SEEN, record, unpublished, verify

FIRST, SECOND = b"first weights", b"other weights"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def needed(*names: str, **options: str) -> list[RequiredFile]:
    files = [WeightFile((name,), **options) for name in names]  # type: ignore[arg-type]
    return [RequiredFile(Part("vdvae", "A model", "MIT", "", (file,)), file, "vdvae") for file in files]


def put(root: Path, name: str, content: bytes, age_s: float = 60) -> Path:
    """Write a file that has settled, as files of a models folder have."""
    path = root / "vdvae" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    moment = time.time() - age_s
    os.utime(path, (moment, moment))
    return path


def used(files: list[RequiredFile], root: Path, *, full: bool = False) -> dict[str, str]:
    """Verify files and record them, as a run does whose models pass their self-test."""
    hashes = verify(files, root, full=full)
    record(files, root, hashes)
    return hashes


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read in full."""
    names: list[str] = []

    def hash_and_note(path: Path) -> str:
        names.append(Path(path).name)
        return sha256(Path(path).read_bytes())

    monkeypatch.setattr(verification, "sha256_file", hash_and_note)
    return names


# ------------------------------------------------- recorded once they have worked


def test_files_put_there_by_hand_are_recorded_once_they_have_worked(root: Path) -> None:
    put(root, "a.pth", FIRST)
    put(root, "b.pth", SECOND)
    found = used(needed("a.pth", "b.pth", "not-there.pth"), root)
    assert found == {"vdvae/a.pth": sha256(FIRST), "vdvae/b.pth": sha256(SECOND)}
    files = json.loads((root / LOCK).read_text())["files"]
    assert files["vdvae/a.pth"] == {
        "sha256": sha256(FIRST),
        "size": len(FIRST),
        "source": "put there by hand",
        "licence": "MIT",
    }
    assert set(files) == set(found)
    assert not own_folder(root).exists()


def test_nothing_is_recorded_before_it_has_worked(root: Path) -> None:
    """Otherwise damaged weights would be the record, and the right ones refused afterwards."""
    put(root, "a.pth", FIRST)
    for full in (False, True):
        verify(needed("a.pth"), root, full=full)
    assert not (root / LOCK).exists()
    put(root, "a.pth", SECOND)
    assert used(needed("a.pth"), root) == {"vdvae/a.pth": sha256(SECOND)}


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
STAND_INS = {
    "a Git LFS pointer": (LFS, "git lfs pull"),
    "a git-annex pointer": (b"/annex/objects/MD5E-s12345--0123456789abcdef.pth\n", "datalad get"),
    "a link of git-annex as text": (b"../../.git/annex/objects/x1/2y/MD5E-s12/MD5E-s12", "datalad get"),
    "a web page": (b"\n<!DOCTYPE html>\n<html>Sign in</html>", "fetch the weights again"),
    "a page without its head": (b"<HTML><body>Sign in", "fetch the weights again"),
}


@pytest.mark.parametrize("kind", STAND_INS)
def test_a_pointer_or_a_page_in_place_of_weights_is_named(kind: str, root: Path, read: list[str]) -> None:
    content, fix = STAND_INS[kind]
    paths = [put(root, name, content) for name in ("a.pth", "config.json")]
    with pytest.raises(AppError, match=fix) as caught:
        verify(needed("a.pth", "config.json"), root)
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert all(str(path) in str(caught.value) for path in paths)
    assert read == []
    assert not (root / LOCK).exists()


def test_links_of_a_dataset_that_was_not_fetched_are_named(root: Path) -> None:
    (root / "vdvae").mkdir()
    (root / "vdvae" / "a.pth").symlink_to("../.git/annex/objects/x1/2y/MD5E-s12--0/MD5E-s12--0")
    (problem,) = _missing(needed("a.pth"), root, "run: fetch-models")
    assert "links to nothing" in problem.what
    assert f"datalad get {root / 'vdvae'}" in problem.fix


def test_a_file_that_changes_later_is_refused(root: Path) -> None:
    path = put(root, "a.pth", FIRST)
    used(needed("a.pth"), root)
    put(root, "a.pth", SECOND)
    for _ in range(2):  # also when what is there now was hashed before
        with pytest.raises(AppError, match="not the weights that were recorded") as caught:
            used(needed("a.pth"), root)
        assert caught.value.exit_code == ExitCode.BAD_DATA
        for part in (str(path), sha256(FIRST)[:12], sha256(SECOND)[:12], str(root / LOCK)):
            assert part in str(caught.value)
    assert Lock.read(root).files["vdvae/a.pth"]["sha256"] == sha256(FIRST)


def test_all_files_that_changed_are_named_at_once(root: Path) -> None:
    paths = [put(root, name, FIRST) for name in ("a.pth", "b.pth", "c.pth")]
    used(needed("a.pth", "b.pth", "c.pth"), root)
    for name in ("a.pth", "c.pth"):
        put(root, name, SECOND)
    with pytest.raises(AppError) as caught:
        used(needed("a.pth", "b.pth", "c.pth"), root)
    assert [str(path) in str(caught.value) for path in paths] == [True, False, True]


@pytest.mark.parametrize("which", ["sha256", "sha256_start"])
def test_a_file_that_is_not_the_published_one(which: str, root: Path) -> None:
    """A run may use networks of one's own; fetching, which promises the published ones, may not."""
    put(root, "a.pth", SECOND)
    files = needed("a.pth", **{which: sha256(FIRST)[: 8 if which == "sha256_start" else 64]})
    with pytest.raises(AppError, match="as published"):
        used(files, root, full=True)
    assert not (root / LOCK).exists()
    assert unpublished(files, used(files, root)) == ["vdvae/a.pth"]
    with pytest.raises(AppError, match="as published"):
        used(files, root, full=True)
    (root / LOCK).unlink()
    put(root, "a.pth", FIRST)
    assert unpublished(files, used(files, root, full=True)) == []


def test_a_converted_file_has_a_hash_of_its_own(root: Path) -> None:
    file = WeightFile(("a.safetensors", "a.pth"), sha256=sha256(FIRST))
    files = [RequiredFile(Part("vdvae", "A model", "MIT", "", (file,)), file, "vdvae")]
    put(root, "a.safetensors", SECOND)
    assert unpublished(files, used(files, root, full=True)) == []
    assert Lock.read(root).files["vdvae/a.safetensors"]["sha256"] == sha256(SECOND)


def test_a_deleted_entry_lets_a_change_in(root: Path) -> None:
    put(root, "a.pth", FIRST)
    used(needed("a.pth"), root)
    put(root, "a.pth", SECOND)
    content = json.loads((root / LOCK).read_text())
    del content["files"]["vdvae/a.pth"]
    (root / LOCK).write_text(json.dumps(content))
    assert used(needed("a.pth"), root) == {"vdvae/a.pth": sha256(SECOND)}


def test_jobs_that_start_together_lose_no_record(root: Path) -> None:
    names = [f"{i}.pth" for i in range(12)]
    for name in names:
        put(root, name, name.encode())
    jobs = [threading.Thread(target=used, args=(needed(name), root)) for name in names]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert {k: v["sha256"] for k, v in Lock.read(root).files.items()} == {
        f"vdvae/{name}": sha256(name.encode()) for name in names
    }
    assert len(json.loads((root / SEEN).read_text())["files"]) == 12


def test_another_job_that_recorded_other_bytes_meanwhile(root: Path) -> None:
    stale = Lock.read(root)
    Lock.read(root).record_files({"vdvae/a.pth": {"sha256": sha256(FIRST)}})
    with pytest.raises(AppError, match="not the weights that were recorded"):
        stale.record_files({"vdvae/a.pth": {"sha256": sha256(SECOND)}})
    assert Lock.read(root).files["vdvae/a.pth"]["sha256"] == sha256(FIRST)


# ------------------------------------------------- folders that cannot be written to


def test_a_read_only_folder_is_recorded_in_the_users_cache(root: Path) -> None:
    put(root, "a.pth", FIRST)
    with read_only(root):
        used(needed("a.pth"), root)
        before = sorted(root.rglob("*"))
    assert before == [root / "vdvae", root / "vdvae" / "a.pth"]
    place = own_folder(root) / LOCK
    assert json.loads(place.read_text())["files"]["vdvae/a.pth"]["sha256"] == sha256(FIRST)
    put(root, "a.pth", SECOND)
    with read_only(root), pytest.raises(AppError, match="not the weights that were recorded") as caught:
        used(needed("a.pth"), root)
    assert str(place) in str(caught.value)


def test_two_folders_have_a_record_each(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "others"
    for folder, content in ((root, FIRST), (other, SECOND)):
        put(folder, "a.pth", content)
        with read_only(folder):
            used(needed("a.pth"), folder)
    for folder, content in ((root, FIRST), (other, SECOND)):
        with read_only(folder):
            assert used(needed("a.pth"), folder) == {"vdvae/a.pth": sha256(content)}


def test_the_folders_own_record_goes_before_the_users(root: Path) -> None:
    put(root, "a.pth", FIRST)
    with read_only(root):
        used(needed("a.pth"), root)
    put(root, "a.pth", SECOND)
    (root / LOCK).write_text(json.dumps({"files": {"vdvae/a.pth": {"sha256": sha256(SECOND)}}}))
    assert used(needed("a.pth"), root) == {"vdvae/a.pth": sha256(SECOND)}


def test_where_nothing_can_be_recorded_it_is_said(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(root, "a.pth", FIRST)
    cache = own_folder(root).parent
    cache.mkdir(parents=True)
    with read_only(root), read_only(cache), caplog.at_level("WARNING"):
        assert used(needed("a.pth"), root) == {"vdvae/a.pth": sha256(FIRST)}
    assert "hashes of 1 files of weights are recorded nowhere" in caplog.text
    assert str(root) in caplog.text


def test_a_user_without_a_home(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a container that runs under a number of which it knows no user."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    put(root, "a.pth", FIRST)
    with read_only(root), caplog.at_level("WARNING"):
        assert used(needed("a.pth"), root) == {"vdvae/a.pth": sha256(FIRST)}
    assert "recorded nowhere" in caplog.text
    assert used(needed("a.pth"), root) == {"vdvae/a.pth": sha256(FIRST)}
    assert (root / LOCK).is_file()


# ------------------------------------------------- not read again without need


def test_a_file_that_looks_the_same_is_not_read_again(root: Path, read: list[str]) -> None:
    put(root, "a.pth", FIRST)
    put(root, "b.pth", FIRST)
    both = needed("a.pth", "b.pth")
    first = verify(both, root)
    assert read == ["a.pth", "b.pth"]
    assert verify(both, root) == first
    assert read == ["a.pth", "b.pth"]
    verify(both, root, full=True)
    assert read == ["a.pth", "b.pth"] * 2


def _rewrite(path: Path) -> None:
    path.write_bytes(SECOND)


def _rewrite_with_the_old_time(path: Path) -> None:
    before = path.stat()
    path.write_bytes(SECOND)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _exchange(path: Path) -> None:
    shutil.copystat(path, shutil.copyfile(path, path.with_name("new")))
    path.with_name("new").replace(path)


def _touch(path: Path) -> None:
    os.utime(path)


@pytest.mark.parametrize("change", [_rewrite, _rewrite_with_the_old_time, _exchange, _touch])
def test_whatever_changes_how_a_file_looks_has_it_read_again(change, root: Path, read: list[str]) -> None:
    assert len(FIRST) == len(SECOND)
    path = put(root, "a.pth", FIRST)
    used(needed("a.pth"), root)
    change(path)
    if path.read_bytes() == FIRST:
        verify(needed("a.pth"), root)
    else:
        with pytest.raises(AppError, match="not the weights"):
            verify(needed("a.pth"), root)
    assert read == ["a.pth", "a.pth"]


def test_a_file_that_is_still_warm_is_read_again(root: Path, read: list[str]) -> None:
    """Within the resolution of time stamps a second change would look like the first."""
    put(root, "a.pth", FIRST, age_s=0)
    verify(needed("a.pth"), root)
    verify(needed("a.pth"), root)
    assert read == ["a.pth", "a.pth"]


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(root, "a.pth", FIRST)

    def hash_and_change(_: Path) -> str:
        put(root, "a.pth", SECOND, age_s=30)
        return sha256(FIRST)

    with monkeypatch.context() as patch:
        patch.setattr(verification, "sha256_file", hash_and_change)
        used(needed("a.pth"), root)
    with pytest.raises(AppError, match="not the weights"):
        verify(needed("a.pth"), root)
    assert path.read_bytes() == SECOND


def test_what_was_read_is_remembered_for_read_only_folders_too(root: Path, read: list[str]) -> None:
    put(root, "a.pth", FIRST)
    with read_only(root):
        # taking the right to write changed a time of the file, once; the folder stays so in real life
        verify(needed("a.pth"), root)
        verify(needed("a.pth"), root)
    assert read == ["a.pth"]


_KEYS = st.sampled_from(["files", "vdvae/a.pth", "sha256", "size", "mtime_ns", "ctime_ns", "inode"])
_JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=5),
    max_leaves=8,
)


@given(st.binary(max_size=40) | _JSON)
@example({"files": {"vdvae/a.pth": {key: [] for key in verification._MARKS} | {"sha256": "0" * 64}}})
@example({"files": {"vdvae/a.pth": dict.fromkeys(verification._MARKS, 1) | {"sha256": None}}})
@example({"files": {"vdvae/a.pth": {"sha256": "0" * 64}}})
def test_a_damaged_memory_only_costs_time(tmp_path_factory, damage) -> None:
    root = tmp_path_factory.mktemp("damaged")
    put(root, "a.pth", FIRST)
    text = damage if isinstance(damage, bytes) else json.dumps(damage).encode()
    (root / SEEN).write_bytes(text)
    assert verify(needed("a.pth"), root) == {"vdvae/a.pth": sha256(FIRST)}
    assert json.loads((root / SEEN).read_text())["files"]["vdvae/a.pth"]["sha256"] == sha256(FIRST)
