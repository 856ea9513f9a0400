"""The table of a session's trials: which stimulus each volume of the betas belongs to."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.text import read_tsv

#: Columns that may name the stimulus; the first one present is used. ``label`` is LAION-fMRI's.
ID_COLUMNS = ("stim_id", "stimulus_id", "label", "image_name")


def read_trials(path: Path) -> tuple[str, ...]:
    """Read the stimulus of every volume.

    ``*_trials.tsv`` has one row per volume. With a column ``beta_index`` (from 0) the rows may be in any
    order; without it they are in volume order.
    Returns stimulus ids without ``stim-``, in volume order; "" for a trial without a stimulus (``n/a``).

    Raises
    ------
    AppError
        If the table cannot be read, names no stimuli, or its ``beta_index`` is not 0, 1, ... n-1.
    """
    table = read_tsv(path)
    column = next((name for name in ID_COLUMNS if name in table), None)
    if column is None:
        what = f"has no column that names the stimulus (one of {', '.join(ID_COLUMNS)})"
        raise _bad(path, f"{what}; its columns are {', '.join(table)}")
    ids = ["" if v.strip() in ("", "n/a") else v.strip().removeprefix("stim-") for v in table[column]]
    if not ids:
        raise _bad(path, "has no trials")
    if "beta_index" not in table:
        return tuple(ids)
    try:
        order = [int(v) for v in table["beta_index"]]
    except ValueError as error:
        raise _bad(path, f"column beta_index must hold whole numbers ({error})") from error
    if sorted(order) != list(range(len(ids))):
        twice = sorted(i for i, n in Counter(order).items() if n > 1)[:3]
        why = f"; {', '.join(map(str, twice))} appears twice" if twice else ""
        span = f"it runs from {min(order)} to {max(order)} over {len(ids)} rows{why}"
        raise _bad(path, f"column beta_index must number the volumes 0 to {len(ids) - 1}, each once; {span}")
    ordered = [""] * len(ids)
    for position, stimulus in zip(order, ids, strict=True):
        ordered[position] = stimulus
    return tuple(ordered)


def _bad(path: Path, what: str) -> AppError:
    return AppError(f"{path}: {what}.", exit_code=ExitCode.BAD_DATA)
