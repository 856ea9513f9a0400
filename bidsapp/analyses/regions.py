"""Regions of interest one at a time: what each prefers, and how much of the decoding depends on it.

- *Synthetic activation* (Ozcelik & VanRullen 2023, section "ROI analysis"): a region's voxels set to 1 and
  all others to 0, passed through the ridge weights, and reconstructed.
- *Keep-only*: test images decoded with all other voxels at their training mean. *Lesion*: with the region's
  voxels at theirs. The decoder is not refitted; the null is random sets of as many voxels.

See :mod:`bidsapp.decoding.regions` for the formulas.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bidsapp.config import RANDOM_SETS, RunConfig
from bidsapp.decoding.decoder import RidgeDecoder
from bidsapp.decoding.regions import part_similarity, similarity_weights, synthetic_targets, with_ties
from bidsapp.evidence import RegionScore, RoiAnalysis, Value
from bidsapp.metrics.identification import two_way
from bidsapp.metrics.statistics import mean_with_interval, percentile_interval, permutation_p
from bidsapp.pipeline.decoding import backend_for_fit
from bidsapp.pipeline.images import first_stage
from bidsapp.pipeline.records import Condition, Decoded, Refinement
from bidsapp.records import Mask
from bidsapp.seeds import seed_for
from bidsapp.storage.files import sha256_array
from bidsapp.storage.stages import StageResult

if TYPE_CHECKING:
    from bidsapp.models.suite import Models

LOG = logging.getLogger("bidsapp")
Inside = npt.NDArray[np.bool_]
REGIONS = "regions"


@dataclass(frozen=True)
class RegionsStart:
    """Each region's voxels, bool (decoded voxels,), and stage 1 of the synthetic activations."""

    inside: Mapping[str, Inside]
    refinement: Refinement


def start_regions(
    done: Decoded,
    mask: Mask,
    regions: Mapping[str, npt.NDArray[np.bool_]],
    models: Models,
    config: RunConfig,
) -> RegionsStart | None:
    """Make stage 1 of the regions' synthetic activations (``--roi-analysis``).

    Returns None without the option, and where no region is left.

    Parameters
    ----------
    mask : Mask
        The voxels decoded.
    regions : mapping of str to ndarray of bool, (x, y, z)
        On the mask's grid. Left out are regions that hold none or all of the decoded voxels, or the same
        ones as another region.
    """
    if not config.roi_analysis:
        return None
    inside = voxels_of(regions, mask.flat_index[done.responses["kept"]])
    if not inside:
        LOG.warning("--roi-analysis: skipped, because no region holds some but not all of the decoded voxels")
        return None
    condition = Condition(REGIONS, synthetic_latents(done, inside, config), tuple(inside), config.seed)
    first = first_stage(done.fit.stages, condition, done.subject.label, models)
    return RegionsStart(inside, Refinement(condition, first))


def analyse_regions(
    done: Decoded, start: RegionsStart | None, finals: Mapping[str, StageResult], config: RunConfig
) -> RoiAnalysis | None:
    """Decode regions of interest one at a time.

    ``start`` is from :func:`start_regions`; ``finals`` holds stage 2 of the synthetic activations.
    """
    if start is None:
        return None
    return RoiAnalysis(
        names=tuple(start.inside),
        n_voxels=tuple(int(v.sum()) for v in start.inside.values()),
        stage1=start.refinement.initial["images"],
        stage2=finals[REGIONS]["images"],
        scores=score_regions(done, start.inside, config),
    )


def voxels_of(
    regions: Mapping[str, npt.NDArray[np.bool_]], flat_index: npt.NDArray[np.int64]
) -> dict[str, Inside]:
    """Find each region's voxels among those decoded; leave out regions with none, all, or the same voxels."""
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


def synthetic_latents(done: Decoded, inside: Mapping[str, Inside], config: RunConfig) -> StageResult:
    """Compute the targets of each region's synthetic activation: arrays ``<target>`` (regions, dims)."""
    fit, responses = done.fit, done.responses
    names, section = config.recipe.target_names, config.recipe.roi_analysis
    alphas = {name: fit.penalties[name].alpha for name in names}
    norms = dict(zip(names, zip(section.norms, section.calibrated_norms, strict=True), strict=True))
    backend = backend_for_fit(config, responses)
    patterns = np.array(list(inside.values()))

    def compute(_: Path) -> dict[str, np.ndarray]:
        decoder = RidgeDecoder(responses["train"], backend=backend)
        each = sorted(set(alphas.values()))
        operators = dict(zip(each, decoder.operators(decoder.x_mean + patterns, each), strict=True))
        return {
            name: synthetic_targets(operators[alpha], fit.train[name], *norms[name], backend)
            for name, alpha in alphas.items()
        }

    inputs: dict[str, Any] = {"after": [responses.key, fit.targets_key], "alphas": alphas, "norms": norms}
    inputs |= {"regions": {name: sha256_array(v) for name, v in inside.items()}, "backend": backend.name}
    return fit.stages.run("latents_regions", inputs, compute)


def score_regions(done: Decoded, inside: Mapping[str, Inside], config: RunConfig) -> tuple[RegionScore, ...]:
    """Identify test images by each target, predicted from a region alone and without it."""
    fit, responses = done.fit, done.responses
    backend = backend_for_fit(config, responses)
    alphas = {name: fit.penalties[name].alpha for name in config.recipe.target_names}

    def compute(_: Path) -> dict[str, np.ndarray]:
        decoder = RidgeDecoder(responses["train"], backend=backend)
        x = (responses["test"] - decoder.x_mean).astype(np.float32)
        arrays: dict[str, np.ndarray] = {}
        for name, alpha in alphas.items():
            w = similarity_weights(decoder, fit.train[name], fit.test[name], alpha).astype(np.float32)
            whole = part_similarity(x, w, slice(None))  # type: ignore[arg-type]
            arrays[f"{name}_whole"] = _identify(whole)
            arrays |= {
                f"{name}_{key}": value
                for key, value in _kept_and_lesioned(x, w, whole, inside, config).items()
            }
        return arrays

    inputs: dict[str, Any] = {"after": [responses.key, fit.targets_key], "alphas": alphas}
    inputs |= {
        "sets": RANDOM_SETS,
        "regions": {name: sha256_array(v) for name, v in inside.items()},
        "backend": backend.name,
    }
    scored = fit.stages.run("regions", inputs | {"seed": config.seed}, compute)
    return tuple(_scores(scored, inside, config))


def _scores(scored: StageResult, inside: Mapping[str, Inside], config: RunConfig) -> Iterator[RegionScore]:
    """Summarise the scores of every target, region and analysis."""
    for target, (row, (region, voxels)), analysis in product(
        config.recipe.target_names, enumerate(inside.items()), ("keep", "lesion")
    ):
        values = np.asarray(scored[f"{target}_{analysis}"][row])
        null = np.asarray(scored[f"{target}_{analysis}_null"][row])
        # A region matters where it alone scores higher, or where scores without it are lower, than at random.
        sign = 1 if analysis == "keep" else -1
        yield RegionScore(
            region=region,
            n_voxels=int(voxels.sum()),
            target=target,
            analysis=analysis,
            two_way=mean_with_interval(values, config.seed),
            null=Value(float(null.mean()), *percentile_interval(null)),
            p=permutation_p(sign * float(values.mean()), sign * null),
            whole=float(scored[f"{target}_whole"].mean()),
            n_images=len(values),
            n_sets=len(null),
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
