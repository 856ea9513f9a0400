"""Names of all files that the app writes for a subject, and a small writer for each kind of file.

Every name comes from one registry, :data:`NAMES`; no other module spells a file name.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bidsapp.errors import AppError, ExitCode
from bidsapp.records import Mask
from bidsapp.storage.atomic import atomic_path
from bidsapp.storage.nifti import save_volume
from bidsapp.storage.text import write_json, write_tsv

#: Key -> path in the output folder. Parts in brackets are left out if their value is "".
NAMES = {
    "mask": "sub-{subject}/func/sub-{subject}[_task-{task}][_space-{space}]_label-{roi}_mask.nii.gz",
    "model": "sub-{subject}/func/sub-{subject}[_task-{task}]_desc-{desc}_model.h5",
    "metrics": "sub-{subject}/func/sub-{subject}[_task-{task}]_desc-{desc}_metrics.tsv",
    "image": "sub-{subject}/func/sub-{subject}[_task-{task}]_stim-{stim}_desc-{desc}_image.png",
    "image_sidecar": "sub-{subject}/func/sub-{subject}[_task-{task}]_desc-{desc}_image.json",
    "report": "sub-{subject}.html",
    "figures": "sub-{subject}/figures",
    "figure": "sub-{subject}/figures/{name}.png",
    "log_dir": "logs/sub-{subject}/{run_id}",
    "log": "logs/sub-{subject}/{run_id}/run.log",
    "settings": "logs/sub-{subject}/{run_id}/run.toml",
    "report_data": "logs/sub-{subject}/{run_id}/report.npz",
}
_DEFAULTS = {"model": {"desc": "ridge"}, "metrics": {"desc": "recon"}, "image": {"desc": "recon"}}
_DEFAULTS["image_sidecar"] = _DEFAULTS["image"]

#: What each ``desc`` means; written to ``descriptions.tsv``.
DESCRIPTIONS = {
    "recon": "Reconstruction from brain responses, after the last stage (latent diffusion).",
    "vdvae": "Reconstruction from brain responses after the first stage (VDVAE), a low-level guess.",
    "null": "The same pipeline with responses and images paired at random in training.",
    "nullvdvae": "First stage of desc-null.",
    "oracle": "Decoded from the stimulus' true latents and tokens: the upper bound of the models.",
    "oraclevdvae": "First stage of desc-oracle.",
    "summary": "Means over the test images for each condition, with intervals and chance levels.",
    "ladder": "Control ladder: parts of the pipeline replaced by the truth or by chance, same test images.",
    "targets": "How well each target was predicted, before any image was generated.",
    "findings": "What limits the reconstructions: one finding per stage.",
    "holdout": "Identification by targets predicted without the test image's cluster.",
    "protocols": "The final reconstructions scored by each published protocol.",
    "regions": "Identification from each region of interest alone, and without it.",
    "seeds": "Seed-to-seed variability of the scores.",
    "ridge": "Ridge regressions from responses to latents and tokens.",
}

_FIELD = re.compile(r"\{(\w+)\}")
_OPTIONAL = re.compile(r"\[([^\]]*)\]")
_LABEL = re.compile(r"[0-9A-Za-z]+")
#: What else values may hold: BIDS labels +, the app's own names more.
_ALLOWED = dict.fromkeys(("subject", "task", "space"), "[0-9A-Za-z+]+")
_ALLOWED |= dict.fromkeys(("run_id", "name"), "[0-9A-Za-z+._-]+")
_IMAGE_SUFFIX = re.compile(r"\.(png|jpe?g|bmp|tiff?|webp)$", re.IGNORECASE)
_LONGEST_LABEL = 100


@dataclass(frozen=True)
class OutputTree:
    """Paths of the files of one subject, task and space (labels without keys; the last two may be "").

    ``out_dir`` is the root of the output dataset.
    """

    out_dir: Path
    subject: str
    task: str
    space: str

    def path(self, key: str, **fields: str) -> Path:
        """Path of one output.

        Parameters
        ----------
        key : str
            One of :data:`NAMES`.
        **fields : str
            What else the name needs: ``roi`` (a name, or several joined by :func:`roi_label`), ``stim`` (a
            stimulus id, turned into a label by :func:`stimulus_label`), ``desc``, ``run_id``, ``name``.

        Raises
        ------
        KeyError
            For an unknown key or a field that is missing.
        ValueError
            For a value that BIDS names cannot hold.
        """
        values = {"subject": self.subject, "task": self.task, "space": self.space}
        values |= _DEFAULTS.get(key, {}) | fields
        if "stim" in values:
            values["stim"] = stimulus_label(values["stim"])
        if "roi" in values:
            values["roi"] = roi_label([values["roi"]])
        template = _OPTIONAL.sub(lambda m: m[1] if values[_FIELD.findall(m[1])[0]] else "", NAMES[key])
        for name in _FIELD.findall(template):
            allowed = _ALLOWED.get(name, _LABEL.pattern)
            if not re.fullmatch(allowed, values[name]) or values[name] in (".", ".."):
                raise ValueError(f"{name}={values[name]!r} cannot be part of the name of {key!r}")
        return self.out_dir / template.format_map(values)


def stimulus_label(stimulus: str) -> str:
    """Turn a stimulus id into the alphanumeric label that a BIDS name needs.

    An image file's suffix and all but ASCII letters and digits are dropped; of a label of more than 100
    characters, 80 are kept, followed by part of the id's hash. AppError (exit code 65) if nothing is left.
    """
    label = "".join(_LABEL.findall(_IMAGE_SUFFIX.sub("", stimulus)))
    if not label:
        message = f"Stimulus id {stimulus!r} has no letter (a to z) or digit to name files by. Rename it."
        raise AppError(message, exit_code=ExitCode.BAD_DATA)
    if len(label) > _LONGEST_LABEL:
        label = label[:80] + hashlib.sha256(stimulus.encode()).hexdigest()[:12]
    return label


def stimulus_labels(stimuli: Iterable[str]) -> dict[str, str]:
    """Labels of many stimuli; two that would share a file raise AppError (exit code 65).

    Labels that differ only in case count as the same, since some file systems ignore case.
    """
    labels: dict[str, str] = {}
    owners: dict[str, str] = {}
    for stimulus in stimuli:
        label = stimulus_label(stimulus)
        other = owners.setdefault(label.lower(), stimulus)
        if other != stimulus:
            message = (
                f"Stimuli {other!r} and {stimulus!r} would both be written as stim-{label}, because BIDS "
                "labels hold letters and digits only. Rename one of them in stimuli.tsv and the trials."
            )
            raise AppError(message, exit_code=ExitCode.BAD_DATA)
        labels[stimulus] = label
    return labels


def roi_label(names: Sequence[str]) -> str:
    """One label for the union of ROIs: their names joined, or ``union`` if that is too long.

    Of a path, only the file's name without ``.nii.gz`` is used.
    """
    plain = [re.sub(r"\.nii(\.gz)?$", "", name.rpartition("/")[2]) for name in names]
    label = "".join("".join(_LABEL.findall(name)) for name in plain)
    return label if 0 < len(label) <= 60 else "union"


def source_uri(path: Path, roots: Path | Mapping[str, Path]) -> str:
    """BIDS URI of an input file, ``bids:source:sub-01/...``; ``file://`` outside of all datasets.

    ``roots`` is the input dataset (``source``), or several by their names in ``DatasetLinks``; the innermost
    that holds the file is used.
    """
    absolute = Path(os.path.abspath(path))
    named = roots.items() if isinstance(roots, Mapping) else [("source", roots)]
    inside = [(name, root) for name, r in named if absolute.is_relative_to(root := Path(os.path.abspath(r)))]
    if not inside:
        return absolute.as_uri()
    name, root = max(inside, key=lambda item: len(item[1].parts))
    return f"bids:{name}:{absolute.relative_to(root).as_posix()}"


def write_mask(
    tree: OutputTree,
    roi: str,
    mask: Mask,
    *,
    sources: Sequence[str],
    spatial_reference: str | None = None,
    selection: Mapping[str, Any] | None = None,
) -> Path:
    """Write the mask of the voxels used, and its sidecar.

    Parameters
    ----------
    roi : str
        Name of the ROI; see :func:`roi_label` for several.
    sources : sequence of str
        BIDS URIs of the masks that it comes from; see :func:`source_uri`.
    spatial_reference : str, optional
        ``SpatialReference`` of the betas; by default the first source. A ``bids::`` URI of the input becomes
        a ``bids:source:`` one.
    selection : mapping, optional
        How the voxels were chosen: further keys of the sidecar.
    """
    path = tree.path("mask", roi=roi)
    save_volume(path, mask.inside.astype(np.uint8), mask.affine)
    reference = spatial_reference or (sources[0] if sources else None)
    if reference is not None and reference.startswith("bids::"):
        reference = "bids:source:" + reference.removeprefix("bids::")
    sidecar = {
        "Description": "Voxels whose responses were decoded.",
        "Type": "ROI",
        "Sources": list(sources),
        "SpatialReference": reference,
        **(selection or {}),
    }
    write_json(sidecar_path(path), sidecar)
    return path


def write_metrics(
    tree: OutputTree,
    columns: Mapping[str, Sequence[Any]],
    meta: Mapping[str, Any],
    *,
    desc: str = "recon",
) -> Path:
    """Write a table of metrics, one row per image, and its sidecar.

    Parameters
    ----------
    columns : mapping of str to sequence
        ``stimulus_id`` first; see :func:`bidsapp.storage.text.write_tsv`.
    meta : mapping
        Sidecar: for each column a text (its Description) or an object; other keys as they are.
    desc : str
        One of :data:`DESCRIPTIONS`.
    """
    path = tree.path("metrics", desc=desc)
    described = {k: {"Description": v} if k in columns and isinstance(v, str) else v for k, v in meta.items()}
    write_tsv(path, columns)
    write_json(sidecar_path(path), described)
    return path


def write_images(
    tree: OutputTree,
    stimuli: Sequence[str],
    images: NDArray[np.uint8],
    meta: Mapping[str, Any],
    *,
    desc: str = "recon",
) -> list[Path]:
    """Write images as PNG, and one sidecar that all of them inherit.

    Parameters
    ----------
    stimuli : sequence of str, length n
        Ids without ``stim-``.
    images : ndarray of uint8, shape (n, H, W, 3)
        RGB, 0 to 255.
    meta : mapping
        Sidecar (``Sources``, model, seed, ...); a Description is added if it has none.
    desc : str
        One of :data:`DESCRIPTIONS`.

    Raises
    ------
    AppError
        If two stimuli would share a name.
    ValueError
        If shapes or types do not match.
    """
    from PIL import Image

    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) != len(stimuli):
        got = f"{images.dtype} {images.shape}"
        raise ValueError(f"{len(stimuli)} images of uint8 (n, H, W, 3) expected, got {got}")
    stimulus_labels(stimuli)
    paths = [tree.path("image", stim=stimulus, desc=desc) for stimulus in stimuli]
    for path, image in zip(paths, images, strict=True):
        with atomic_path(path) as temporary:
            # Level and format are fixed, so that the same pixels always give the same bytes.
            Image.fromarray(image).save(temporary, format="PNG", compress_level=6)
    description = {"Description": DESCRIPTIONS[desc]} if desc in DESCRIPTIONS else {}
    write_json(tree.path("image_sidecar", desc=desc), description | dict(meta))
    return paths


def write_model_sidecar(tree: OutputTree, meta: Mapping[str, Any], *, desc: str = "ridge") -> Path:
    """Write the sidecar of the model file."""
    path = sidecar_path(tree.path("model", desc=desc))
    description = {"Description": DESCRIPTIONS[desc]} if desc in DESCRIPTIONS else {}
    write_json(path, description | dict(meta))
    return path


def sidecar_path(path: Path) -> Path:
    """Path of a file's own JSON sidecar."""
    return path.with_name(path.name.removesuffix(".gz").rpartition(".")[0] + ".json")
