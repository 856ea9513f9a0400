"""The files at the root of the output dataset, which the jobs of all subjects share.

Their contents depend on the input dataset and the version, never on the subject of a job. Files that jobs add
to (links to further datasets, ``.bidsignore``, ``participants.tsv``) are merged under a lock.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bidsapp.bids._index import natural_key
from bidsapp.bids.outputs import DESCRIPTIONS
from bidsapp.errors import AppError, ExitCode
from bidsapp.storage.files import datasets_around
from bidsapp.storage.locks import locked
from bidsapp.storage.text import read_json, read_text, read_tsv, write_json, write_text, write_tsv

LOG = logging.getLogger("bidsapp")
BIDS_VERSION = "1.11.1"
APP = "bidsapp-recon"
#: No trailing slash on folders: the validator would then report the folder itself.
BIDSIGNORE = ("*.html", "figures", "*_statmap.*", "*_trials.*", "*_metrics.*", "*_model.*", "*_image.*")

_REFERENCES = ("https://arxiv.org/abs/2303.05334",)
_README = """# Images reconstructed from brain responses

[BIDS](https://bids.neuroimaging.io) derivative dataset written by `{app}` {version}. For every test
stimulus that a subject saw, it holds the image reconstructed from the subject's fMRI responses.

- `sub-<label>.html`, `group.html`: the reports; start here.
- `sub-<label>/func/*_desc-recon_image.png`: the reconstructions, `*_desc-vdvae_image.png` their first
  stage. `descriptions.tsv` explains each `desc-`.
- `sub-<label>/func/*_metrics.tsv`: scores, one row per image; the `.json` of the same name explains the
  columns.
- `sub-<label>/func/*_mask.nii.gz`: the voxels used. `*_model.h5`: the fitted regressions.
- `phenotype/reconmetrics.tsv`: one row per subject, written by the group level.
- `logs/`: the settings and the log of every run.

The file names listed in `.bidsignore` are not part of BIDS yet.
"""


def write_dataset_files(
    out_dir: str | os.PathLike[str],
    *,
    source_dir: str | os.PathLike[str],
    version: str,
    container: Mapping[str, str] | None = None,
    code_url: str | None = None,
    links: Mapping[str, Path] | None = None,
) -> None:
    """Write ``dataset_description.json``, ``README.md``, ``CHANGES``, ``descriptions.tsv``, ``.bidsignore``.

    Files that are up to date stay untouched.

    Parameters
    ----------
    out_dir : path
        Created if missing.
    source_dir : path
        The input dataset, to which ``bids:source:`` URIs refer (:attr:`Dataset.root`).
    version : str
        Of this app.
    container : mapping, optional
        ``Type``, ``Tag`` and ``URI`` of the container that the app runs in.
    code_url : str, optional
        Source code of this version.
    links : mapping of str to Path, optional
        Further datasets that URIs refer to, by name. Links that the description already has are kept,
        since another subject's job may have written them.

    Raises
    ------
    AppError
        Exit code 73 if the folder cannot be written, or is another pipeline's dataset.
    """
    out = Path(out_dir)
    refuse_foreign_dataset(out)
    with locked(out / f".{APP}.lock"):  # links are added to existing ones
        _write_dataset_files(out, source_dir, version, container, code_url, links or {})


def _write_dataset_files(
    out: Path,
    source_dir: str | os.PathLike[str],
    version: str,
    container: Mapping[str, str] | None,
    code_url: str | None,
    links: Mapping[str, Path],
) -> None:
    link = Path(os.path.relpath(source_dir, out)).as_posix()
    before = _optional_json(out / "dataset_description.json").get("DatasetLinks")
    known = {k: v for k, v in before.items() if isinstance(v, str)} if isinstance(before, dict) else {}
    known |= {name: Path(os.path.relpath(path, out)).as_posix() for name, path in links.items()}
    source = _first_json(source_dir, "dataset_description.json")
    generated: dict[str, Any] = {"Name": APP, "Version": version, "CodeURL": code_url}
    generated["Container"] = dict(container) if container else None
    origin = {"URL": link, "DOI": _text(source, "DatasetDOI"), "Version": _text(source, "DatasetVersion")}
    description = {
        "Name": f"{APP}: images reconstructed from {_text(source, 'Name') or 'fMRI responses'}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [generated],
        "SourceDatasets": [origin],
        "DatasetLinks": known | {"source": link},
        "ReferencesAndLinks": list(_REFERENCES),
    }
    _update_json(out / "dataset_description.json", description)
    _update_text(out / "README.md", _README.format(app=APP, version=version))
    _update_text(out / "CHANGES", f"{version}\n  - Written by {APP} {version}.\n")
    rows = ["desc_id\tdescription", *(f"desc-{k}\t{v}" for k, v in DESCRIPTIONS.items())]
    _update_text(out / "descriptions.tsv", "\n".join(rows) + "\n")
    ignore = out / ".bidsignore"
    own = read_text(ignore).splitlines() if ignore.is_file() else []
    _update_text(ignore, "\n".join(dict.fromkeys([*own, *BIDSIGNORE])) + "\n")


def refuse_foreign_dataset(out_dir: Path) -> None:
    """Raise AppError (exit code 73) if ``out_dir`` is a dataset of another pipeline."""
    path = out_dir / "dataset_description.json"
    if not path.is_file():
        return
    entries = _optional_json(path).get("GeneratedBy")
    names = [e.get("Name") for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
    if APP not in names:
        message = (
            f"{out_dir} already is a dataset of {', '.join(map(str, names)) or 'unknown origin'}, whose "
            "description would be overwritten. Choose a separate output folder for this app."
        )
        raise AppError(message, exit_code=ExitCode.CANNOT_CREATE)


def update_participants(
    out_dir: str | os.PathLike[str],
    labels: Iterable[str],
    *,
    source_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Add subjects to ``participants.tsv``; existing rows and columns are kept.

    Jobs of several subjects may do this at the same time (there is a lock file at the dataset's root).
    Returns the table: ``participant_id`` first, in natural order of labels.

    Parameters
    ----------
    labels : iterable of str
        With or without ``sub-``.
    source_dir : path, optional
        Input dataset whose ``participants.tsv`` (and ``.json``) give the other columns of new rows.
    """
    path = Path(out_dir) / "participants.tsv"
    names, known = _source_participants(Path(source_dir)) if source_dir is not None else ([], {})
    with locked(Path(out_dir) / f".{APP}.lock"):
        columns, rows = _participants(Path(out_dir))
        for label in labels:
            subject = "sub-" + label.removeprefix("sub-")
            rows[subject] = {**known.get(subject, {}), **rows.get(subject, {})}
        columns = list(dict.fromkeys([*columns, *names]))
        subjects = sorted(rows, key=natural_key)
        table: dict[str, Sequence[Any]] = {"participant_id": subjects}
        table |= {c: [rows[s].get(c) for s in subjects] for c in columns}
        if not path.is_file() or read_tsv(path) != _as_read(table):
            write_tsv(path, table)
        described = _first_json(source_dir, "participants.json") if source_dir is not None else {}
        described = {k: v for k, v in described.items() if k in columns and isinstance(v, dict)}
        own = {"participant_id": {"Description": "Subject of the input dataset."}}
        sidecar = path.with_suffix(".json")
        _update_json(sidecar, {**own, **described, **_optional_json(sidecar)})
    return path


def _source_participants(folder: Path) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Participants of a dataset, or of the one that it is a derivative of."""
    for place in datasets_around(folder):
        try:
            found = _participants(place)
        except AppError as error:  # the results do not depend on it
            LOG.warning("%s The subjects' columns are left out of the output's participants.tsv.", error)
            continue
        if found[1]:
            return found
    return [], {}


def _participants(folder: Path) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Columns other than the id, and rows by id, of a participants table ([], {} if there is none)."""
    path = folder / "participants.tsv"
    if not path.is_file():
        return [], {}
    table = read_tsv(path)
    ids = table.pop("participant_id", None)
    if ids is None:
        return [], {}
    rows = {subject: {c: table[c][i] for c in table} for i, subject in enumerate(ids)}
    return list(table), rows


def _as_read(table: Mapping[str, Sequence[Any]]) -> dict[str, list[str]]:
    return {k: ["n/a" if cell in (None, "") else str(cell) for cell in v] for k, v in table.items()}


def _optional_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} if it cannot be read, since nothing depends on it."""
    try:
        return read_json(path)
    except AppError:
        return {}


def _first_json(folder: str | os.PathLike[str], name: str) -> dict[str, Any]:
    """Read a file of a dataset, or of the one that it is a derivative of; {} if there is none."""
    found = (_optional_json(place / name) for place in datasets_around(Path(folder)))
    return next((content for content in found if content), {})


def _text(source: Mapping[str, Any], key: str) -> str | None:
    value = source.get(key)
    return value if isinstance(value, str) and value else None


def _update_text(path: Path, text: str) -> None:
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def _update_json(path: Path, content: Mapping[str, Any]) -> None:
    plain = json.loads(json.dumps(content))
    if not path.is_file() or _optional_json(path) != _without_nulls(plain):
        write_json(path, content)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value
