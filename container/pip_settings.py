"""Collect this machine's own pip settings (mirror, certificate, folders of wheels) for builds in containers.

``python3 pip_settings.py FOLDER`` writes FOLDER/pip.conf, beside it the certificate and the wheels that the
settings name. The pip.conf is right where FOLDER is mounted as /mnt. Without such settings it is empty.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

INSIDE = "/mnt"
KEYS = ("index-url", "extra-index-url", "find-links", "trusted-host", "proxy", "cert")


def settings() -> dict[str, list[str]]:
    """Values of each key from pip's files and environment variables, every word once."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False, cwd="/"
    ).stdout
    found: dict[str, list[str]] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        key = name.rsplit(".", 1)[-1]
        if name.startswith(("global.", "install.", ":env:.")) and key in KEYS:
            words = found.setdefault(key, [])
            words += [w for w in str(ast.literal_eval(value)).split() if w not in words]
    return found


def main(folder: Path) -> None:
    """Fill the folder anew."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "wheels").mkdir(parents=True)
    lines = ["[global]"]
    for key, words in settings().items():
        kept = [w for w in words if not w.startswith(("/", "file:"))]
        for path in (Path(w.removeprefix("file://")) for w in words if w not in kept):
            if key == "cert":
                shutil.copyfile(path, folder / "ca.crt")
                kept.append(f"{INSIDE}/ca.crt")
            elif key == "find-links" and path.is_dir():
                for wheel in path.glob("*.whl"):
                    link_or_copy(wheel, folder / "wheels" / wheel.name)
                kept.append(f"{INSIDE}/wheels")
            # An index in a local folder only adds to the one that is reached over the network.
        if kept:
            lines.append(f"{key} = {' '.join(dict.fromkeys(kept))}")
    (folder / "pip.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")


def link_or_copy(source: Path, target: Path) -> None:
    """Hard link a file, or copy it where the folders are on different file systems."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
