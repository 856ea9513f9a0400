"""The split of the stimuli into a training and a test set."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bidsapp.data.captions import ID_COLUMNS, same_ids
from bidsapp.errors import AppError, ExitCode, InputProblems, Problem
from bidsapp.records import Split
from bidsapp.storage.files import sha256_file
from bidsapp.storage.text import normalized, read_json, read_tsv

#: The sets, and their names in messages.
_SETS = {"train": "training", "test": "test"}
#: Placeholder for the subject's label in the path of a split file.
SUBJECT_FIELD = "{subject}"


class HasSplit(Protocol):
    """The part of a :class:`~bidsapp.data.stimuli.StimulusSet` that a split needs."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Stimulus ids without ``stim-``."""

    @property
    def split_column(self) -> dict[str, str]:
        """``train`` or ``test`` of each id that has one."""

    @property
    def table(self) -> Path:
        """The stimuli table."""


@dataclass(frozen=True)
class _Read:
    """A split file as it is: its sets may name stimuli that were never shown, or that do not exist."""

    name: str
    sets: dict[str, set[str]]
    variant: str = ""
    n_variants: int = 0


def split_path(pattern: str | os.PathLike[str] | None, subject: str) -> Path | None:
    """Return a subject's split file: ``{subject}`` in its path is replaced by the label."""
    return None if pattern is None else Path(os.fspath(pattern).replace(SUBJECT_FIELD, subject))


def make_split(
    stimuli: HasSplit,
    seen_ids: Iterable[str],
    split_file: str | os.PathLike[str] | None = None,
    *,
    variant: str | int | None = None,
) -> Split:
    """Divide the stimuli that a subject saw into a training and a test set.

    Parameters
    ----------
    stimuli : StimulusSet
        Without a split file, the column ``split`` of its table is used.
    seen_ids : iterable of str
        Stimuli of the subject's trials; others are left out of both sets, and counted.
    split_file : path, optional
        A TSV with the columns ``stimulus_id`` and ``split`` (train or test), or a JSON object with
        ``train_ids`` and ``test_ids``, either at its top or in each of its ``variants`` (LAION-fMRI's
        split files). Either these ids or those of the stimuli table may lack the image's suffix.
    variant : str or int, optional
        ``variant_id`` in a JSON with several variants; by default the only one, else 0.

    Returns
    -------
    Split
        Its name is the JSON's ``name`` (with the variant, if there are several), the file's name,
        or ``stimuli.tsv``. Both sets are sorted. ``unknown`` has the ids that the stimuli table lacks.

    Raises
    ------
    InputProblems
        Exit code 65: stimuli in both sets, or a set with none of the stimuli that the subject saw.
    AppError
        If the file cannot be read or has an unknown form.
    """
    wanted = None if variant is None else str(variant)
    seen = {s for s in seen_ids if s}
    unknown: tuple[str, ...] = ()
    if split_file is None:
        if wanted is not None:
            raise AppError("--split-variant needs a split file in JSON (--split).", exit_code=ExitCode.USAGE)
        source, column = stimuli.table, stimuli.split_column
        read = _Read(source.name, {kind: {s for s in stimuli.ids if column.get(s) == kind} for kind in _SETS})
        sets = read.sets
    else:
        source = Path(split_file)
        reader = _read_json_split if source.suffix.lower() == ".json" else _read_tsv_split
        read = reader(source, wanted)
        sets, unknown = _as_listed(read.sets, seen.union(stimuli.ids))
    both = (read.sets["train"] & read.sets["test"]) | (sets["train"] & sets["test"])
    problems = _overlap(source, both) + _empty_sets(source, sets, seen, unknown, split_file is None)
    if problems:
        raise InputProblems(problems)
    return Split(
        read.name,
        tuple(sorted(sets["train"] & seen)),
        tuple(sorted(sets["test"] & seen)),
        file=source,
        sha256=sha256_file(source),
        variant=read.variant,
        n_variants=read.n_variants,
        unknown=unknown,
        unseen=len((sets["train"] | sets["test"]) - seen),
    )


def _as_listed(sets: Mapping[str, set[str]], known: set[str]) -> tuple[dict[str, set[str]], tuple[str, ...]]:
    """Spell a file's ids as the dataset does, and list those that the dataset lacks."""
    spelled = {kind: same_ids(ids, known) for kind, ids in sets.items()}
    unknown = {s for kind, ids in sets.items() for s in ids if s not in spelled[kind]}
    return {kind: set(found.values()) for kind, found in spelled.items()}, tuple(sorted(unknown))


def _overlap(source: Path, both: set[str]) -> list[Problem]:
    if not both:
        return []
    listed = ", ".join(sorted(both)[:5]) + (" ..." if len(both) > 5 else "")
    plural = "stimuli are" if len(both) > 1 else "stimulus is"
    what = f"{len(both)} {plural} in both the training and the test set: {listed}"
    return [Problem(str(source), what, "Put each stimulus into one set.")]


def _empty_sets(
    source: Path, sets: Mapping[str, set[str]], seen: set[str], unknown: tuple[str, ...], column: bool
) -> list[Problem]:
    problems = []
    for kind, noun in _SETS.items():
        if sets[kind] & seen:
            continue
        if sets[kind]:
            example, other = min(sets[kind]), min(seen, default="none")
            what = (
                f"None of the {len(sets[kind])} stimuli of the {noun} set was shown in these trials "
                f"(the set has e.g. {example!r}, the trials e.g. {other!r})."
            )
            fix = "Check that the ids are spelled as in the trials table, and that no session is missing."
        elif unknown:
            count = f"{len(unknown)} of the split's ids {'are' if len(unknown) > 1 else 'is'} unknown"
            what = (
                f"The {noun} set has no stimulus of this dataset; {count}, e.g. {unknown[0]!r} "
                f"(the trials have e.g. {min(seen, default='none')!r})."
            )
            fix = "Check that the split belongs to this dataset, and how its ids are spelled."
        else:
            what = f"The {noun} set is empty."
            fix = "Put stimuli into both sets."
            if column:
                fix = f"Fill the column 'split' of {source.name} with train and test, or give --split FILE."
        problems.append(Problem(str(source), what, fix))
    return problems


def _read_tsv_split(path: Path, variant: str | None) -> _Read:
    if variant is not None:
        raise _bad(path, "is a table, which has no variants; only split files in JSON do")
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
    return _Read(path.name, sets)


def _read_json_split(path: Path, variant: str | None) -> _Read:
    content = normalized(read_json(path))
    name = str(content.get("name", path.stem))
    if "variants" not in content:
        if variant is not None:
            raise _bad(path, "has no variants to choose from")
        return _Read(name, _sets_of(path, content))
    variants = content["variants"]
    if not isinstance(variants, list) or not variants or not all(isinstance(v, dict) for v in variants):
        raise _bad(path, "'variants' must be a list of objects, with at least one")
    numbers = [str(v.get("variant_id", i)) for i, v in enumerate(variants)]
    wanted = variant if variant is not None else (numbers[0] if len(numbers) == 1 else "0")
    if numbers.count(wanted) != 1:
        listed = ", ".join(numbers[:20]) + (" ..." if len(numbers) > 20 else "")
        raise _bad(path, f"does not have exactly one variant {wanted}; its variants are {listed}")
    chosen = _sets_of(path, variants[numbers.index(wanted)])
    return _Read(name if len(numbers) == 1 else f"{name} variant {wanted}", chosen, wanted, len(numbers))


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
