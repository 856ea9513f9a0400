"""Text, JSON and TSV files, written atomically and checked when read."""

from __future__ import annotations

import json
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.atomic import atomic_path
from bidsapp.storage.files import kind_of

#: Largest table or text that is read, in bytes: NSD's 73,000 stimuli have a sixth of this.
_MOST_TEXT = 1 << 26
#: Largest JSON file that is read, in bytes, unless its reader expects more; as objects it is 20 times larger.
_MOST_JSON = 1 << 24
#: Most columns of a table; their names are checked one by one.
_MOST_COLUMNS = 10_000


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 with Unix line ends, atomically."""
    with atomic_path(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike[str], obj: Mapping[str, Any]) -> None:
    """Write a JSON object atomically: keys in the order given, two spaces' indent, no nulls.

    Keys whose value is None are left out at every depth (BIDS metadata have no nulls). NumPy scalars,
    arrays and paths become numbers, lists and strings.

    Raises
    ------
    ValueError
        For NaN and infinities, which JSON does not have, and for None inside a list.
    """
    write_text(path, json_text(obj))


def json_text(obj: Mapping[str, Any]) -> str:
    """Format as :func:`write_json` does."""
    return json.dumps(_without_nulls(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _without_nulls(value: Any) -> Any:
    if hasattr(value, "tolist"):  # NumPy, without importing it
        value = value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(k): _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        if any(v is None for v in value):
            raise ValueError("a JSON list for BIDS metadata cannot hold None")
        return [_without_nulls(v) for v in value]
    return value


def read_json(path: str | os.PathLike[str], *, most: int = _MOST_JSON) -> dict[str, Any]:
    """Read a JSON object from a file of up to ``most`` bytes.

    Raises
    ------
    AppError
        Exit code 66 if there is no such file, 65 if it is not a JSON object, or an object in it has a key
        twice; the message has the path, and the line if known.
    """
    text = read_text(path, most=most)
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise _bad(path, error.lineno, f"is not valid JSON ({error.msg})") from error
    except (RecursionError, ValueError) as error:
        # Nested too deeply, or a number of more digits than Python converts.
        raise _bad(path, None, f"cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise _bad(path, None, "must hold a JSON object ({...})")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; a duplicate key is refused, because readers differ in which of the two counts."""
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f"it has the key {twice[:80]!r} twice")
    return content


def normalized(value: Any) -> Any:
    """Compose accented letters (NFC) in a text, or in all texts of lists and objects.

    macOS decomposes them in names of files, so the same name typed elsewhere would not match.
    """
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if isinstance(value, list):
        return [normalized(item) for item in value]
    return {normalized(k): normalized(v) for k, v in value.items()} if isinstance(value, dict) else value


def read_text(path: str | os.PathLike[str], *, most: int = _MOST_TEXT) -> str:
    """Read a UTF-8 text file; a byte-order mark is dropped, Windows line ends become Unix ones.

    Raises
    ------
    AppError
        Exit code 66 if there is no such file, or it is not a regular file (a pipe, a device), 65 if it is
        not UTF-8 or too large, 74 if reading fails.
    """
    if (kind := kind_of(path)).startswith("is "):
        raise AppError(f"{os.fspath(path)}: {kind}.", exit_code=ExitCode.NO_INPUT, path=path)
    try:
        if (size := Path(path).stat().st_size) > most:
            raise _bad(path, None, f"has {size} bytes; files of this kind are read up to {most} bytes")
        raw = Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        message = f"{os.fspath(path)}: there is no such file. Check the path and, in a container, the mounts."
        raise AppError(message, exit_code=ExitCode.NO_INPUT, path=path) from error
    except OSError as error:
        message = f"{os.fspath(path)}: cannot be read ({error.strerror}). Check its permissions."
        raise AppError(message, exit_code=ExitCode.IO_ERROR, path=path) from error
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _bad(path, line, "is not UTF-8 text; save it as UTF-8") from error


def write_tsv(path: str | os.PathLike[str], columns: Mapping[str, Sequence[Any]]) -> None:
    """Write a BIDS table atomically: tab-separated, a header, ``n/a`` for what is missing.

    Parameters
    ----------
    columns : mapping of str to sequence
        Name of each column and its cells, all of the same length. None, NaN and empty strings become
        ``n/a``; floats have six significant digits; booleans are ``true`` and ``false``. Tabs and line ends
        inside a text become spaces, since the format cannot hold them.

    Raises
    ------
    ValueError
        If the columns differ in length.
    """
    write_text(path, tsv_text(columns))


def tsv_text(columns: Mapping[str, Sequence[Any]]) -> str:
    """Format as :func:`write_tsv` does."""
    lengths = {len(cells) for cells in columns.values()}
    if len(lengths) > 1:
        raise ValueError(f"columns of unequal length: { {k: len(v) for k, v in columns.items()} }")
    rows = ["\t".join(_cell(name) for name in columns)]
    rows += ["\t".join(_cell(v) for v in row) for row in zip(*columns.values(), strict=True)]
    return "\n".join(rows) + "\n"


def _cell(value: Any) -> str:
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if value is None:
        return "n/a"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return "n/a" if math.isnan(value) else f"{value:.6g}"
    text = str(value)
    if any(c in text for c in "\t\r\n\0"):
        text = " ".join(text.replace("\0", " ").split())
    return text or "n/a"


def read_tsv(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Read a tab-separated table with a header, every cell as text.

    A byte-order mark, line ends of Windows and of old Macs, blanks around the names of columns, and blank
    lines at the end are tolerated. Accented letters are composed (:func:`normalized`). Quotes have no
    special meaning, as in BIDS.
    Columns are in file order.

    Raises
    ------
    AppError
        Exit code 65, with path and line, for an empty file, a column without a name or with the name of
        another, a row with more or fewer cells than the header, and a NUL byte; 66 if there is no file.
    """
    text = normalized(read_text(path))
    if "\n" not in text:
        text = text.replace("\r", "\n")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise _bad(path, line, "holds a NUL byte, so it is damaged or not a text table")
    # Not splitlines(): captions may hold characters such as U+2028, which do not end a line in TSV.
    lines = text.rstrip("\n").split("\n")
    names = [name.strip() for name in lines[0].split("\t")]
    if not lines[0].strip():
        raise _bad(path, 1, "has no header row")
    if len(names) > _MOST_COLUMNS:
        raise _bad(path, 1, f"has {len(names)} columns; up to {_MOST_COLUMNS} are read")
    for index, name in enumerate(names):
        if not name:
            raise _bad(path, 1, f"column {index + 1} has no name")
        if name in names[:index]:
            raise _bad(path, 1, f"has two columns named {name!r}")
    rows, n = lines[1:], len(names)
    for number, row in enumerate(rows, start=2):
        if row.count("\t") != n - 1:
            k = row.count("\t") + 1
            what = f"has {k} cell{'s' if k != 1 else ''} where the header has {n}"
            raise _bad(path, number, what)
    # One split of everything: splitting each of several 100,000 rows takes three times as long.
    cells = "\t".join(rows).split("\t") if rows else []
    return {name: cells[index::n] for index, name in enumerate(names)}


def _bad(path: str | os.PathLike[str], line: int | None, what: str) -> AppError:
    where = f"{os.fspath(path)}, line {line}" if line is not None else os.fspath(path)
    return AppError(f"{where}: {what}.", exit_code=ExitCode.BAD_DATA, path=path)
