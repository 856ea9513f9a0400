"""Which stimuli train the decoder and which test it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from bidsapp.data.captions import ID_COLUMNS
from bidsapp.errors import AppError, ExitCode, InputProblems, Problem
from bidsapp.io import read_json, read_tsv
from bidsapp.records import Split

_SETS = ("train", "test")


class HasSplit(Protocol):
    """What of a :class:`~bidsapp.data.stimuli.StimulusSet` a split needs."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Stimulus ids without ``stim-``."""

    @property
    def split_column(self) -> dict[str, str]:
        """``train`` or ``test`` of each id that has one."""

    @property
    def folder(self) -> Path:
        """The stimuli folder."""


def make_split(
    stimuli: HasSplit,
    seen_ids: Iterable[str],
    split_file: str | os.PathLike[str] | None = None,
    *,
    variant: int | None = None,
) -> Split:
    """Divide the stimuli that a subject saw into a training and a test set.

    Parameters
    ----------
    stimuli : StimulusSet
        Gives the split where no file does: the column ``split`` of its table.
    seen_ids : iterable of str
        Stimuli of the subject's trials; others are left out of both sets.
    split_file : path, optional
        A TSV with the columns ``stimulus_id`` and ``split`` (train or test), or a JSON object with
        ``train_ids`` and ``test_ids``, either at its top or in each of its ``variants`` (LAION-fMRI's
        split files).
    variant : int, optional
        ``variant_id`` to use of a JSON with several; the only one, else 0, by default.

    Returns
    -------
    Split
        Its name is the JSON's ``name`` (with the variant where there are several), the file's name,
        or ``stimuli.tsv``. Both sets sorted.

    Raises
    ------
    InputProblems
        Exit code 65: stimuli in both sets, or a set with none of those that the subject saw.
    AppError
        Where the file can't be read or is of no known form.
    """
    if split_file is None:
        source = stimuli.folder / "stimuli.tsv"
        name, column = "stimuli.tsv", stimuli.split_column
        sets = {kind: {s for s in stimuli.ids if column.get(s) == kind} for kind in _SETS}
    else:
        source = Path(split_file)
        reader = _read_json_split if source.suffix.lower() == ".json" else _read_tsv_split
        name, sets = reader(source, variant)
    seen = {s for s in seen_ids if s}
    problems = _problems(source, sets, seen)
    if problems:
        raise InputProblems(problems)
    return Split(name, tuple(sorted(sets["train"] & seen)), tuple(sorted(sets["test"] & seen)))


def _problems(source: Path, sets: Mapping[str, set[str]], seen: set[str]) -> list[Problem]:
    problems = []
    both = sorted(sets["train"] & sets["test"])
    if both:
        listed = ", ".join(both[:5]) + (" ..." if len(both) > 5 else "")
        plural = "stimuli are" if len(both) > 1 else "stimulus is"
        what = f"{len(both)} {plural} in both the training and the test set: {listed}"
        problems.append(Problem(str(source), what, "Put each stimulus into one set."))
    for kind in _SETS:
        if not sets[kind]:
            what = f"The {'training' if kind == 'train' else kind} set is empty."
            mend = "Fill the column 'split' of stimuli.tsv with train and test, or give --split FILE."
            problems.append(Problem(str(source), what, mend))
        elif not sets[kind] & seen:
            example, other = min(sets[kind]), min(seen, default="none")
            what = (
                f"None of the {len(sets[kind])} stimuli of the {kind} set was shown in these trials "
                f"(the set has e.g. {example!r}, the trials e.g. {other!r})."
            )
            mend = "Check that the ids are spelled as in the trials table, and that all sessions are there."
            problems.append(Problem(str(source), what, mend))
    return problems


def _read_tsv_split(path: Path, variant: int | None) -> tuple[str, dict[str, set[str]]]:
    if variant is not None:
        raise _bad(path, "is a table, which has no variants; only split files in JSON have")
    table = read_tsv(path)
    column = next((name for name in ID_COLUMNS if name in table), None)
    if column is None or "split" not in table:
        raise _bad(path, f"needs the columns stimulus_id and split; it has {', '.join(table)}")
    sets: dict[str, set[str]] = {kind: set() for kind in _SETS}
    for line, (raw, value) in enumerate(zip(table[column], table["split"], strict=True), start=2):
        kind = value.strip().lower()
        if kind in ("", "n/a"):
            continue
        if kind not in sets:
            raise _bad(path, f"line {line}: split is {value!r}; it must be train, test or n/a")
        sets[kind].add(raw.strip().removeprefix("stim-"))
    return path.name, sets


def _read_json_split(path: Path, variant: int | None) -> tuple[str, dict[str, set[str]]]:
    content = read_json(path)
    name = str(content.get("name", path.stem))
    if "variants" not in content:
        if variant is not None:
            raise _bad(path, "has no variants to choose from")
        return name, _sets_of(path, content)
    variants = content["variants"]
    if not isinstance(variants, list) or not variants or not all(isinstance(v, dict) for v in variants):
        raise _bad(path, "'variants' must be a list of objects, with at least one")
    numbers = [v.get("variant_id", i) for i, v in enumerate(variants)]
    wanted = variant if variant is not None else (numbers[0] if len(numbers) == 1 else 0)
    if numbers.count(wanted) != 1:
        listed = ", ".join(str(n) for n in numbers[:20])
        raise _bad(path, f"has not exactly one variant {wanted}; its variants are {listed}")
    chosen = _sets_of(path, variants[numbers.index(wanted)])
    return (name if len(variants) == 1 else f"{name} variant {wanted}"), chosen


def _sets_of(path: Path, entry: Mapping[str, Any]) -> dict[str, set[str]]:
    sets = {}
    for kind in _SETS:
        ids = entry.get(f"{kind}_ids")
        if not isinstance(ids, list) or not all(isinstance(s, str) for s in ids):
            raise _bad(path, f"needs {kind}_ids, a list of stimulus ids (strings)")
        sets[kind] = {s.removeprefix("stim-") for s in ids}
    return sets


def _bad(path: Path, what: str) -> AppError:
    return AppError(f"{path}: {what}.", exit_code=ExitCode.BAD_DATA)
