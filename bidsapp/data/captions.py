"""Captions of the stimuli, several per stimulus."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from bidsapp.data._tables import read_table
from bidsapp.errors import AppError, ExitCode

#: Columns that may hold the stimulus id; ``image_name`` is LAION-fMRI's.
ID_COLUMNS = ("stimulus_id", "stim_id", "image_name", "label")
#: Names of the table in a stimuli folder; the first one found is used. The second is LAION-fMRI's.
CAPTION_TABLES = ("captions.tsv", "task-images_desc-captions.csv")
#: Values of a column ``source`` whose captions are left out. In addition to people's captions, LAION-fMRI has
#: captions by a language model for some of its images only (docs, "Stimulus Derivatives"). If used, they
#: would make the shared images, which are the test set, differ from those of single subjects.
_LEFT_OUT = ("ai",)

_IMAGE_SUFFIX = re.compile(r"\.(png|jpe?g|bmp|tiff?|webp)$", re.IGNORECASE)


def read_captions(path: Path, ids: Iterable[str] = ()) -> dict[str, tuple[str, ...]]:
    """Read a table of captions.

    Returns captions in file order by stimulus id, without ``stim-``.

    Parameters
    ----------
    path : Path
        TSV or CSV with the columns ``stimulus_id`` and ``caption``, one row per caption. Rows with an
        empty caption or ``n/a`` are left out, and those whose column ``source`` is ``ai``; quotes
        that a spreadsheet or pandas put around a whole caption are removed.
    ids : iterable of str
        Stimuli of the dataset. Either these or the ids of the captions may lack the image's suffix.

    Raises
    ------
    AppError
        If the table cannot be read or lacks a column.
    """
    table = read_table(path)
    column = next((name for name in ID_COLUMNS if name in table), None)
    if column is None or "caption" not in table:
        message = f"{path}: needs the columns stimulus_id and caption; it has {', '.join(table)}."
        raise AppError(message, exit_code=ExitCode.BAD_DATA)
    texts = table["caption"]
    if "source" in table:
        left_out = (source.strip().lower() in _LEFT_OUT for source in table["source"])
        texts = ["" if out else text for text, out in zip(texts, left_out, strict=True)]
    spelled: dict[str, str] = {}  # by id in the table, which has several rows per id
    for raw in table[column]:
        if raw not in spelled:
            spelled[raw] = raw.strip().removeprefix("stim-")
    same = same_ids(spelled.values(), ids)
    spelled = {raw: same.get(name, name) for raw, name in spelled.items()}
    captions: dict[str, list[str]] = {}
    for raw, caption in zip(table[column], texts, strict=True):
        text = caption.strip()
        if '"' in text:
            text = _unquoted(text)
        if text and text != "n/a":
            captions.setdefault(spelled[raw], []).append(text)
    return {stimulus: tuple(each) for stimulus, each in captions.items()}


def same_ids(given: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Match the ids of another file to the stimuli of a dataset.

    Returns the given ids that are known, as the dataset spells them; ambiguous ones are left out.

    Parameters
    ----------
    given, known : iterable of str
        Ids without ``stim-``. One of two matching ids may lack the suffix of an image file; ``a.jpg``
        and ``a.png`` are two stimuli.
    """
    exact = set(known)
    bare: dict[str, list[str]] = {}
    result = {}
    for stimulus in given:
        if stimulus in exact:
            result[stimulus] = stimulus
            continue
        if not bare:
            for name in exact:
                bare.setdefault(_IMAGE_SUFFIX.sub("", name), []).append(name)
        stem = _IMAGE_SUFFIX.sub("", stimulus)
        found = bare.get(stem, []) if stem == stimulus else [n for n in bare.get(stem, []) if n == stem]
        if len(found) == 1:
            result[stimulus] = found[0]
    return result


def _unquoted(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] == '"':
        inner = text[1:-1]
        # Only the quotes that CSV writers add: inside these, each quote is doubled.
        if '"' not in inner.replace('""', ""):
            return inner.replace('""', '"').strip()
    return text
