"""Run the BIDS validator on the input, where one is installed."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bidsapp.errors import ExitCode, InputProblems, Problem

LOG = logging.getLogger("bidsapp")
_NAMES = ("bids-validator-deno", "bids-validator")
_TIMEOUT_S = 1800
#: A path that cannot be created, so that the validator leaves no cache in the user's home.
_NO_CACHE = f"{os.devnull}/none"


#: A proxy that does not exist, so that the validator downloads nothing (HED schemas).
NOWHERE = "http://127.0.0.1:9"


def _no_network() -> dict[str, str]:
    """Environment variables that keep the validator off the network."""
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), NOWHERE)
    return {
        **proxies,
        **{name.lower(): value for name, value in proxies.items()},
        "NO_PROXY": "",
        "no_proxy": "",
    }


def _is_about_the_network(issue: dict[str, Any]) -> bool:
    """Whether the validator only reports that it could not download HED schemas."""
    return "HED" in str(issue.get("code")) and "SCHEMA_LOAD_FAILED" in str(issue.get("issueMessage"))


def validate_input(bids_dir: Path, participants: Sequence[str] = ()) -> bool:
    """Validate a dataset; False if no validator is installed or it could not run.

    If participants are given, errors in the folders of other subjects do not count.

    Raises
    ------
    InputProblems
        Exit code 16, with every error that the validator reports.
    """
    if not (bids_dir / "dataset_description.json").is_file():
        return False  # indexing reports this better
    beside = Path(sys.executable).parent
    found = [shutil.which(n, path=str(beside)) or shutil.which(n) for n in _NAMES]
    command = next((f for f in found if f), None)
    if command is None:
        LOG.info(
            "BIDS validation of the input skipped: no BIDS validator is installed. Install it with: "
            'pip install "bidsapp-recon[validator]". --skip-bids-validation hides this line.'
        )
        return False
    try:
        done = subprocess.run(
            [command, "--json", str(bids_dir)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            env={"DENO_DIR": _NO_CACHE, **os.environ, **_no_network()},
            check=False,
        )
        issues = json.loads(done.stdout)["issues"]["issues"]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
        LOG.warning("BIDS validation of the input skipped: %s could not run (%s)", command, error)
        return False
    errors = [issue for issue in issues if issue.get("severity") == "error"]
    relevant = [issue for issue in errors if not _is_about_the_network(issue)]
    problems = [_problem(bids_dir, issue) for issue in relevant]
    wanted = {label.removeprefix("sub-") for label in participants}
    if wanted:
        problems = [problem for problem in problems if problem.subject in {"", *wanted}]
    if len(relevant) < len(errors):
        LOG.warning("HED annotations of the input were not checked: that would need the network")
    if problems:
        raise InputProblems(problems)
    LOG.info("The input is valid BIDS")
    return True


def _problem(bids_dir: Path, issue: dict[str, Any]) -> Problem:
    place = str(issue.get("location", "")).lstrip("/")
    what = " ".join(str(issue[k]) for k in ("code", "subCode", "issueMessage", "rule") if issue.get(k))
    fix = "fix the dataset, name the file in its .bidsignore, or pass --skip-bids-validation"
    subject = re.match(r"sub-([0-9A-Za-z+]+)/", place)
    label = subject[1] if subject else ""
    return Problem(str(bids_dir / place), what, fix, ExitCode.INVALID_BIDS, label)
