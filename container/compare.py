"""Compare the outputs of a container with those of a plain install, byte for byte.

``python3 compare.py EXPECTED FOUND TYPE`` exits with 1 and names every file that differs or is missing. What
no two runs share is ignored: the logs, the work folder and, in the reports, the command, folders, run,
wall time and Python's version. ``dataset_description.json`` must be the same except for the container,
whose type must be TYPE (docker or apptainer).
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

#: Folders of a run's own.
OWN = (".work", "logs/sub-")
LINES = (
    r"<pre>bidsapp-recon .*?</pre>",
    r'\s*<tr><th scope="row">(?:Run|Wall time|[Pp]ython)</th><td>.*?</td></tr>',
    r'\s*<tr><th scope="row">run\.(?:bids|output|work|models)_dir</th><td>.*?</td></tr>',
)


def files(root: Path) -> dict[str, Path]:
    """Files of a tree by their path in it, without those that no two runs share."""
    found = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
    return {name: path for name, path in found.items() if not name.startswith(OWN)}


def content(path: Path) -> bytes:
    """Bytes of a file, without what no two runs share."""
    data = path.read_bytes()
    if path.suffix == ".html":
        for line in LINES:
            data = re.sub(line.encode(), b"", data)
    if path.name == "dataset_description.json":
        description = json.loads(data)
        description["GeneratedBy"][0].pop("Container", None)
        data = json.dumps(description).encode()
    return data


def container(root: Path) -> dict[str, Any]:
    """Read what the dataset says of the container that made it."""
    description = json.loads((root / "dataset_description.json").read_text(encoding="utf-8"))
    return dict(description["GeneratedBy"][0].get("Container", {}))


def main(expected: Path, found: Path, kind: str) -> int:
    """Compare two trees, print the differences, give the exit code."""
    ours, theirs = files(expected), files(found)
    problems = [f"only in {expected}: {n}" for n in sorted(ours.keys() - theirs.keys())]
    problems += [f"only in {found}: {n}" for n in sorted(theirs.keys() - ours.keys())]
    both = sorted(ours.keys() & theirs.keys())
    problems += [f"differs: {n}" for n in both if content(ours[n]) != content(theirs[n])]
    if not any(n.endswith("_desc-recon_image.png") for n in both):
        problems.append("there are no reconstructions to compare")
    made_by = container(found)
    if made_by.get("Type") != kind or not made_by.get("Tag"):
        problems.append(f"the container is recorded as {made_by}, not as {kind}")
    print("\n".join(problems) or f"{len(both)} files are the same in {expected} and {found}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
