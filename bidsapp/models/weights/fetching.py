"""Fetch published weights: resumable, complete or not at all, and recorded with their hash."""

from __future__ import annotations

import http.client
import logging
import os
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from bidsapp import __version__
from bidsapp.errors import AppError, ExitCode
from bidsapp.models.weights.checkpoints import check_loadable
from bidsapp.models.weights.lock import Lock
from bidsapp.models.weights.registry import RequiredFile
from bidsapp.models.weights.verification import (
    NOT_RECORDED,
    is_published,
    not_the_published,
    record,
    stand_in,
    verify,
)
from bidsapp.storage.atomic import atomic_path
from bidsapp.storage.files import sha256_file
from bidsapp.storage.locks import locked

LOG = logging.getLogger("bidsapp")
_PIECE = 1 << 20
_TIMEOUT_S = 60
_TRIES = 4
_EVERY_S = 30.0
#: Seconds to wait before another try, times the number of tries so far.
PAUSE_S = 2.0
_BROKEN = (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, ConnectionError, TimeoutError)
#: Where repositories' files are until they are verified.
STAGING = ".fetching"


def fetch(
    required: Sequence[RequiredFile],
    root: Path,
    *,
    hub: str | None = None,
    report: Callable[[str], None] = LOG.info,
) -> int:
    """Verify existing files, reading every byte, and fetch missing ones.

    Returns the number of files fetched now.

    Parameters
    ----------
    root : Path
        The models folder. It may be read-only if nothing is missing.
    hub : str, optional
        Address of the Hugging Face hub.
    report : callable
        Takes one line per file.

    Raises
    ------
    AppError
        Exit code 75 if a source can't be reached or another process fetches into this folder, 65 if a
        file is not the one that was published or recorded before or can't be loaded, 73 or 74 if it can't
        be written.
    """
    hashes = verify(required, root, full=True)
    record([item for item in required if is_published(item, hashes)], root, hashes)
    recorded = Lock.read(root).files
    for name in hashes:
        report(f"{name}: exists, " + ("verified" if name in recorded else NOT_RECORDED))
    if not any(item.is_missing(root) for item in required):
        return 0
    with locked(root / f"{STAGING}.held", timeout=0):
        fetcher = _Fetcher(root, Lock.read(root), hub, report)
        fetched = sum(fetcher.one(item) for item in required if item.found(root) is None)
        shutil.rmtree(root / STAGING, ignore_errors=True)
    # hashed under their final names now, because runs may find the folder read-only
    verify(required, root)
    return fetched


class _Fetcher:
    """Fetches into one models folder."""

    def __init__(self, root: Path, lock: Lock, hub: str | None, report: Callable[[str], None]) -> None:
        self.root, self.lock, self.hub, self.report = root, lock, hub, report
        self.listings: dict[str, dict[str, tuple[str, str]]] = {}

    def one(self, item: RequiredFile) -> bool:
        """Fetch a file; False if it is optional and its source does not have it."""
        if item.file.packaged:
            return self._copy(item)
        return self._from_hub(item) if item.part.repository else self._from_url(item)

    def _copy(self, item: RequiredFile) -> bool:
        target = self.root / item.folder / item.file.names[0]
        with atomic_path(target) as temporary:
            shutil.copyfile(Path(__file__).parents[1] / item.file.packaged, temporary)
        self._record(target, sha256_file(target), "bidsapp-recon", item)
        return True

    def _from_url(self, item: RequiredFile) -> bool:
        target = self.root / item.folder / item.file.names[-1]
        url, partial = item.file.url, target.with_name(f".{target.name}.partial")
        self._announce(target, url, item)
        self._install(_download(url, partial), target, url, item, item.file.sha256)
        return True

    def _from_hub(self, item: RequiredFile) -> bool:
        repository, names = item.part.repository, item.file.names
        key = f"{repository}@{item.part.revision}"
        if key not in self.listings:
            self.listings[key] = _list_repository(repository, item.part.revision, self.hub)
        name = next((n for n in names if n in self.listings[key]), "")
        if not name:
            if item.file.optional or item.file.unless in self.listings[key]:
                return False
            raise _unreachable(key, f"it holds none of {', '.join(names)}")
        target = self.root / item.folder / name
        commit, published = self.listings[key][name]
        self._announce(target, repository, item)
        with _translated(repository):
            from huggingface_hub import hf_hub_download

            staging = self.root / STAGING / item.folder
            path = hf_hub_download(repository, name, revision=commit, local_dir=staging, endpoint=self.hub)
        self._install(Path(path), target, f"{repository}@{commit}/{name}", item, published)
        return True

    def _announce(self, target: Path, source: str, item: RequiredFile) -> None:
        size = f", {item.file.gigabytes:g} GB" if item.file.gigabytes else ""
        self.report(f"{target.relative_to(self.root)}: from {source}{size}; licence: {item.part.licence}")

    def _install(self, waiting: Path, target: Path, source: str, item: RequiredFile, published: str) -> None:
        """Give a verified file its final name, and record it."""
        if message := stand_in(waiting):
            waiting.unlink()
            raise AppError(f"{source}: {message}", exit_code=ExitCode.BAD_DATA)
        if not (published or item.file.sha256_start):
            try:
                check_loadable(waiting, target.name)
            except AppError:
                waiting.unlink()
                raise
        sha256 = sha256_file(waiting)
        recorded = self.lock.files.get(target.relative_to(self.root).as_posix(), {}).get("sha256", "")
        for expected in (published, item.file.sha256_start, recorded):
            if not sha256.startswith(expected):
                waiting.unlink()
                raise not_the_published(source, sha256, expected)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(waiting, target)
        self._record(target, sha256, source, item)

    def _record(self, target: Path, sha256: str, source: str, item: RequiredFile) -> None:
        name, size = target.relative_to(self.root).as_posix(), target.stat().st_size
        entry = {"sha256": sha256, "size": size, "source": source, "licence": item.part.licence}
        self.lock.record_files({name: entry})


def _unreachable(what: object, why: object) -> AppError:
    return AppError(
        f"{what}: cannot be fetched ({why}). Check the connection (and the proxy, if there is one) and run "
        "the same command again: the part that was fetched is kept. Without a connection, fetch on another "
        "machine and copy the models folder.",
        exit_code=ExitCode.TRY_AGAIN,
    )


def _download(url: str, partial: Path) -> Path:
    """Bring a partial file to its full length, resuming where it ends."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    validator = partial.with_name(f"{partial.name}.etag")
    for attempt in range(_TRIES):
        try:
            _continue(url, partial, validator)
            validator.unlink(missing_ok=True)
            return partial
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and attempt == 0:
                partial.unlink(missing_ok=True)  # longer than the file is now, or complete
            elif error.code < 500 or attempt == _TRIES - 1:
                raise _unreachable(url, f"HTTP {error.code} {error.reason}") from error
        except _BROKEN as error:
            if attempt == _TRIES - 1:
                raise _unreachable(url, getattr(error, "reason", None) or error) from error
        LOG.info("%s: the connection broke, trying again", url)
        time.sleep(attempt * PAUSE_S)
    raise _unreachable(url, "the connection broke too often")


def _continue(url: str, partial: Path, validator: Path) -> None:
    """Ask for the rest of a file, or for all of it if it is another version now."""
    have = partial.stat().st_size if partial.is_file() else 0
    version = validator.read_text(encoding="utf-8") if have and validator.is_file() else ""
    headers = {"User-Agent": f"bidsapp-recon/{__version__}", "Accept-Encoding": "identity"}
    if version:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        resumed = response.status == HTTPStatus.PARTIAL_CONTENT
        if response.headers.get_content_type() == "text/html":
            raise _unreachable(url, "the server sent a web page in place of the file")
        length = response.headers.get("Content-Length")
        total = int(length) + (have if resumed else 0) if length else None
        etag = response.headers.get("ETag") or ""
        # A weak tag cannot vouch for bytes.
        strong = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified") or ""
        if not resumed:
            partial.unlink(missing_ok=True)
        validator.write_text(strong, encoding="utf-8")
        with partial.open("ab") as out:
            with closing(_Meter(url.rpartition("/")[2], out.tell(), total)) as meter:
                for piece in iter(lambda: response.read(_PIECE), b""):
                    out.write(piece)
                    meter.add(len(piece))
            if total is not None and out.tell() != total:
                raise http.client.IncompleteRead(b"", total - out.tell())


class _Meter:
    """A bar in a terminal, a line every half minute elsewhere."""

    def __init__(self, what: str, done: int, total: int | None) -> None:
        self.what, self.done, self.total, self.last = what, done, total, time.monotonic()
        self.bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(desc=what, initial=done, total=total, unit="B", unit_scale=True, leave=False)

    def add(self, n: int) -> None:
        self.done += n
        if self.bar is not None:
            self.bar.update(n)
        elif time.monotonic() - self.last > _EVERY_S:
            self.last = time.monotonic()
            of = f" of {self.total / 1e6:.0f}" if self.total else ""
            LOG.info("%s: %.0f%s MB", self.what, self.done / 1e6, of)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _list_repository(repository: str, revision: str, hub: str | None) -> dict[str, tuple[str, str]]:
    """Commit and published SHA-256 (empty for small files) of each file of a repository."""
    from huggingface_hub import HfApi

    with _translated(repository):
        info = HfApi(endpoint=hub).model_info(repository, revision=revision, files_metadata=True)
        siblings: Iterable[Any] = info.siblings or ()
        return {s.rfilename: (info.sha or revision, s.lfs.sha256 if s.lfs else "") for s in siblings}


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Translate the hub's errors."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    known = (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, TimeoutError)
    try:
        yield
    except Exception as error:
        transport = type(error).__module__.startswith(("httpx", "httpcore"))
        if transport or isinstance(error, known):
            raise _unreachable(what, str(error).partition("\n")[0]) from error
        raise
