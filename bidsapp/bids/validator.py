"""Run the BIDS validator on the input, where one is installed."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from bidsapp.errors import ExitCode, InputProblems, Problem

LOG = logging.getLogger("bidsapp")
_NAMES = ("bids-validator-deno", "bids-validator")
_TIMEOUT_S = 1800
#: Where no folder can be made: the validator then leaves no caches in the user's home.
_NO_CACHE = f"{os.devnull}/none"


def validate_input(bids_dir: Path) -> bool:
    """Validate a dataset.

    Returns
    -------
    bool
        Whether a validator was there and ran.

    Raises
    ------
    InputProblems
        Exit code 16, with every error that the validator reports.
    """
    if not (bids_dir / "dataset_description.json").is_file():
        return False  # indexing says this better
    beside = Path(sys.executable).parent
    found = [shutil.which(n, path=str(beside)) or shutil.which(n) for n in _NAMES]
    command = next((f for f in found if f), None)
    if command is None:
        LOG.info("BIDS validation of the input skipped: no bids-validator is installed")
        return False
    try:
        done = subprocess.run(
            [command, "--json", str(bids_dir)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            env={"DENO_DIR": _NO_CACHE, **os.environ},
            check=False,
        )
        issues = json.loads(done.stdout)["issues"]["issues"]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
        LOG.warning("BIDS validation of the input skipped: %s could not run (%s)", command, error)
        return False
    problems = [_problem(bids_dir, issue) for issue in issues if issue.get("severity") == "error"]
    if problems:
        raise InputProblems(problems)
    LOG.info("The input is valid BIDS")
    return True


def _problem(bids_dir: Path, issue: dict[str, Any]) -> Problem:
    place = str(issue.get("location", "")).lstrip("/")
    what = " ".join(str(issue[k]) for k in ("code", "subCode", "issueMessage", "rule") if issue.get(k))
    mend = "mend the dataset, name the file in its .bidsignore, or pass --skip-bids-validation"
    subject = re.match(r"sub-([0-9A-Za-z+]+)/", place)
    label = subject[1] if subject else ""
    return Problem(str(bids_dir / place), what, mend, ExitCode.INVALID_BIDS, label)
