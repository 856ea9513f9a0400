"""Whether the subjects of a group come from runs with the same settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bidsapp.errors import AppError
from bidsapp.storage.text import read_json

#: What must be alike for scores to be comparable, and how a report calls it.
_NAMES = {
    "Recipe": "the recipe",
    "RecipeDigest": "the recipe's numbers",
    "Seed": "the seed",
    "RegionsOfInterest": "the region of interest",
    "MinNoiseCeiling": "the smallest noise ceiling of a voxel",
    "Split": "the split",
    "TestImages": "the number of test images",
}


def differing_settings(root: Path, labels: Sequence[str]) -> tuple[str, ...]:
    """Say in which settings the subjects' runs differ.

    Parameters
    ----------
    root : Path
        The output dataset.
    labels : sequence of str
        Subjects with scores, without ``sub-``.

    Returns
    -------
    tuple of str
        One sentence for each setting that is not the same for all; none where all are alike.
    """
    settings: dict[str, dict[str, Any]] = {}
    for label in labels:
        for path in sorted((root / f"sub-{label}" / "func").glob("*_desc-summary_metrics.json")):
            try:
                found = read_json(path).get("RunSettings")
            except AppError:
                continue
            if isinstance(found, dict):
                settings[label] = found
    warnings = []
    for key, name in _NAMES.items():
        groups: dict[str, list[str]] = {}
        for label, found in settings.items():
            groups.setdefault(json.dumps(found.get(key)), []).append(f"sub-{label}")
        if len(groups) > 1:
            listed = "; ".join(f"{', '.join(subjects)}: {value}" for value, subjects in groups.items())
            warnings.append(f"Subjects differ in {name}, so their scores are not comparable ({listed}).")
    return tuple(warnings)
