"""The native protocol: its keys, values and chance levels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from bidsapp.errors import AppError, ExitCode
from bidsapp.metrics import identification, pixel
from bidsapp.metrics.scoring import resize, score


def _images(n: int = 24, size: int = 32, seed: int = 0) -> np.ndarray:
    """Coarse random colours, enlarged: images that differ in what a small network would see."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2)


def _mean_colours(images: np.ndarray) -> np.ndarray:
    n, h, w, _ = images.shape
    return images.reshape(n, 4, h // 4, 4, w // 4, 3).mean(axis=(2, 4)).reshape(n, -1)


def _noisy(images: np.ndarray, sigma: float, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def test_values_are_those_of_the_metrics():
    truth = _images()
    made = _noisy(truth, 80)
    scores = score(made, truth, {"colours": _mean_colours, "raw": lambda x: x}, size=32, seed=3)
    names = ["pixcorr", "ssim", "two_way_colours", "top1_colours", "two_way_raw", "top1_raw"]
    assert list(scores.per_image) == list(scores.summary) == names
    assert scores.protocol == "native"
    r = identification.similarity(_mean_colours(truth), _mean_colours(made))
    expected = {
        "pixcorr": pixel.pixcorr(truth, made),
        "ssim": pixel.ssim(truth, made),
        "two_way_colours": identification.two_way(r).per_image,
        "top1_colours": identification.top1(r),
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(scores.per_image[name], values)
        summary = scores.summary[name]
        assert summary.mean == pytest.approx(values.mean())
        assert summary.low <= summary.mean <= summary.high
        assert summary.chance_low <= summary.chance <= summary.chance_high < summary.mean
    assert scores.summary["two_way_raw"].chance == 0.5
    assert scores.summary["top1_raw"].chance == pytest.approx(1 / 24)


def test_perfect_reconstructions():
    truth = _images()
    scores = score(truth, truth, {"net": _mean_colours}, size=32)
    for summary in scores.summary.values():
        assert summary.mean == pytest.approx(1)
        assert summary.ties == 0


def test_unrelated_reconstructions_lie_within_chance():
    scores = score(_images(seed=9), _images(seed=0), {"net": _mean_colours}, size=32)
    for name in ("pixcorr", "two_way_net", "top1_net"):
        s = scores.summary[name]
        assert s.chance_low <= s.mean <= s.chance_high
    s = scores.summary["ssim"]
    assert abs(s.mean - s.chance) < 2 * (s.chance_high - s.chance)


def test_chance_of_pixel_metrics_is_that_of_mismatched_pairs():
    truth = _images(6)
    made = _noisy(truth, 120)
    got = score(made, truth, {}, size=32).summary
    pairs = [(i, j) for i in range(6) for j in range(6)]
    pix = [pixel.pixcorr(truth[[i]], made[[j]])[0] for i, j in pairs]
    assert got["pixcorr"].chance == pytest.approx(np.mean(pix), abs=1e-9)
    # All five shifts of six images are drawn, so every mismatched pair is in.
    structure = [pixel.ssim(truth[[i]], made[[j]])[0] for i, j in pairs if i != j]
    assert got["ssim"].chance == pytest.approx(np.mean(structure), rel=1e-9)


def test_constant_reconstructions_tie():
    truth = _images(5)
    scores = score(np.full_like(truth, 128), truth, {"net": _mean_colours}, size=32)
    assert scores.summary["two_way_net"].ties == 20
    assert scores.summary["two_way_net"].mean == 0.5
    assert scores.summary["two_way_net"].p == 1
    assert scores.summary["pixcorr"].mean == 0


def test_images_are_resized_for_pixel_metrics_only():
    truth, made = _images(4, 64), _images(4, 32)
    seen = []
    scores = score(made, truth, {"net": lambda x: (seen.append(x.shape), _mean_colours(x))[1]}, size=16)
    assert sorted(seen) == [(4, 32, 32, 3), (4, 64, 64, 3)]
    np.testing.assert_array_equal(
        scores.per_image["pixcorr"], pixel.pixcorr(resize(truth, 16), resize(made, 16))
    )
    literal = np.asarray(Image.fromarray(truth[2]).resize((16, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize(truth, 16)[2], literal)
    assert resize(truth, 64) is truth


def test_same_seed_same_scores():
    truth = _images(8)
    made = _noisy(truth, 90)
    first, again, other = (score(made, truth, {"net": _mean_colours}, 32, s).summary for s in (1, 1, 2))
    assert first == again != other


def test_two_images_are_enough_and_one_is_not():
    truth = _images(2)
    assert score(truth, truth, {"net": _mean_colours}, 32).summary["two_way_net"].mean == 1
    with pytest.raises(AppError, match="at least two") as caught:
        score(truth[:1], truth[:1], {}, 32)
    assert caught.value.exit_code == ExitCode.BAD_DATA


def test_refusals():
    truth = _images(3)
    with pytest.raises(AppError, match="network bad"):
        score(truth, truth, {"bad": lambda x: np.full((3, 2), np.nan)}, 32)
    with pytest.raises(ValueError, match="network bad"):
        score(truth, truth, {"bad": lambda x: np.zeros((2, 2))}, 32)
    with pytest.raises(ValueError, match="2 reconstructions"):
        score(truth[:2], truth, {}, 32)
    with pytest.raises(AppError, match="Unknown protocol"):
        score(truth, truth, {}, 32, protocol="bd")


def test_a_list_of_images_is_answered_with_what_to_give():
    truth = _images(3)
    with pytest.raises(TypeError, match=r"reconstructions: a list of 3 items .*one uint8 array .*stack"):
        score(list(truth), truth, {}, 32)
    with pytest.raises(TypeError, match=r"stimuli: a tuple of 3 items"):
        score(truth, tuple(truth), {}, 32)


def test_images_of_several_sizes_are_named():
    truth = _images(3)
    several = [truth[0], _images(1, 64)[0], truth[2]]
    with pytest.raises(TypeError, match=r"several sizes \(32 x 32, 64 x 64\).*[Rr]esize"):
        score(several, truth, {}, 32)
    with pytest.raises(ValueError, match=r"one size.*resize"):
        pixel.pixcorr(truth, _images(3, 64))


def test_images_by_name_are_answered_with_the_names_that_lack_a_partner():
    truth = _images(3)
    by_name = dict(zip(("a", "b", "c"), truth, strict=True))
    with pytest.raises(TypeError, match=r"pairs images by position.*only in stimuli: c.*"):
        score({k: v for k, v in by_name.items() if k != "c"}, by_name, {}, 32)
    with pytest.raises(TypeError, match=r"reconstructions: a dict of 3 items"):
        score(by_name, truth, {}, 32)


def test_unequal_numbers_name_both_and_the_order():
    truth = _images(3)
    with pytest.raises(ValueError, match=r"2 reconstructions.*3 stimuli.*same order"):
        score(truth[:2], truth, {}, 32)


def test_networks_are_given_by_name():
    truth = _images(3)
    with pytest.raises(TypeError, match=r"networks.*by name"):
        score(truth, truth, [_mean_colours], 32)
