"""Captions of the stimuli, several for each."""

from __future__ import annotations

from pathlib import Path

from bidsapp.errors import AppError, ExitCode
from bidsapp.io import read_tsv

#: Columns that may name the stimulus; ``image_name`` is LAION-fMRI's.
ID_COLUMNS = ("stimulus_id", "stim_id", "image_name", "label")


def read_captions(path: Path) -> dict[str, tuple[str, ...]]:
    """Read ``captions.tsv``.

    Parameters
    ----------
    path : Path
        Columns ``stimulus_id`` and ``caption``, a row a caption. Rows with an empty caption or
        ``n/a`` are left out; quotes that a spreadsheet or pandas put around a whole caption are
        taken off.

    Returns
    -------
    dict of str to tuple of str
        Stimulus id without ``stim-`` -> its captions in file order.

    Raises
    ------
    AppError
        Where the table can't be read or lacks a column.
    """
    table = read_tsv(path)
    column = next((name for name in ID_COLUMNS if name in table), None)
    if column is None or "caption" not in table:
        message = f"{path}: needs the columns stimulus_id and caption; it has {', '.join(table)}."
        raise AppError(message, exit_code=ExitCode.BAD_DATA)
    captions: dict[str, list[str]] = {}
    for stimulus, caption in zip(table[column], table["caption"], strict=True):
        text = _unquoted(caption.strip())
        if text and text != "n/a":
            captions.setdefault(stimulus.strip().removeprefix("stim-"), []).append(text)
    return {stimulus: tuple(texts) for stimulus, texts in captions.items()}


def _unquoted(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] == '"':
        inner = text[1:-1]
        # Only quotes as CSV writers make them: inside, each quote is doubled.
        if '"' not in inner.replace('""', ""):
            return inner.replace('""', '"').strip()
    return text
