"""Fetching weights, against a server on this machine: resumed, whole, and the same ever after."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers.read_only import read_only

from bidsapp.errors import AppError, ExitCode
from bidsapp.models.weights import fetching, verification
from bidsapp.models.weights.fetching import STAGING, fetch
from bidsapp.models.weights.lock import LOCK, Lock
from bidsapp.models.weights.registry import Part, RequiredFile, WeightFile
from bidsapp.storage.locks import locked

CONTENT = bytes(range(256)) * 5000
COMMIT = "c" * 40


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Server(ThreadingHTTPServer):
    """Files by path, as a plain server and as the hub; may break off, and notes what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"/w.txt": CONTENT}
        self.break_after: list[int] = []  # bytes of the next answers' bodies before the connection ends
        self.status: list[int] = []  # of the next answers
        self.kind = "application/octet-stream"
        self.tag = '"one"'
        self.lie = b""  # sent in place of a repository's file
        self.asked: list[tuple[str, str]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range") or ""))
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            return self.send(self.listing(path), {"Content-Type": "application/json"}, body)
        name = path.partition(f"/resolve/{COMMIT}")[2] or path
        content = self.server.files.get(name)
        if content is None:
            return self.send(b"", {}, body, 404)
        if self.server.status:
            return self.send(b"", {}, body, self.server.status.pop(0))
        tag = f'"{sha256(content)}"' if name != path else self.server.tag
        headers = {"Content-Type": self.server.kind, "ETag": tag, "X-Repo-Commit": COMMIT}
        if name != path and self.server.lie:
            content = self.server.lie
        asked, status = self.headers.get("Range"), 200
        if asked and self.headers.get("If-Range") in (None, tag):
            first = int(asked.removeprefix("bytes=").partition("-")[0])
            if first >= len(content):
                return self.send(b"", {"Content-Range": f"bytes */{len(content)}"}, body, 416)
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            content, status = content[first:], 206
        return self.send(content, headers, body, status)

    def listing(self, path: str) -> bytes:
        siblings = [
            {
                "rfilename": name[1:],
                "size": len(c),
                "lfs": {"sha256": sha256(c), "size": len(c), "pointerSize": 1},
            }
            for name, c in self.server.files.items()
        ]
        return json.dumps({"id": "some/model", "sha": COMMIT, "siblings": siblings}).encode()

    def send(self, content: bytes, headers: dict[str, str], body: bool, status: int = 200) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if body and self.server.break_after and status in (200, 206) and content[:1] != b"{":
            self.wfile.write(content[: self.server.break_after.pop(0)])
            self.close_connection = True
        elif body:
            self.wfile.write(content)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(fetching, "PAUSE_S", 0)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    running = Server()
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


def at(server: Server, name: str = "w.txt", **options: str) -> list[RequiredFile]:
    file = WeightFile((name,), url=f"{server.address}/{name}", **options)  # type: ignore[arg-type]
    return [RequiredFile(Part("vdvae", "A model", "MIT", "", (file,)), file, "vdvae")]


def of_hub(*names: str, **options: bool | str) -> list[RequiredFile]:
    file = WeightFile(names, **options)  # type: ignore[arg-type]
    part = Part("vd", "A model", "MIT", "", (file,), "some/model", "main")
    return [RequiredFile(part, file, "vd")]


def leftovers(root: Path) -> list[str]:
    kept = (LOCK, f".{LOCK}.held", f"{STAGING}.held", verification.SEEN)
    return [p.name for p in root.rglob("*") if p.is_file() and p.name not in kept]


def test_a_file_is_fetched_and_recorded(server: Server, tmp_path: Path) -> None:
    said: list[str] = []
    assert fetch(at(server), tmp_path / "new", report=said.append) == 1
    target = tmp_path / "new" / "vdvae" / "w.txt"
    assert target.read_bytes() == CONTENT
    recorded = json.loads((tmp_path / "new" / LOCK).read_text())["files"]["vdvae/w.txt"]
    source = f"{server.address}/w.txt"
    assert recorded == {"sha256": sha256(CONTENT), "size": len(CONTENT), "source": source, "licence": "MIT"}
    assert any("MIT" in line and source in line for line in said)
    assert leftovers(tmp_path / "new") == ["w.txt"]
    server.asked.clear()
    assert fetch(at(server), tmp_path / "new") == 0
    assert server.asked == []


def test_a_terminal_gets_a_bar_and_a_log_a_line(
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(fetching, "_EVERY_S", -1)  # a line whenever there is something to say
    with caplog.at_level("INFO"):
        fetch(at(server), tmp_path / "log")
    megabytes = len(CONTENT) / 1e6
    assert f"w.txt: {megabytes:.0f} of {megabytes:.0f} MB" in caplog.text
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fetch(at(server), tmp_path / "terminal")
    assert re.search(r"w\.txt: +\d+%\|.* [\d.]+/1\.28M ", capsys.readouterr().err)


def test_a_broken_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.break_after = [1000, 20_000]
    assert fetch(at(server), tmp_path) == 1
    assert (tmp_path / "vdvae" / "w.txt").read_bytes() == CONTENT
    assert [r for _, r in server.asked] == ["", "bytes=1000-", "bytes=21000-"]
    assert leftovers(tmp_path) == ["w.txt"]


def test_an_interrupted_command_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.break_after = [3000, 0, 0, 0]
    with pytest.raises(AppError, match="the part that was fetched is kept") as caught:
        fetch(at(server), tmp_path)
    assert caught.value.exit_code == ExitCode.TRY_AGAIN
    assert not (tmp_path / "vdvae" / "w.txt").exists()
    server.asked.clear()
    assert fetch(at(server), tmp_path) == 1
    assert server.asked == [("/w.txt", "bytes=3000-")]
    assert (tmp_path / "vdvae" / "w.txt").read_bytes() == CONTENT


def test_another_version_is_not_glued_to_the_first_one(server: Server, tmp_path: Path) -> None:
    server.break_after = [3000, 0, 0, 0]
    with pytest.raises(AppError):
        fetch(at(server), tmp_path)
    server.tag, server.files["/w.txt"] = '"two"', CONTENT[::-1]
    assert fetch(at(server), tmp_path) == 1
    assert (tmp_path / "vdvae" / "w.txt").read_bytes() == CONTENT[::-1]


def test_a_download_that_was_complete_already(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "vdvae"
    folder.mkdir()
    (folder / ".w.txt.partial").write_bytes(CONTENT)
    (folder / ".w.txt.partial.etag").write_text(server.tag)
    assert fetch(at(server), tmp_path) == 1
    assert (folder / "w.txt").read_bytes() == CONTENT
    assert leftovers(tmp_path) == ["w.txt"]


@pytest.mark.parametrize("which", ["sha256", "sha256_start"])
def test_a_file_that_is_not_the_published_one(which: str, server: Server, tmp_path: Path) -> None:
    right = sha256(CONTENT)[: 8 if which == "sha256_start" else 64]
    server.files["/w.txt"] = CONTENT[:-1] + b"x"
    with pytest.raises(AppError, match=r"SHA-256 .* as published") as caught:
        fetch(at(server, **{which: right}), tmp_path)
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert leftovers(tmp_path) == []
    server.files["/w.txt"] = CONTENT
    assert fetch(at(server, **{which: right}), tmp_path) == 1


def test_what_was_recorded_holds_ever_after(server: Server, tmp_path: Path) -> None:
    fetch(at(server), tmp_path)
    target = tmp_path / "vdvae" / "w.txt"
    target.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(AppError, match="not the weights that were recorded") as caught:
        fetch(at(server), tmp_path)
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert str(target) in str(caught.value)
    target.unlink()
    server.files["/w.txt"] = CONTENT[::-1]  # the source changed
    with pytest.raises(AppError, match="recorded before"):
        fetch(at(server), tmp_path)
    assert not target.exists()
    server.files["/w.txt"] = CONTENT
    assert fetch(at(server), tmp_path) == 1


def test_published_files_put_there_by_hand_are_recorded(server: Server, tmp_path: Path) -> None:
    (tmp_path / "vdvae").mkdir()
    (tmp_path / "vdvae" / "w.txt").write_bytes(CONTENT)
    assert fetch(at(server, sha256=sha256(CONTENT)), tmp_path) == 0
    assert server.asked == []
    assert Lock.read(tmp_path).files["vdvae/w.txt"]["sha256"] == sha256(CONTENT)
    (tmp_path / LOCK).unlink()
    (tmp_path / "vdvae" / "w.txt").write_bytes(b"something else")
    with pytest.raises(AppError, match="as published"):
        fetch(at(server, sha256=sha256(CONTENT)), tmp_path)


def test_files_without_a_published_hash_are_recorded_by_a_run(server: Server, tmp_path: Path) -> None:
    """Fetching does not know whether they work."""
    (tmp_path / "vdvae").mkdir()
    (tmp_path / "vdvae" / "w.txt").write_bytes(CONTENT)
    said: list[str] = []
    assert fetch(at(server), tmp_path, report=said.append) == 0
    assert said == ["vdvae/w.txt: exists, not recorded yet: the first run does that, once its models work"]
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("w.json", b'{"hidden_size": 10', "JSON"),
        ("w.th", bytes(range(256)), "cannot be read"),
        ("w.safetensors", (999).to_bytes(8, "little") + b'{"a":', "cannot be read"),
        ("w.th", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n", "Git LFS pointer"),
        ("merges.txt", b"<html>Sign in</html>", "web page"),
    ],
)
def test_what_cannot_be_loaded_is_not_recorded(
    name: str, content: bytes, word: str, server: Server, tmp_path: Path
) -> None:
    """Of a file without a published hash: cut short, another format, something in its place."""
    server.files = {f"/{name}": content}
    with pytest.raises(AppError, match=word) as caught:
        fetch(at(server, name), tmp_path)
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert not (tmp_path / LOCK).exists()
    assert not (tmp_path / "vdvae" / name).exists()


def test_a_folder_that_is_complete_asks_nobody_and_may_be_read_only(server: Server, tmp_path: Path) -> None:
    server.files = {"/w.bin": CONTENT}
    needed = of_hub("w.bin") + of_hub("extra.json", optional=True)
    assert fetch(needed, tmp_path, hub=server.address) == 1
    server.shutdown()
    server.server_close()
    said: list[str] = []
    with read_only(tmp_path):
        assert fetch(needed, tmp_path, hub=server.address, report=said.append) == 0
    assert said == ["vd/w.bin: exists, verified"]


def test_runs_need_not_read_again_what_was_fetched(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "_SETTLED_S", -1)  # files of a test are always young
    fetch(at(server), tmp_path)
    monkeypatch.setattr(verification, "sha256_file", lambda path: pytest.fail(f"{path} was read"))
    assert verification.verify(at(server), tmp_path) == {"vdvae/w.txt": sha256(CONTENT)}


def test_a_folder_that_cannot_be_written_to(server: Server, tmp_path: Path) -> None:
    with read_only(tmp_path), pytest.raises(AppError, match=f"Cannot write {tmp_path}") as caught:
        fetch(at(server), tmp_path)
    assert caught.value.exit_code == ExitCode.CANNOT_CREATE
    assert server.asked == []


def test_two_commands_do_not_write_into_one_download(server: Server, tmp_path: Path) -> None:
    with locked(tmp_path / f"{STAGING}.held"), pytest.raises(AppError, match="another process") as caught:
        fetch(at(server), tmp_path)
    assert caught.value.exit_code == ExitCode.TRY_AGAIN
    assert server.asked == []


def test_a_file_that_another_one_makes_unnecessary(server: Server, tmp_path: Path) -> None:
    needed = of_hub("tokenizer.json", "vocab.json") + of_hub("merges.txt", unless="tokenizer.json")
    server.files = {"/vocab.json": b"{}"}
    with pytest.raises(AppError, match=r"holds none of merges\.txt"):
        fetch(needed, tmp_path, hub=server.address)
    assert [item.is_missing(tmp_path) for item in needed] == [False, True]
    server.files = {"/tokenizer.json": b"{}"}
    assert fetch(needed, tmp_path / "other", hub=server.address) == 1
    assert not any(item.is_missing(tmp_path / "other") for item in needed)


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (500, 4)])
def test_a_server_that_refuses(status: int, tries: int, server: Server, tmp_path: Path) -> None:
    server.status = [status] * 9
    with pytest.raises(AppError, match=f"HTTP {status}") as caught:
        fetch(at(server), tmp_path)
    assert caught.value.exit_code == ExitCode.TRY_AGAIN
    assert len(server.asked) == tries


def test_a_web_page_in_place_of_the_file(server: Server, tmp_path: Path) -> None:
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(AppError, match="web page"):
        fetch(at(server), tmp_path)
    assert not (tmp_path / "vdvae" / "w.txt").exists()


def test_no_connection(server: Server, tmp_path: Path) -> None:
    needed = at(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(AppError, match="Check the connection") as caught:
        fetch(needed, tmp_path)
    assert caught.value.exit_code == ExitCode.TRY_AGAIN


# ------------------------------------------------- the hub


def test_repositories_give_the_preferred_form(server: Server, tmp_path: Path) -> None:
    server.files = {"/unet/w.bin": CONTENT, "/unet/config.json": b"[1]"}
    needed = of_hub("unet/w.safetensors", "unet/w.bin") + of_hub("unet/config.json")
    needed += of_hub("merges.txt", optional=True)
    assert fetch(needed, tmp_path, hub=server.address) == 2
    assert (tmp_path / "vd" / "unet" / "w.bin").read_bytes() == CONTENT
    lock = Lock.read(tmp_path)
    assert lock.files["vd/unet/w.bin"]["source"] == f"some/model@{COMMIT}/unet/w.bin"
    assert sorted(leftovers(tmp_path)) == ["config.json", "w.bin"]
    server.asked.clear()
    server.files["/unet/w.safetensors"] = CONTENT
    assert fetch(needed, tmp_path, hub=server.address) == 0


def test_a_repository_without_the_file(server: Server, tmp_path: Path) -> None:
    with pytest.raises(AppError, match=r"holds none of a\.bin, b\.bin") as caught:
        fetch(of_hub("a.bin", "b.bin"), tmp_path, hub=server.address)
    assert caught.value.exit_code == ExitCode.TRY_AGAIN


def test_a_repositorys_file_damaged_on_the_way(server: Server, tmp_path: Path) -> None:
    server.files = {"/w.bin": CONTENT}
    server.lie = CONTENT[:-1] + b"x"
    with pytest.raises(AppError, match="SHA-256"):
        fetch(of_hub("w.bin"), tmp_path, hub=server.address)
    assert not (tmp_path / "vd" / "w.bin").exists()
    server.lie = b""
    assert fetch(of_hub("w.bin"), tmp_path, hub=server.address) == 1
    assert (tmp_path / "vd" / "w.bin").read_bytes() == CONTENT


def test_the_hub_out_of_reach(server: Server, tmp_path: Path) -> None:
    address = server.address
    server.shutdown()
    server.server_close()
    with pytest.raises(AppError, match=r"some/model.*cannot be fetched") as caught:
        fetch(of_hub("w.bin"), tmp_path, hub=address)
    assert caught.value.exit_code == ExitCode.TRY_AGAIN
