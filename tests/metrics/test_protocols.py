"""The published protocols against literal transcriptions of their formulas, and written-down values."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.distance import correlation
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity

from bidsapp.errors import AppError, ExitCode
from bidsapp.metrics import scoring as room
from bidsapp.metrics.protocols import Resizing, published_protocols
from bidsapp.metrics.resizing import apply_resizing
from bidsapp.metrics.scoring import PROTOCOLS, score
from bidsapp.report.labels import metric_label

TWO_WAY = ("alexnet2", "alexnet5", "inception", "clip")
DISTANCE = ("effnet", "swav")
NAMES = [f"two_way_{n}" for n in TWO_WAY] + [f"distance_{n}" for n in DISTANCE]
SSIM = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
#: Mean scores of the formula images and the formula network below, from the transcription in float64.
GOLDEN = {
    "bd2023": {"pixcorr": 0.8118748, "ssim": 0.8365200, "ssim_columnwise": 0.8904101},
    "mindeye": {"pixcorr": 0.8129589, "ssim": 0.8399100},
}
GOLDEN_TWO_WAY, GOLDEN_DISTANCE = 5 / 6, 0.0423090


def _formula_images(n: int, size: int, kind: int) -> np.ndarray:
    """Waves that differ between images; of kind 1, a distorted version of kind 0. No random numbers."""
    y, x = np.mgrid[:size, :size] / size
    i, c = np.arange(n)[:, None, None, None], np.arange(3)
    i = i - kind * np.where(i == 2, 0.8, 0)  # the third is made more like the second
    wave = np.sin(6 * x[..., None] * (1 + 0.3 * i) + 2 * c) + np.cos(5 * y[..., None] * (1 + 0.2 * i) - c)
    ripple = np.sin(40 * (x + y)[..., None] + 2.5 * i + c) + np.sin(3 * y[..., None] + i * i)
    return np.floor(127.5 + 60 * wave * (1 - 0.4 * kind) + 24 * kind * ripple).clip(0, 255).astype(np.uint8)


def _formula_network(images: np.ndarray) -> np.ndarray:
    """One layer of fixed irregular weights and a rectifier on mean colours of a 4 x 4 grid."""
    n, side = len(images), images.shape[1] // 4
    grid = images[:, : 4 * side, : 4 * side].reshape(n, 4, side, 4, side, 3).mean(axis=(2, 4)) / 255
    weights = np.sin(np.arange(48 * 20) ** 2 * 0.7).reshape(48, 20)
    return np.maximum(grid.reshape(n, -1) @ weights, 0)


def _literal_two_way(truth: np.ndarray, made: np.ndarray) -> np.ndarray:
    n = len(truth)
    r = np.corrcoef(truth.reshape(n, -1), made.reshape(n, -1))[:n, n:]
    wins = [sum(bool(r[i, j] < r[j, j]) for i in range(n)) for j in range(n)]
    return np.array(wins) / (n - 1)


def _literal(protocol: str, truth: np.ndarray, made: np.ndarray) -> dict[str, np.ndarray]:
    """Each image's scores, as the public scripts compute them."""
    values: dict[str, list[float]] = {"pixcorr": [], "ssim": []}
    if protocol == "bd2023":
        values["ssim_columnwise"] = []
    for one, other in zip(truth, made, strict=True):
        if protocol == "bd2023":
            a, b = (np.array(Image.fromarray(x).resize((425, 425))) / 255.0 for x in (one, other))
        else:
            a, b = (_tensor_resize(_tensor_resize(x / 255.0, 256), 425) for x in (one, other))
        values["pixcorr"].append(np.corrcoef(a.reshape(1, -1), b.reshape(1, -1))[0, 1])
        a, b = rgb2gray(a), rgb2gray(b)
        values["ssim"].append(structural_similarity(b, a, **SSIM))
        if protocol == "bd2023":
            values["ssim_columnwise"].append(structural_similarity(b, a, channel_axis=-1, **SSIM))
    features = [_formula_network(x) for x in (truth, made)]
    result = {k: np.array(v) for k, v in values.items()}
    result |= {f"two_way_{name}": _literal_two_way(*features) for name in TWO_WAY}
    distances = np.array([correlation(a, b) for a, b in zip(*features, strict=True)])
    return result | {f"distance_{name}": distances for name in DISTANCE}


def _tensor_resize(image: np.ndarray, size: int) -> np.ndarray:
    import torch

    x = torch.from_numpy(image).permute(2, 0, 1)[None]
    y = torch.nn.functional.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=True)
    return y[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("protocol", ["bd2023", "mindeye"])
def test_scores_are_the_public_scripts(protocol):
    truth, made = _formula_images(3, 425, 0), _formula_images(3, 512, 1)
    networks = dict.fromkeys((*TWO_WAY, *DISTANCE), _formula_network)
    got = score(made, truth, networks, protocol=protocol)
    expected = _literal(protocol, truth, made)
    assert list(got.per_image) == list(got.summary) == list(expected)
    assert list(got.per_image) == list(published_protocols()[protocol].metrics)
    assert got.skipped == ()
    assert got.protocol == protocol
    for name, values in expected.items():
        np.testing.assert_allclose(got.per_image[name], values, rtol=2e-6, atol=2e-7, err_msg=name)
        assert got.summary[name].mean == pytest.approx(values.mean(), rel=2e-6), name
    golden = GOLDEN[protocol] | {m: GOLDEN_DISTANCE if m[0] == "d" else GOLDEN_TWO_WAY for m in NAMES}
    assert {name: s.mean for name, s in got.summary.items()} == pytest.approx(golden, abs=3e-6)


def test_resizing_of_floats_is_that_of_antialiased_tensors():
    images = _formula_images(2, 300, 1)
    for sizes in ((256, 425), (128, 100), (300,), (75, 75)):
        expected = images / 255.0
        for size in sizes:
            expected = np.stack([_tensor_resize(x, size) for x in expected])
        got = apply_resizing(images, Resizing(sizes, "bilinear", "float"))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_resizing_of_bytes_is_pillows_and_rounds_after_each_step():
    images = _formula_images(2, 64, 0)
    got = apply_resizing(images, Resizing((40, 50), "bicubic", "uint8"))
    literal = [
        Image.fromarray(x)
        .resize((40, 40), Image.Resampling.BICUBIC)
        .resize((50, 50), Image.Resampling.BICUBIC)
        for x in images
    ]
    np.testing.assert_array_equal(got, np.stack([np.asarray(x) for x in literal]))
    assert got.dtype == np.uint8
    assert apply_resizing(images, Resizing((64,), "bilinear", "uint8")) is images


def test_the_table_holds_the_published_settings():
    assert PROTOCOLS == ("native", "bd2023", "mindeye")
    bd, mind = (published_protocols()[name] for name in ("bd2023", "mindeye"))
    assert bd.pixels == Resizing((425,), "bicubic", "uint8")
    assert mind.pixels == Resizing((256, 425), "bilinear", "float")
    assert list(bd.metrics) == ["pixcorr", "ssim", "ssim_columnwise", *NAMES]
    assert list(mind.metrics) == ["pixcorr", "ssim", *NAMES]
    assert {use.resizing for use in bd.networks.values()} == {Resizing((224,), "bilinear", "uint8")}
    last = {name: use.resizing.sizes[-1] for name, use in mind.networks.items()}
    assert last == {
        "alexnet2": 256,
        "alexnet5": 256,
        "inception": 342,
        "clip": 224,
        "effnet": 255,
        "swav": 224,
    }
    for use in mind.networks.values():
        assert use.resizing.sizes[0] == 256
        assert (use.resizing.resample, use.resizing.precision) == ("bilinear", "float")
    for each in (bd, mind):
        assert {n for n, use in each.networks.items() if use.mean_std == "clip"} == {"clip"}
        layers = {n: use.layer for n, use in each.networks.items()}
        assert (layers["alexnet2"], layers["alexnet5"]) == ("features.4", "features.11")
    assert bd.networks["effnet"].file != mind.networks["effnet"].file
    same = {n for n in bd.networks if bd.networks[n].file == mind.networks[n].file}
    assert same == set(bd.networks) - {"effnet"}


def test_reports_know_every_metric_and_its_direction():
    for name in {m for p in published_protocols().values() for m in p.metrics}:
        label = metric_label(name)
        assert label.description, name
        assert "_" not in label.title, name
        assert label.higher_is_better != name.startswith("distance_"), name
        assert label.levels[0] == (-1 if name in ("pixcorr", "ssim", "ssim_columnwise") else 0), name
    titles = [metric_label(name).title for name in published_protocols()["bd2023"].metrics]
    assert len(set(titles)) == len(titles) == 9
    assert metric_label("distance_swav").levels == (0, 2)
    assert metric_label("two_way_alexnet2").title == "Two-way identification, AlexNet(2)"
    assert metric_label("distance_effnet").title == "Distance, EfficientNet-B1"


def _small(name: str):
    """Give a published protocol with pixel metrics of 16 pixels, for speed."""
    full = published_protocols()[name]
    return dataclasses.replace(full, pixels=dataclasses.replace(full.pixels, sizes=(16,)))


def _score_small(made, truth, networks, name="bd2023", seed=0):
    return room._published(made, truth, networks, _small(name), seed)


@given(
    given_names=st.sets(st.sampled_from(TWO_WAY + DISTANCE)),
    name=st.sampled_from(["bd2023", "mindeye"]),
)
@settings(max_examples=15, deadline=None)
def test_networks_not_given_are_skipped_and_listed(given_names, name):
    truth, made = _formula_images(3, 16, 0), _formula_images(3, 16, 1)
    got = _score_small(made, truth, dict.fromkeys(sorted(given_names), _formula_network), name)
    everything = published_protocols()[name].metrics
    assert [m for m in everything if m not in got.skipped] == list(got.summary)
    assert set(got.skipped) == {m for m in NAMES if m.split("_")[-1] not in given_names}
    assert list(got.skipped) == [m for m in everything if m in got.skipped]


@given(
    n=st.integers(3, 9),
    seed=st.integers(0, 2**20),
    scale=st.floats(0.01, 1000),
    offset=st.floats(-10, 10),
    noise=st.floats(0.1, 2),
)
@settings(max_examples=25, deadline=None)
def test_properties(n, seed, scale, offset, noise):
    """Bounds, equivariance under reordering, invariance to scale and offset of the features."""
    rng = np.random.default_rng(seed)
    truth, made = _formula_images(n, 16, 0), _formula_images(n, 16, 1)
    features = {0: rng.normal(size=(n, 30))}
    features[1] = features[0] + noise * rng.normal(size=(n, 30))
    places = {image.tobytes(): (kind, i) for kind, x in enumerate((truth, made)) for i, image in enumerate(x)}
    assert len(places) == 2 * n

    def network(images):
        return np.stack([features[kind][i] for kind, i in (places[x.tobytes()] for x in images)])

    def other(images):
        return scale * network(images) + offset

    got = _score_small(made, truth, {"clip": network, "effnet": network, "swav": other, "inception": other})
    order = rng.permutation(n)
    mixed = _score_small(made[order], truth[order], {"clip": network, "swav": other})
    for name in ("pixcorr", "ssim", "ssim_columnwise", "two_way_clip", "distance_swav"):
        np.testing.assert_array_equal(mixed.per_image[name], got.per_image[name][order])
    np.testing.assert_array_equal(got.per_image["two_way_clip"], got.per_image["two_way_inception"])
    np.testing.assert_allclose(got.per_image["distance_effnet"], got.per_image["distance_swav"], atol=1e-8)
    assert ((got.per_image["two_way_clip"] >= 0) & (got.per_image["two_way_clip"] <= 1)).all()
    assert ((got.per_image["distance_swav"] >= 0) & (got.per_image["distance_swav"] <= 2)).all()
    np.testing.assert_allclose(
        got.per_image["two_way_clip"], _literal_two_way(features[0], features[1]), atol=1e-12
    )


@given(n=st.integers(2, 60), seed=st.integers(0, 2**20))
@settings(max_examples=40, deadline=None)
def test_mismatched_pairs_are_mismatched_distinct_and_balanced(n, seed):
    stimulus, made = room._mismatched(n, seed)
    assert len(stimulus) == len(made) == min(500, n * (n - 1))
    assert (stimulus != made).all()
    assert len(set(zip(stimulus.tolist(), made.tolist(), strict=True))) == len(made)
    for places in (stimulus, made):
        counts = np.bincount(places, minlength=n)
        assert counts.max() - counts.min() <= 1


def test_chance_is_that_of_mismatched_pairs_and_of_all_pairs():
    truth, made = _formula_images(5, 16, 0), _formula_images(5, 16, 1)
    got = _score_small(made, truth, {"effnet": _formula_network}).summary
    pairs = [(i, j) for i, j in itertools.product(range(5), repeat=2) if i != j]
    values = [structural_similarity(rgb2gray(truth[i]), rgb2gray(made[j]), **SSIM) for i, j in pairs]
    s = got["ssim"]
    assert s.chance == pytest.approx(np.mean(values), rel=1e-9)
    assert s.chance_high - s.chance == pytest.approx(1.959964 * np.std(values, ddof=1) / 5**0.5, rel=1e-6)
    assert s.chance - s.chance_low == pytest.approx(s.chance_high - s.chance)
    a, b = _formula_network(truth), _formula_network(made)
    every = [correlation(x, y) for x in a for y in b]
    d = got["distance_effnet"]
    assert d.chance == pytest.approx(np.mean(every), abs=1e-9)
    assert d.chance_low <= d.chance <= d.chance_high
    assert d.mean < d.chance_low


def test_perfect_and_constant_reconstructions():
    truth = _formula_images(4, 16, 0)
    networks = dict.fromkeys(TWO_WAY + DISTANCE, _formula_network)
    perfect = _score_small(truth, truth, networks)
    for name, summary in perfect.summary.items():
        assert summary.mean == pytest.approx(0 if name.startswith("distance") else 1, abs=1e-9), name
        assert summary.ties == 0
    # Features of one constant image for all: each reconstruction is as near to one truth as the next.
    flat = _score_small(np.full_like(truth, 9), truth, {"clip": lambda x: x, "swav": lambda x: x})
    assert flat.summary["two_way_clip"].ties == 12
    assert flat.summary["two_way_clip"].mean == 0.5
    assert flat.summary["distance_swav"].mean == 1  # no correlation, where scipy has NaN
    assert flat.summary["pixcorr"].mean == 0


def test_same_seed_same_scores():
    truth, made = _formula_images(6, 16, 0), _formula_images(6, 16, 1)
    first, again, other = (
        _score_small(made, truth, {"swav": _formula_network}, seed=s).summary for s in (1, 1, 2)
    )
    assert first == again != other


def test_a_network_that_the_protocol_does_not_use_is_refused():
    truth = _formula_images(3, 16, 0)
    with pytest.raises(AppError, match=r"'mindeye' does not use a network 'vgg'.*alexnet2") as caught:
        score(truth, truth, {"clip": _formula_network, "vgg": _formula_network}, protocol="mindeye")
    assert caught.value.exit_code == ExitCode.USAGE
    bad = {"swav": lambda x: np.full((3, 4), np.inf)}
    with pytest.raises(AppError, match="network swav"):
        _score_small(truth, truth, bad)
