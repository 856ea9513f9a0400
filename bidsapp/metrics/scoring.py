"""Score reconstructions by a named protocol, each metric with its chance level.

``native`` scores images at a size of the caller's choice with whatever networks are given; the
published protocols (``protocols.toml``) fix sizes, resampling and networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bidsapp.errors import AppError, ExitCode
from bidsapp.metrics import identification, pixel
from bidsapp.metrics.protocols import PublishedProtocol, published_protocols
from bidsapp.metrics.resizing import apply_resizing, resize
from bidsapp.metrics.statistics import (
    Interval,
    bootstrap_interval,
    pairing_null,
    percentile_interval,
    permutation_p,
)

Images = npt.NDArray[np.uint8]
Vector = npt.NDArray[np.float64]
Network = Callable[[Images], npt.NDArray[Any]]

PROTOCOLS = ("native", *published_protocols())

#: Pairings drawn for the null of identification and PixCorr, and for that of SSIM, which filters every pair.
_PERMUTATIONS = 1000
_SHIFTS = 20
#: Mismatched pairs for the pixel metrics of published protocols, which use large images.
_PAIRS = 500
#: Image pairs resized at once for the pixel metrics.
_AT_ONCE = 16
#: Two-sided 95% quantile of the normal distribution.
_Z95 = 1.959964


@dataclass(frozen=True)
class Summary:
    """A metric over the test images.

    Attributes
    ----------
    mean, low, high : float
        Mean over images and its bootstrap 95% interval.
    chance : float
        Score of a random pairing of reconstructions and stimuli: 0.5 for two-way identification,
        1 / n for top-1, the mean over all pairs for distances and for PixCorr (``native``), over
        mismatched pairs for the other pixel metrics.
    chance_low, chance_high : float
        95% interval of the mean score under random pairings.
    ties : int
        Ties in two-way identification; see :class:`~bidsapp.metrics.identification.TwoWay`.
    p : float or None
        Permutation p of the pairing, ``(1 + #) / (1 + N)``; None where only a few pairings were drawn.
    reverse : float or None
        Two-way identification in the other direction: for each stimulus, the share of the other
        reconstructions that are less similar to it than its own.
    """

    mean: float
    low: float
    high: float
    chance: float
    chance_low: float
    chance_high: float
    ties: int = 0
    p: float | None = None
    reverse: float | None = None


@dataclass(frozen=True)
class Scores:
    """All metrics of one set of reconstructions.

    Attributes
    ----------
    per_image : dict of str to ndarray of float64, (n,)
    summary : dict of str to Summary
        Same keys, in the same order.
    skipped : tuple of str
        Metrics of the protocol that were not computed because their network was not given.
    """

    per_image: dict[str, Vector] = field(default_factory=dict)
    summary: dict[str, Summary] = field(default_factory=dict)
    protocol: str = "native"
    skipped: tuple[str, ...] = ()


def score(
    reconstructions: Images,
    stimuli: Images,
    networks: Mapping[str, Network] | None = None,
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
    networks : mapping of str to callable, optional
        Each takes uint8 images (n, H, W, 3) as they were passed in, of any size, and returns
        features, (n, ...). With ``native`` any network gives ``two_way_<name>`` and ``top1_<name>``;
        a published protocol knows its networks by name, and skips those that are not given.
    size : int
        Side in pixels to which both are resized (PIL, bilinear) for ``pixcorr`` and ``ssim`` of
        ``native``; published protocols have their own.
    seed : int
        Of bootstrap and permutations.
    protocol : {"native", "bd2023", "mindeye"}
        ``bd2023``: Ozcelik & VanRullen 2023 (arXiv 2303.05334); ``mindeye``: Scotti et al. 2023
        (arXiv 2305.18274).

    Returns
    -------
    Scores
        Keys of ``native``: ``pixcorr``, ``ssim``, then two for each network. Keys of the others, for
        the networks that are given: ``pixcorr``, ``ssim`` (``bd2023``: also ``ssim_columnwise``),
        ``two_way_alexnet2``, ``two_way_alexnet5``, ``two_way_inception``, ``two_way_clip``, and
        ``distance_effnet``, ``distance_swav``, which are better when lower.

    Raises
    ------
    AppError
        Exit code 64 for an unknown protocol, or an unknown network of a published protocol; 65 for
        fewer than two test images, or features that are not finite.
    TypeError
        For images that are not arrays (a list, or a dict by name), and networks without names.
    ValueError
        For arrays of another dtype or shape, or of unequal numbers of images.
    """
    if protocol not in PROTOCOLS:
        raise AppError(
            f"Unknown protocol {protocol!r}. Choose one of: {', '.join(PROTOCOLS)}.", exit_code=ExitCode.USAGE
        )
    if networks is not None and not isinstance(networks, Mapping):
        raise TypeError(f"networks: give callables by name, {{'clip': ...}}, not {_kind(networks)}")
    if isinstance(reconstructions, Mapping) or isinstance(stimuli, Mapping):
        raise TypeError(_by_name(reconstructions, stimuli))
    for what, images in (("reconstructions", reconstructions), ("stimuli", stimuli)):
        if not isinstance(images, np.ndarray):
            raise TypeError(f"{what}: {_kind(images)} was given{_sizes(images)}. {_WANTED}")
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"{what} should be uint8 (n, H, W, 3), not {images.dtype} {images.shape}")
    n = stimuli.shape[0]
    if reconstructions.shape[0] != n:
        raise ValueError(
            f"{reconstructions.shape[0]} reconstructions were given for {n} stimuli. Give one reconstruction "
            "per stimulus, in the same order."
        )
    if n < 2:
        raise AppError(
            f"{n} test image given, but identification needs at least two. Add images to the test set.",
            exit_code=ExitCode.BAD_DATA,
        )
    if protocol == "native":
        return _native(reconstructions, stimuli, networks or {}, size, seed)
    return _published(reconstructions, stimuli, networks or {}, published_protocols()[protocol], seed)


def metric_names(protocol: str, networks: tuple[str, ...]) -> tuple[str, ...]:
    """List the metrics of a protocol with these networks, in the order of :class:`Scores`."""
    if protocol != "native":
        published = published_protocols()[protocol]
        kept = [f"{published.networks[n].score}_{n}" for n in published.networks if n in networks]
        return (*published.pixel_metrics, *kept)
    return ("pixcorr", "ssim", *(f"{kind}_{n}" for n in networks for kind in ("two_way", "top1")))


_WANTED = "Give one uint8 array (n, H, W, 3); numpy.stack(images) makes it from images of one size."


def _kind(value: object) -> str:
    length = f" of {len(value)} items" if hasattr(value, "__len__") else ""
    return f"a {type(value).__name__}{length}"


def _sizes(images: object) -> str:
    """Name the sizes of a sequence's images where they differ."""
    items = images if isinstance(images, (list, tuple)) else ()
    sizes = dict.fromkeys(" x ".join(map(str, np.shape(image)[:2])) for image in items)
    return f", of several sizes ({', '.join(sizes)}): resize the images to one size first" * (len(sizes) > 1)


def _by_name(reconstructions: object, stimuli: object) -> str:
    """Explain that images are paired by position, with the names that only one of the two has."""
    given = {"reconstructions": reconstructions, "stimuli": stimuli}
    what, images = next((k, v) for k, v in given.items() if isinstance(v, Mapping))
    text = f"{what}: {_kind(images)} was given, but score() pairs images by position. "
    if isinstance(reconstructions, Mapping) and isinstance(stimuli, Mapping):
        for one, other in (("reconstructions", "stimuli"), ("stimuli", "reconstructions")):
            alone = [str(k) for k in given[one] if k not in given[other]]  # type: ignore[attr-defined,operator]
            if alone:
                text += f"Names only in {one}: {', '.join(alone[:5])}{', ...' * (len(alone) > 5)}. "
    return text + _WANTED


def _native(
    reconstructions: Images, stimuli: Images, networks: Mapping[str, Network], size: int, seed: int
) -> Scores:
    scores = Scores()
    truth, images = resize(stimuli, size), resize(reconstructions, size)
    table = identification.similarity(truth, images)
    null: Interval | Vector = _null_means(table, seed)
    _add(scores, "pixcorr", pixel.pixcorr(truth, images), float(table.mean()), null, seed)
    chance, null = _ssim_chance(truth, images, seed)
    _add(scores, "ssim", pixel.ssim(truth, images), chance, null, seed)
    for name, network in networks.items():
        r = _similarity(name, network, stimuli, reconstructions)
        _add_two_way(scores, f"two_way_{name}", r, seed)
        null = _null_means(identification.top1_table(r), seed)
        _add(scores, f"top1_{name}", identification.top1(r), 1 / len(r), null, seed)
    return scores


def _published(
    reconstructions: Images,
    stimuli: Images,
    networks: Mapping[str, Network],
    protocol: PublishedProtocol,
    seed: int,
) -> Scores:
    unknown = [name for name in networks if name not in protocol.networks]
    if unknown:
        raise AppError(
            f"Protocol {protocol.name!r} does not use a network {', '.join(map(repr, unknown))}. "
            f"Its networks: {', '.join(protocol.networks)}.",
            exit_code=ExitCode.USAGE,
        )
    absent = (name for name in protocol.networks if name not in networks)
    skipped = tuple(f"{protocol.networks[name].score}_{name}" for name in absent)
    scores = Scores(protocol=protocol.name, skipped=skipped)
    n = stimuli.shape[0]
    everyone = np.arange(n)
    own = _pixel_values(reconstructions, stimuli, everyone, everyone, protocol)
    others = _pixel_values(reconstructions, stimuli, *_mismatched(n, seed), protocol)
    for name in protocol.pixel_metrics:
        _add(scores, name, own[name], float(others[name].mean()), _null_of_pairs(others[name], n), seed)
    for name, use in protocol.networks.items():
        if name not in networks:
            continue
        r = _similarity(name, networks[name], stimuli, reconstructions)
        if use.score == "two_way":
            _add_two_way(scores, f"two_way_{name}", r, seed)
        else:
            null = _null_means(1 - r, seed)
            _add(scores, f"distance_{name}", 1 - np.diagonal(r), 1 - float(r.mean()), null, seed)
    return scores


def _add(
    scores: Scores, name: str, values: Vector, chance: float, null: Interval | Vector, seed: int
) -> None:
    """Add a metric; its null is an interval, or the means under random pairings."""
    scores.per_image[name] = values
    mean, inside, p = float(values.mean()), bootstrap_interval(values, seed), None
    if not isinstance(null, Interval):
        lower_is_better = name.startswith("distance_")
        p = permutation_p(-mean, -null) if lower_is_better else permutation_p(mean, null)
        null = percentile_interval(null)
    scores.summary[name] = Summary(mean, *inside, chance, *null, p=p)


def _add_two_way(scores: Scores, name: str, r: Vector, seed: int) -> None:
    result = identification.two_way(r)
    null = _null_means(identification.two_way_table(r), seed)
    _add(scores, name, result.per_image, 0.5, null, seed)
    reverse = identification.two_way(r.T).mean
    scores.summary[name] = replace(scores.summary[name], ties=result.ties, reverse=reverse)


def _null_means(table: Vector, seed: int) -> Vector:
    return pairing_null(table, seed, _PERMUTATIONS)


def _similarity(name: str, network: Network, stimuli: Images, reconstructions: Images) -> Vector:
    return identification.similarity(
        _features(name, network, stimuli), _features(name, network, reconstructions)
    )


def _pixel_values(
    reconstructions: Images,
    stimuli: Images,
    stimulus: npt.NDArray[np.intp],
    reconstruction: npt.NDArray[np.intp],
    protocol: PublishedProtocol,
) -> dict[str, Vector]:
    """Pixel metrics of pairs of images, given by their indices and resized a few at a time."""
    blocks: dict[str, list[Vector]] = {name: [] for name in protocol.pixel_metrics}
    for start in range(0, len(stimulus), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        truth = apply_resizing(stimuli[stimulus[rows]], protocol.pixels)
        images = apply_resizing(reconstructions[reconstruction[rows]], protocol.pixels)
        for name in protocol.pixel_metrics:
            blocks[name].append(getattr(pixel, name)(truth, images))
    return {name: np.concatenate(parts) for name, parts in blocks.items()}


def _mismatched(n: int, seed: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Draw pairs of a stimulus and a reconstruction of another: all such pairs, or 500; their indices.

    They are shifts of the images in a random order, so that every image comes about equally often.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    shifts = rng.permutation(np.arange(1, n))
    pair = np.arange(min(_PAIRS, n * (n - 1)))
    shift, j = shifts[pair // n], pair % n
    return order[(j + shift) % n], order[j]


def _null_of_pairs(values: Vector, n: int) -> Interval:
    """Compute the normal 95% interval of a mean over n mismatched pairs, treated as independent.

    Under a true random pairing every image comes once, so the interval is, if anything, too wide.
    """
    centre = float(values.mean())
    half = _Z95 * float(values.std(ddof=1)) / np.sqrt(n)
    return Interval(centre - half, centre + half)


def _features(name: str, network: Network, images: Images) -> npt.NDArray[Any]:
    features = np.asarray(network(images))
    if features.ndim < 2 or features.shape[0] != images.shape[0]:
        raise ValueError(f"network {name}: features of shape {features.shape} for {images.shape[0]} images")
    if not np.isfinite(features).all():
        raise AppError(
            f"Features of the evaluation network {name} contain NaN or infinite values. Its weights may be "
            "damaged, or its precision too low: download them again, or use float32.",
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
