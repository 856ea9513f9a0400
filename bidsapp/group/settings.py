"""Whether the subjects of a group were run with the same settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bidsapp.errors import AppError
from bidsapp.storage.text import read_json

#: Settings that must agree for scores to be comparable, and their names in the report.
_NAMES = {
    "Recipe": "the recipe",
    "RecipeDigest": "the values of the recipe",
    "Seed": "the seed",
    "RegionsOfInterest": "the region of interest",
    "MinNoiseCeiling": "the minimum noise ceiling of voxels",
    "Split": "the split",
    "TestImages": "the number of test images",
}


def run_settings(root: Path, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read the settings of each subject's run from the sidecar of its table of means, by label."""
    settings: dict[str, dict[str, Any]] = {}
    for label in labels:
        for path in sorted((root / f"sub-{label}" / "func").glob("*_desc-summary_metrics.json")):
            try:
                found = read_json(path).get("RunSettings")
            except AppError:
                continue
            if isinstance(found, dict):
                settings[label] = found
    return settings


def differing_settings(settings: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Return one sentence for each setting in which the subjects' runs differ."""
    warnings = []
    for key, name in _NAMES.items():
        groups: dict[str, list[str]] = {}
        for label, found in settings.items():
            groups.setdefault(json.dumps(found.get(key)), []).append(f"sub-{label}")
        if len(groups) > 1:
            listed = "; ".join(f"{', '.join(subjects)}: {value}" for value, subjects in groups.items())
            warnings.append(f"Subjects differ in {name}, so their scores are not comparable ({listed}).")
    return tuple(warnings)
