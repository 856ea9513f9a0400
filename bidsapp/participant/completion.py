"""What a finished subject was computed from, so that the same command again has nothing to do.

The record is ``logs/sub-XX/[task-YY_]done.json``: inputs, settings, weights, and the length of every
output. It is written last, and removed before any output of the subject is written again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsapp import __version__
from bidsapp.bids.outputs import OutputTree
from bidsapp.config import RunConfig
from bidsapp.errors import AppError, ExitCode
from bidsapp.report.records import ScoreRow
from bidsapp.storage.files import fingerprint
from bidsapp.storage.stages import changes, flat_inputs
from bidsapp.storage.text import read_json, write_text

if TYPE_CHECKING:
    from bidsapp.models.suite import Models
    from bidsapp.planning.check import CheckedRun


class Completion:
    """Record of what one subject's outputs were computed from.

    Parameters
    ----------
    tree : OutputTree
        Of the subject.
    config : RunConfig
        With the device and number format that are used.
    """

    def __init__(self, tree: OutputTree, run: CheckedRun, models: Models, config: RunConfig) -> None:
        self.tree = tree
        name = f"task-{tree.task}_done.json" if tree.task else "done.json"
        self.path = tree.path("log_dir", run_id="x").parent / name
        self._models = models
        self._networks = config.recipe.metrics.networks
        subject, split = run.subjects[tree.subject].inputs, run.subjects[tree.subject].split
        stimuli, regions = run.stimuli, run.region_files(tree.subject, config)
        images = {stimuli.path(i) for i in (*split.train, *split.test)}
        tables = [stimuli.table, *([stimuli.captions_path] if stimuli.captions_path else [])]
        self.inputs = flat_inputs(
            {
                "version": __version__,
                "settings": config.affecting_results(),
                "models": [models.digest, models.digest_of("evaluation") if models.uses else ""],
                "betas": [[*fingerprint(s.betas), s.scale] for s in subject.sessions],
                "trials": [s.stimulus_ids for s in subject.sessions],
                "masks": {roi: mask_record(path) for roi, path in subject.masks.items()},
                "regions": [mask_record(path) for path in regions],
                "noise_ceiling": subject.noise_ceiling and fingerprint(subject.noise_ceiling),
                "split": [split.name, split.train, split.test],
                "stimuli": [fingerprint(path) for path in sorted({*images, *tables})],
            }
        )

    def find(self) -> tuple[list[ScoreRow], str] | None:
        """Give the summary table and the run's id, if the subject is done.

        Every output must exist with its recorded length; no output is read.
        """
        try:
            record = read_json(self.path)
            if changes(record["inputs"], self.inputs):
                return None
            for name, size in record["outputs"].items():
                if not size or (self.tree.out_dir / name).stat().st_size != size:
                    return None
            rows = [ScoreRow(**row) for row in record["scores"]]
            scored, run_id = set(record["networks"]), str(record["run"])
        except (AppError, OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        # A network that was not installed then may be now; only this check loads the networks.
        if set(self._networks) - scored and set(self._models.networks) != scored:
            return None
        return rows, run_id

    def withdraw(self) -> None:
        """Remove the record: the subject is not done."""
        self.path.unlink(missing_ok=True)

    def record(self, rows: Sequence[ScoreRow], run_id: str, written: Collection[Path] = ()) -> None:
        """Record that the subject is done.

        Parameters
        ----------
        rows : sequence of ScoreRow
            The summary table.
        written : collection of Path
            Files that the run wrote; those in the subject's folder must exist now.

        Raises
        ------
        AppError
            Exit code 74 if an output is missing or empty.
        """
        own = self.tree.out_dir / f"sub-{self.tree.subject}"
        outputs = sorted({*self._outputs(), *(path for path in written if path.is_relative_to(own))})
        sizes = {str(p.relative_to(self.tree.out_dir)): _size(p) for p in outputs}
        if lost := [name for name, size in sizes.items() if not size]:
            path = self.tree.out_dir / lost[0]
            what = "empty" if path.exists() else "missing"
            raise AppError(
                f"{path}: {what}, although it was written. Is the disk full, or does another program change "
                "the output folder? Run the same command again.",
                exit_code=ExitCode.IO_ERROR,
            )
        record: dict[str, Any] = {"run": run_id, "inputs": self.inputs}
        record |= {"networks": sorted(self._models.networks)}
        record |= {"outputs": sizes, "scores": [asdict(row) for row in rows]}
        write_text(self.path, json.dumps(record, default=float, indent=1) + "\n")

    def _outputs(self) -> list[Path]:
        tree = self.tree
        start = f"sub-{tree.subject}_task-{tree.task}_" if tree.task else f"sub-{tree.subject}_"
        folders = (tree.path("model").parent, tree.path("figures"))
        found = (p for folder in folders for p in folder.glob(f"{start}*") if p.is_file())
        return [*found, tree.path("report")]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def mask_record(path: Path) -> list[list[Any]]:
    """Fingerprint a ROI's image and, for a segmentation, the table of labels next to it (``*_dseg.tsv``)."""
    table = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".tsv")
    return [fingerprint(each) for each in (path, table) if each.is_file()]
