"""``--reports-only``: pages of finished subjects written again from what their runs recorded."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from bidsapp.bids.outputs import OutputTree
from bidsapp.config import RunConfig
from bidsapp.errors import AppError, ExitCode
from bidsapp.participant.lock import subject_lock
from bidsapp.report.saved import load_report
from bidsapp.report.subject import write_subject_report
from bidsapp.storage.text import read_json, write_text

LOG = logging.getLogger("bidsapp")


def rewrite_reports(config: RunConfig) -> list[Path]:
    """Write the pages of all finished subjects, or of those asked for; needs the output folder only.

    Raises
    ------
    AppError
        Exit code 66 if a subject that was asked for is not finished, or none is; 65 if a record is damaged.
    """
    records = sorted(config.output_dir.glob("logs/sub-*/*done.json"))
    labels = {path.parent.name.removeprefix("sub-") for path in records}
    asked = {label.removeprefix("sub-") for label in config.participants}
    if not labels or asked - labels:
        which = (
            f"no finished run of sub-{', sub-'.join(sorted(asked - labels))}"
            if asked
            else "no finished subject"
        )
        what = (
            f"{config.output_dir}: {which}, so there is no report to write. Run the participant level first."
        )
        raise AppError(what, exit_code=ExitCode.NO_INPUT, path=config.output_dir)
    return [
        _rewrite(path, config)
        for path in records
        if not asked or path.parent.name.removeprefix("sub-") in asked
    ]


def _rewrite(path: Path, config: RunConfig) -> Path:
    label = path.parent.name.removeprefix("sub-")
    with subject_lock(label, config.output_dir, config.work_dir):
        record = read_json(path)
        tree = OutputTree(config.output_dir, label, "", "")
        report = load_report(tree.path("report_data", run_id=str(record.get("run"))))
        if report.subject != label:
            raise AppError(
                f"{path}: its run is of sub-{report.subject}.", exit_code=ExitCode.BAD_DATA, path=path
            )
        page = write_subject_report(tree.path("report"), report)
        # The page may have another length now; the subject is finished nevertheless.
        outputs = record["outputs"] | {str(page.relative_to(config.output_dir)): page.stat().st_size}
        write_text(path, json.dumps(record | {"outputs": outputs}, indent=1) + "\n")
    return page
