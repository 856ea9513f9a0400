"""Named protocols: which metrics are taken of which sizes, each beside its chance level.

``native`` scores images at a size of the caller's choice with whatever networks are given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bidsapp.errors import AppError, ExitCode
from bidsapp.metrics import identification, pixel
from bidsapp.metrics.statistics import Interval, bootstrap_interval, pairing_null, percentile_interval

Images = npt.NDArray[np.uint8]
Vector = npt.NDArray[np.float64]
Network = Callable[[Images], npt.NDArray[Any]]

PROTOCOLS = ("native",)

#: Pairings drawn for the null of identification and PixCorr, and for that of SSIM, which costs a
#: filter for every pair.
_PERMUTATIONS = 1000
_SHIFTS = 20
#: Two-sided 95 % quantile of the normal distribution.
_Z95 = 1.959964


@dataclass(frozen=True)
class Summary:
    """A metric over the test images.

    Attributes
    ----------
    mean : float
    low, high : float
        Bootstrap 95 % interval of the mean over images.
    chance : float
        What a random pairing of reconstructions and stimuli scores: 0.5 for two-way identification,
        1 / n for top-1, the mean over all pairs for PixCorr, over mismatched pairs for SSIM.
    chance_low, chance_high : float
        95 % interval of the mean score under random pairings.
    ties : int
        Ties in two-way identification; see :class:`~bidsapp.metrics.identification.TwoWay`.
    """

    mean: float
    low: float
    high: float
    chance: float
    chance_low: float
    chance_high: float
    ties: int = 0


@dataclass(frozen=True)
class Scores:
    """All metrics of one set of reconstructions.

    Attributes
    ----------
    per_image : dict of str to ndarray of float64, (n,)
    summary : dict of str to Summary
        Same keys, in the same order.
    protocol : str
    """

    per_image: dict[str, Vector]
    summary: dict[str, Summary]
    protocol: str = "native"


def score(
    reconstructions: Images,
    stimuli: Images,
    networks: Mapping[str, Network],
    size: int = 64,
    seed: int = 0,
    *,
    protocol: str = "native",
) -> Scores:
    """Score reconstructions against the stimuli that were seen.

    Parameters
    ----------
    reconstructions : ndarray of uint8, (n, H, W, 3)
    stimuli : ndarray of uint8, (n, H', W', 3)
        In the same order.
    networks : mapping of str to callable
        Each takes uint8 images (n, H, W, 3), as given here and of whatever size, and returns their
        features, (n, d). It gives ``two_way_<name>`` and ``top1_<name>``.
    size : int
        Side in pixels to which both are brought (PIL, bilinear) for ``pixcorr`` and ``ssim``.
    seed : int
        Of bootstrap and permutations.
    protocol : {"native"}

    Returns
    -------
    Scores
        Keys ``pixcorr``, ``ssim``, then two of each network.

    Raises
    ------
    AppError
        Exit code 65 for fewer than two test images, or features that are not finite.
    """
    if protocol not in PROTOCOLS:
        raise AppError(
            f"There is no protocol {protocol!r}. Choose one of: {', '.join(PROTOCOLS)}.",
            exit_code=ExitCode.USAGE,
        )
    n = stimuli.shape[0]
    if reconstructions.shape[0] != n:
        raise ValueError(f"{reconstructions.shape[0]} reconstructions given for {n} stimuli")
    if n < 2:
        raise AppError(
            f"{n} test image given, but identification needs at least two. Put more into the test set.",
            exit_code=ExitCode.BAD_DATA,
        )
    per_image: dict[str, Vector] = {}
    summary: dict[str, Summary] = {}

    def add(name: str, values: Vector, chance: float, null: Interval, ties: int = 0) -> None:
        per_image[name] = values
        inside = bootstrap_interval(values, seed)
        summary[name] = Summary(float(values.mean()), *inside, chance, *null, ties)

    def by_pairing(table: Vector) -> Interval:
        return percentile_interval(pairing_null(table, seed, _PERMUTATIONS))

    truth, images = resize(stimuli, size), resize(reconstructions, size)
    table = identification.similarity(truth, images)
    add("pixcorr", pixel.pixcorr(truth, images), float(table.mean()), by_pairing(table))
    add("ssim", pixel.ssim(truth, images), *_ssim_chance(truth, images, seed))
    for name, network in networks.items():
        r = identification.similarity(
            _features(name, network, stimuli), _features(name, network, reconstructions)
        )
        result = identification.two_way(r)
        null = by_pairing(identification.two_way_table(r))
        add(f"two_way_{name}", result.per_image, 0.5, null, result.ties)
        add(f"top1_{name}", identification.top1(r), 1 / n, by_pairing(identification.top1_table(r)))
    return Scores(per_image, summary, protocol)


def _features(name: str, network: Network, images: Images) -> npt.NDArray[Any]:
    features = np.asarray(network(images))
    if features.ndim < 2 or features.shape[0] != images.shape[0]:
        raise ValueError(f"network {name}: features of shape {features.shape} for {images.shape[0]} images")
    if not np.isfinite(features).all():
        raise AppError(
            f"The features of the evaluation network {name} hold NaN or infinite values. Its weights may be "
            "damaged, or its precision too low: fetch them again, or run it in float32.",
            exit_code=ExitCode.BAD_DATA,
        )
    return features


def _ssim_chance(truth: Images, images: Images, seed: int) -> tuple[float, Interval]:
    """Mean SSIM of mismatched pairings (shifts of the images in a random order), and its interval.

    Too few pairings are affordable for percentiles, so the interval is the normal one.
    """
    n = truth.shape[0]
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    shifts = rng.permutation(np.arange(1, n))[:_SHIFTS]
    means = pixel.ssim_shifted(truth[order], images[order], shifts.tolist())
    chance = float(np.mean(means))
    half = _Z95 * float(np.std(means, ddof=1)) if means.size > 1 else 0.0
    return chance, Interval(chance - half, chance + half)


def resize(images: Images, size: int) -> Images:
    """Bring images to ``size`` x ``size`` pixels (PIL, bilinear, antialiased), where they are not.

    Parameters
    ----------
    images : ndarray of uint8, (n, H, W, 3)
    size : int

    Returns
    -------
    ndarray of uint8, (n, size, size, 3)
    """
    if images.shape[1:3] == (size, size):
        return images
    from PIL import Image

    out = np.empty((images.shape[0], size, size, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        out[i] = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    return out


__all__ = ["PROTOCOLS", "Interval", "Network", "Scores", "Summary", "resize", "score"]
