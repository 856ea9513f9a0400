"""Regions of interest one at a time: what each prefers, and how much of the decoding it carries.

- *Synthetic activation* (Ozcelik & VanRullen 2023, section "ROI analysis"): voxels of a region 1, others 0,
  through the ridge weights, decoded to a picture.
- *Keep-only*: the test images decoded with all other voxels at their training mean; *lesion*: with the
  region's voxels at theirs. The same decoder, not refitted; nulls are random sets of as many voxels.

See :mod:`bidsapp.decoding.regions` for the formulas.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bidsapp.config import RANDOM_SETS, RunConfig
from bidsapp.decoding.backends import choose_backend
from bidsapp.decoding.decoder import RidgeDecoder
from bidsapp.decoding.regions import part_similarity, similarity_weights, synthetic_targets, with_ties
from bidsapp.evidence import RegionScore, RoiAnalysis, Value
from bidsapp.metrics.identification import two_way
from bidsapp.metrics.statistics import mean_with_interval, percentile_interval, permutation_p
from bidsapp.pipeline.images import first_stage
from bidsapp.pipeline.records import Decoded, Refinement
from bidsapp.records import Mask
from bidsapp.seeds import seed_for
from bidsapp.storage.stages import StageResult

if TYPE_CHECKING:
    from bidsapp.models.suite import Models

LOG = logging.getLogger("bidsapp")
Inside = npt.NDArray[np.bool_]
REGIONS = "regions"


@dataclass(frozen=True)
class RegionsStart:
    """Regions that are decoded one at a time, their voxels among those decoded, and their stage 1."""

    inside: Mapping[str, Inside]
    refinement: Refinement


def start_regions(
    done: Decoded,
    responses: StageResult,
    mask: Mask,
    regions: Mapping[str, npt.NDArray[np.bool_]],
    models: Models,
    config: RunConfig,
) -> RegionsStart | None:
    """Make stage 1 of the regions' synthetic activations.

    Parameters
    ----------
    done : Decoded
    responses : StageResult
        Z-scored responses: ``train``, ``test``, and which voxels of the mask were ``kept``.
    mask : Mask
        The voxels decoded.
    regions : mapping of str to ndarray of bool, (x, y, z)
        Regions on the mask's grid. Those that hold none or all of the decoded voxels, or the same as
        another, are left out.
    models : Models
    config : RunConfig

    Returns
    -------
    RegionsStart or None
        None without the option, and where there is no region.
    """
    if not config.roi_analysis:
        return None
    inside = voxels_of(regions, mask.flat_index[responses["kept"]])
    if not inside:
        LOG.warning("--roi-analysis: no region holds some but not all of the decoded voxels")
        return None
    synthetic = synthetic_latents(done, responses, inside, config)
    names, label, seed = tuple(inside), done.subject, config.seed
    first = first_stage(done.stages, synthetic, names, label, models, seed, REGIONS)
    return RegionsStart(inside, Refinement(REGIONS, first, synthetic, names, seed))


def analyse_regions(
    done: Decoded,
    responses: StageResult,
    start: RegionsStart | None,
    finals: Mapping[str, StageResult],
    config: RunConfig,
) -> RoiAnalysis | None:
    """Decode regions of interest one at a time.

    Parameters
    ----------
    done : Decoded
    responses : StageResult
        Z-scored responses.
    start : RegionsStart or None
        From :func:`start_regions`; None where there is no region.
    finals : mapping of str to StageResult
        Stage 2 of their synthetic activations.
    config : RunConfig

    Returns
    -------
    RoiAnalysis or None
    """
    if start is None:
        return None
    return RoiAnalysis(
        names=start.refinement.ids,
        n_voxels=tuple(int(v.sum()) for v in start.inside.values()),
        stage1=start.refinement.initial["images"],
        stage2=finals[REGIONS]["images"],
        scores=score_regions(done, responses, start.inside, config),
    )


def voxels_of(
    regions: Mapping[str, npt.NDArray[np.bool_]], flat_index: npt.NDArray[np.int64]
) -> dict[str, Inside]:
    """Find each region's voxels among those decoded, (voxels,), without empty, whole and equal ones."""
    found: dict[str, Inside] = {}
    seen: dict[bytes, str] = {}
    for name, volume in regions.items():
        inside = np.asarray(volume.ravel(order="F")[flat_index])
        if not inside.any() or inside.all():
            what = "none" if not inside.any() else "all"
            LOG.info("region %s holds %s of the decoded voxels: left out", name, what)
        elif (other := seen.setdefault(inside.tobytes(), name)) != name:
            LOG.info("region %s has the same voxels as %s: left out", name, other)
        else:
            found[name] = inside
    return found


def synthetic_latents(
    done: Decoded, responses: StageResult, inside: Mapping[str, Inside], config: RunConfig
) -> StageResult:
    """Targets of each region's synthetic activation: arrays ``<target>`` (regions, dims)."""
    names, section = config.recipe.target_names, config.recipe.roi_analysis
    alphas = {name: done.penalties[name].alpha for name in names}
    norms = dict(zip(names, zip(section.norms, section.calibrated_norms, strict=True), strict=True))
    n, p = responses["train"].shape
    backend = choose_backend(config.device, n * p * min(n, p))
    patterns = np.array(list(inside.values()))

    def compute(_: Path) -> dict[str, np.ndarray]:
        decoder = RidgeDecoder(responses["train"], backend=backend)
        each = sorted(set(alphas.values()))
        operators = dict(zip(each, decoder.operators(decoder.x_mean + patterns, each), strict=True))
        return {
            name: synthetic_targets(operators[alpha], done.train[name], *norms[name], backend)
            for name, alpha in alphas.items()
        }

    inputs: dict[str, Any] = {"after": [responses.key, done.targets_key], "alphas": alphas, "norms": norms}
    inputs |= {"regions": _digests(inside), "backend": backend.name}
    return done.stages.run("latents_regions", inputs, compute)


def score_regions(
    done: Decoded, responses: StageResult, inside: Mapping[str, Inside], config: RunConfig
) -> tuple[RegionScore, ...]:
    """Identify test images by each target, predicted from a region alone and without it."""
    n, p = responses["train"].shape
    backend = choose_backend(config.device, n * p * min(n, p))
    alphas = {name: done.penalties[name].alpha for name in config.recipe.target_names}

    def compute(_: Path) -> dict[str, np.ndarray]:
        decoder = RidgeDecoder(responses["train"], backend=backend)
        x = (responses["test"] - decoder.x_mean).astype(np.float32)
        arrays: dict[str, np.ndarray] = {}
        for name, alpha in alphas.items():
            w = similarity_weights(decoder, done.train[name], done.test[name], alpha).astype(np.float32)
            whole = part_similarity(x, w, slice(None))  # type: ignore[arg-type]
            arrays[f"{name}_whole"] = _identify(whole)
            arrays |= {
                f"{name}_{key}": value
                for key, value in _kept_and_lesioned(x, w, whole, inside, config).items()
            }
        return arrays

    inputs: dict[str, Any] = {
        "after": [responses.key, done.targets_key],
        "alphas": alphas,
        "sets": RANDOM_SETS,
    }
    inputs |= {"regions": _digests(inside), "backend": backend.name, "seed": config.seed}
    found = done.stages.run("regions", inputs, compute)
    return tuple(
        _score(found, region, int(voxels.sum()), row, name, analysis, config.seed)
        for name in config.recipe.target_names
        for row, (region, voxels) in enumerate(inside.items())
        for analysis in ("keep", "lesion")
    )


def _kept_and_lesioned(
    x: np.ndarray, w: np.ndarray, whole: np.ndarray, inside: Mapping[str, Inside], config: RunConfig
) -> dict[str, np.ndarray]:
    """Per-image scores (regions, images) of both analyses, and means of random sets (regions, sets)."""
    found: dict[str, list[np.ndarray]] = {k: [] for k in ("keep", "lesion", "keep_null", "lesion_null")}
    for region, voxels in inside.items():
        part = part_similarity(x, w, voxels)
        found["keep"].append(_identify(part))
        found["lesion"].append(_identify(whole - part))
        rng = np.random.default_rng(seed_for(config.seed, "random voxels", region))
        draws = []
        for _ in range(RANDOM_SETS):
            part = part_similarity(x, w, np.sort(rng.permutation(voxels.size)[: voxels.sum()]))
            draws.append((_identify(part).mean(), _identify(whole - part).mean()))
        keep, lesion = np.array(draws).T
        found["keep_null"].append(keep)
        found["lesion_null"].append(lesion)
    return {key: np.array(values) for key, values in found.items()}


def _identify(similarity: np.ndarray) -> np.ndarray:
    """Two-way identification of each prediction, (images,)."""
    return two_way(with_ties(similarity)).per_image


def _score(
    found: StageResult, region: str, n_voxels: int, row: int, target: str, analysis: str, seed: int
) -> RegionScore:
    values = np.asarray(found[f"{target}_{analysis}"][row])
    null = np.asarray(found[f"{target}_{analysis}_null"][row])
    # A region matters where it alone says more, and where without it less is left, than at random.
    sign = 1 if analysis == "keep" else -1
    return RegionScore(
        region=region,
        n_voxels=n_voxels,
        target=target,
        analysis=analysis,
        two_way=mean_with_interval(values, seed),
        null=Value(float(null.mean()), *percentile_interval(null)),
        p=permutation_p(sign * float(values.mean()), sign * null),
        whole=float(found[f"{target}_whole"].mean()),
        n_images=len(values),
        n_sets=len(null),
    )


def _digests(inside: Mapping[str, Inside]) -> dict[str, str]:
    import hashlib

    return {name: hashlib.sha256(v.tobytes()).hexdigest() for name, v in inside.items()}
