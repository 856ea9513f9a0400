"""Write ``boutiques.json``, the app's Boutiques descriptor, from the command line's own definition.

python tools/boutiques_descriptor.py           writes the file
python tools/boutiques_descriptor.py --check   exit code 1 if the file is out of date
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from bidsapp import __version__
from bidsapp.cli import app
from bidsapp.cli.types import PERCENT
from bidsapp.cli.words import LEVELS, is_list
from bidsapp.errors import ExitCode

PATH = Path(__file__).parents[1] / "boutiques.json"
#: Paths that need not exist, which Boutiques' type File demands.
_MADE = {"output_dir", "work_dir"}
_POSITIONALS = {
    "bids_dir": "BIDS derivative dataset of single-trial betas.",
    "output_dir": "The dataset to write.",
    "analysis_level": "participant: reconstruct one subject at a time. group: collect the finished subjects.",
}
#: At most one of these options is given.
_PARTS = ("prepare", "shard", "boilerplate_only", "reports_only")
_EXIT_CODES = {
    ExitCode.SUBJECT_FAILED: "A subject failed; its report and log give the reason.",
    ExitCode.INVALID_BIDS: "The input is not a valid BIDS dataset.",
    ExitCode.UNKNOWN_LEVEL: "Unknown analysis level.",
    ExitCode.NOTHING_MATCHED: "The given labels or filters match nothing.",
    ExitCode.USAGE: "The command is wrong: an unknown option, or a choice that has to be made.",
    ExitCode.BAD_DATA: "The content of a file is wrong.",
    ExitCode.NO_INPUT: "A file or folder is missing.",
    ExitCode.INTERNAL: "An error of the app.",
    ExitCode.CANNOT_CREATE: "The output or work folder cannot be created or written.",
    ExitCode.IO_ERROR: "Reading or writing failed, or the disk is full.",
    ExitCode.TRY_AGAIN: "Weights are missing, memory is too small, or another job is working on the subject.",
}
_SIGNALS = {
    129: "Stopped by SIGHUP (a lost connection).",
    130: "Stopped by SIGINT.",
    143: "Stopped by SIGTERM; the same command resumes.",
}
#: Id, name, path below OUTPUT_DIR, what it is.
_OUTPUTS = (
    ("description", "Dataset description", "dataset_description.json", "Makes the output a BIDS derivative."),
    ("reports", "Subjects' reports", "sub-*.html", "One report per subject."),
    ("images", "Reconstructions", "sub-*/func/*_desc-recon_image.png", "One image per test stimulus."),
    ("scores", "Scores", "sub-*/func/*_metrics.tsv", "Tables with one row per image, and summaries."),
    ("models", "Models", "sub-*/func/*_model.h5", "The fitted regressions."),
    ("masks", "Masks", "sub-*/func/*_mask.nii.gz", "The voxels that were decoded."),
    ("group_table", "Group table", "phenotype/reconmetrics.tsv", "One row per subject; group level."),
    ("group_report", "Group report", "group.html", "Group level."),
    ("logs", "Logs", "logs/sub-*/*/run.log", "One log per run, next to its settings."),
)
_LISTED = {"reports", "images", "scores", "models", "masks", "logs"}


def descriptor(command: click.Command = app) -> dict[str, Any]:
    """Describe a command in Boutiques' schema 0.5: each argument and option an input, in order."""
    inputs = [_input(p) for p in command.params if p.expose_value]
    outputs = [
        {
            "id": name,
            "name": title,
            "description": what,
            "path-template": f"[OUTPUT_DIR]/{path}",
            "optional": True,
            **({"list": True} if name in _LISTED else {}),
        }
        for name, title, path, what in _OUTPUTS
    ]
    missing = set(ExitCode) - set(_EXIT_CODES) - {ExitCode.OK}
    if missing:
        raise SystemExit(f"tools/boutiques_descriptor.py: describe the exit codes {missing}")
    codes = {int(code): text for code, text in _EXIT_CODES.items()} | _SIGNALS
    keys = [given["value-key"] for given in inputs]
    parts = [given["id"] for given in inputs if given["id"] in _PARTS]
    groups = [{"id": "parts", "name": "Parts of a run", "members": parts, "mutually-exclusive": True}]
    return {
        "name": "bidsapp-recon",
        "description": " ".join((command.help or "").split()),
        "tool-version": __version__,
        "schema-version": "0.5",
        "command-line": " ".join(["bidsapp-recon", *keys]),
        "container-image": {"type": "docker", "image": f"bidsapp-recon:{__version__}"},
        "inputs": inputs,
        **({"groups": groups} if len(parts) > 1 else {}),
        "output-files": outputs,
        "error-codes": [{"code": code, "description": codes[code]} for code in sorted(codes)],
    }


def _input(param: click.Parameter) -> dict[str, Any]:
    name = str(param.name)
    found: dict[str, Any] = {
        "id": name,
        "name": name.replace("_", " ").capitalize(),
        "type": "String",
        "value-key": f"[{name.upper()}]",
        "optional": not param.required,
    }
    if isinstance(param, click.Option):
        found["description"] = _about(param)
        found["command-line-flag"] = next(word for word in param.opts if word.startswith("--"))
        if param.is_flag or param.count:
            return found | {"type": "Flag"}
        if param.multiple:
            flag = found["command-line-flag"]
            # Lists as BIDS Apps have them follow one flag; other options are repeated.
            found |= {"list": True, "list-separator": " " if is_list(param) else f" {flag} "}
    else:
        found["description"] = _POSITIONALS[name]
        found |= {"value-choices": list(LEVELS)} if name == "analysis_level" else {}
    return found | _kind(param.type, name)


def _about(option: click.Option) -> str:
    """Give an option's help, with its default, on one line."""
    text, default = " ".join((option.help or "").split()), option.default
    if (
        option.show_default
        and "[default:" not in text
        and not isinstance(default, bool)
        and default is not None
    ):
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        text = f"{text} [default: {shown}]".strip()
    return text


def _kind(kind: click.ParamType[Any], name: str) -> dict[str, Any]:
    if isinstance(kind, click.Choice):
        return {"value-choices": list(kind.choices)}
    if kind is PERCENT:
        return {"type": "Number", "minimum": 0, "maximum": 100}
    if isinstance(kind, click.types.IntParamType):
        low = getattr(kind, "min", None)
        return {"type": "Number", "integer": True, **({} if low is None else {"minimum": low})}
    if isinstance(kind, click.Path) and name not in _MADE:
        return {"type": "File"}
    return {}


def text() -> str:
    """Give the file's content."""
    return json.dumps(descriptor(), indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Write the file, or check that it is current."""
    if sys.argv[1:] == ["--check"]:
        current = PATH.is_file() and PATH.read_text(encoding="utf-8") == text()
        print(f"{PATH.name}: {'current' if current else 'not current: run ' + Path(__file__).name}")
        return 0 if current else 1
    PATH.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
