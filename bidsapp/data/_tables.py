"""Tables: tab-separated as in BIDS, or comma-separated as in other datasets."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.text import read_text, read_tsv

#: Longest cell of a CSV that is read, in characters: a stray quote can turn half a file into one cell.
_LONGEST_CELL = 1 << 17
_MOST_COLUMNS = 10_000


def read_table(path: Path) -> dict[str, list[str]]:
    """Read a table with a header, every cell as text: CSV (RFC 4180) if its suffix is ``.csv``, else TSV.

    The first column of a CSV is left out if it has no name: pandas writes row numbers there.
    Columns are in file order.

    Raises
    ------
    AppError
        Exit code 65, with path and line, for a table without a header, a column without a name or
        named twice, a row with more or fewer cells than the header, or quotes that do not close; 66
        if the file is missing.
    """
    if path.suffix.lower() != ".csv":
        return read_tsv(path)
    text = read_text(path)
    if "\0" in text:
        raise _bad(path, text.count("\n", 0, text.index("\0")) + 1, "holds a NUL byte, so it is damaged")
    csv.field_size_limit(_LONGEST_CELL)
    # Not splitlines(): captions may contain characters such as U+2028, which do not end a line here.
    reader = csv.reader(io.StringIO(text, newline="\n"), strict=True)
    columns: list[list[str]] = []
    names: list[str] = []
    try:
        for row in reader:
            if not names:
                names = _names(path, row)
                columns = [[] for _ in names]
            elif len(row) == len(names):
                for column, cell in zip(columns, row, strict=True):
                    column.append(cell)
            elif row:
                what = f"has {len(row)} cell{'s' if len(row) != 1 else ''} where the header has {len(names)}"
                raise _bad(path, reader.line_num, what)
    except csv.Error as error:
        raise _bad(path, reader.line_num, f"is not valid CSV ({error})") from error
    if not names:
        raise _bad(path, 1, "has no header row")
    return {name: column for name, column in zip(names, columns, strict=True) if name}


def _names(path: Path, row: list[str]) -> list[str]:
    if len(row) > _MOST_COLUMNS:
        raise _bad(path, 1, f"has {len(row)} columns; up to {_MOST_COLUMNS} are read")
    for index, name in enumerate(row):
        if not name.strip() and (index or len(row) == 1):
            raise _bad(path, 1, f"column {index + 1} has no name")
        if name in row[:index]:
            raise _bad(path, 1, f"has two columns named {name!r}")
    return row


def _bad(path: Path, line: int, what: str) -> AppError:
    return AppError(f"{path}, line {line}: {what}.", exit_code=ExitCode.BAD_DATA)
