"""Which files are the betas, the trials, the masks and the noise ceiling: defaults and filter files.

A filter file is a JSON object like fMRIPrep's ``--bids-filter-file``: for each kind of file, the values
that its BIDS entities must have, e.g. ``{"betas": {"desc": "singletrial", "space": "T1w"}}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bidsapp.bids._index import ENTITY_KEYS, Index, IndexedFile
from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.hdf5 import SUFFIXES as HDF5_SUFFIXES
from bidsapp.storage.text import read_json

KINDS = ("betas", "trials", "mask", "noiseceiling")

#: None: the entity must be absent. "*": present with any value. A tuple: one of these.
Wanted = None | str | tuple[str, ...]

_NIFTI = (".nii", ".nii.gz")
_BETAS = (*_NIFTI, *HDF5_SUFFIXES)
#: The short keys of file names are accepted as well as the long names of entities.
_LONG_NAMES = {key: name for name, key in ENTITY_KEYS.items()} | {"sub": "subject", "resolution": "res"}
_ENTITIES = {*ENTITY_KEYS, "subject", "suffix", "datatype", "extension"}


@dataclass(frozen=True)
class Filters:
    """What the filter file requires of each kind of file (may be empty)."""

    by_kind: Mapping[str, Mapping[str, Wanted]]
    path: Path | None = None

    def select(self, index: Index, kind: str) -> list[IndexedFile]:
        """Files of one kind, in the index's order.

        A value in the filter file replaces the default for the same entity; the other defaults stay.
        """
        asked = self.by_kind.get(kind, {})
        tests = {name: test for name, test in _DEFAULTS[kind].items() if name not in asked}
        return [
            file
            for file in index.files
            if all(test(file.get(name)) for name, test in tests.items())
            and all(_matches(name, file.get(name), wanted) for name, wanted in asked.items())
        ]


def _is(*values: str) -> Callable[[str], bool]:
    return lambda value: value in values


def _starts(prefix: str) -> Callable[[str], bool]:
    # LAION-fMRI writes Noiseceiling where others write noiseceiling.
    return lambda value: value.lower().startswith(prefix)


_DEFAULTS: dict[str, dict[str, Callable[[str], bool]]] = {
    "betas": {"suffix": _is("statmap"), "extension": _is(*_BETAS), "stat": _starts("effect")},
    "trials": {"suffix": _is("trials"), "extension": _is(".tsv")},
    "mask": {"suffix": _is("mask", "dseg"), "extension": _is(*_NIFTI)},
    "noiseceiling": {
        "suffix": _is("statmap"),
        "extension": _is(*_NIFTI),
        "desc": _starts("noiseceiling"),
    },
}


def _matches(name: str, value: str, wanted: Wanted) -> bool:
    if wanted is None:
        return value == ""
    if wanted == "*":
        return value != ""
    options = (wanted,) if isinstance(wanted, str) else wanted
    if name == "run":
        return value.lstrip("0") in {option.lstrip("0") for option in options} and value != ""
    return value in options


def read_filters(path: Path | None) -> Filters:
    """Read a BIDS filter file.

    Parameters
    ----------
    path : Path or None
        None gives filters without requirements.

    Raises
    ------
    AppError
        Exit code 64 for a kind or an entity that does not exist or a value that is not a string, a
        number, null or a list of these; the errors of :func:`bidsapp.storage.text.read_json`.
    """
    if path is None:
        return Filters({})
    by_kind: dict[str, dict[str, Wanted]] = {}
    for kind, asked in read_json(path).items():
        if kind not in KINDS:
            raise _usage(path, f"unknown file type {kind!r}; choose from {', '.join(KINDS)}")
        if not isinstance(asked, dict):
            raise _usage(path, f"the filter of {kind!r} must be an object of entities and values")
        by_kind[kind] = {}
        for key, value in asked.items():
            name = _LONG_NAMES.get(key, key)
            if name not in _ENTITIES:
                raise _usage(path, f"unknown entity {key!r}; choose from {', '.join(sorted(_ENTITIES))}")
            by_kind[kind][name] = _wanted(path, name, value)
    return Filters(by_kind, path)


def _wanted(path: Path, name: str, value: object) -> Wanted:
    if value is None or value == "Query.NONE":
        return None
    if value == "Query.ANY":
        return "*"
    values = value if isinstance(value, list) else [value]
    texts = []
    for item in values:
        if isinstance(item, bool) or not isinstance(item, (str, int)):
            raise _usage(path, f"the value of {name!r} must be a string, a number, null or a list of strings")
        text = str(item)
        if name == "extension" and not text.startswith("."):
            text = "." + text
        prefix = {"subject": "sub-", "session": "ses-"}.get(name, "")
        texts.append(text.removeprefix(prefix) if prefix else text)
    return tuple(texts) if isinstance(value, list) else texts[0]


def _usage(path: Path, what: str) -> AppError:
    return AppError(f"{path}: {what}.", exit_code=ExitCode.USAGE)
