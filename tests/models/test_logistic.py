"""The discretised mixture of logistics against a slow transcription, its total mass and its samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from training_parts import negative_log_likelihood

from bidsapp.models._logistic import mixture_mean, mixture_sample, split_parameters

M = 3  # mixtures


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def slow_log_probability(raw: np.ndarray, rgb: tuple[float, float, float]) -> float:
    """Log probability of one pixel, as PixelCNN++ writes it, in float64; ``raw`` has shape (10 * M,)."""
    weights, rest = raw[:M], raw[M:].reshape(3, 3, M)  # channel, (mean, log scale, coefficient), mixture
    norm = math.log(sum(math.exp(w) for w in weights))
    terms = []
    for k in range(M):
        c0, c1, c2 = (math.tanh(rest[c, 2, k]) for c in range(3))
        r, g, _ = rgb
        means = (rest[0, 0, k], rest[1, 0, k] + c0 * r, rest[2, 0, k] + c1 * r + c2 * g)
        total = weights[k] - norm
        for c in range(3):
            log_scale = max(rest[c, 1, k], -7.0)
            inverse = math.exp(-log_scale)
            centred = rgb[c] - means[c]
            upper, lower = inverse * (centred + 1 / 255), inverse * (centred - 1 / 255)
            if rgb[c] < -0.999:
                total += -softplus(-upper)
            elif rgb[c] > 0.999:
                total += -softplus(lower)
            else:
                mass = sigmoid(upper) - sigmoid(lower)
                if mass > 1e-5:
                    total += math.log(mass)
                else:
                    middle = inverse * centred
                    total += middle - log_scale - 2 * softplus(middle) - math.log(127.5)
        terms.append(total)
    top = max(terms)
    return top + math.log(sum(math.exp(t - top) for t in terms))


def random_raw(rng: np.random.Generator, n: int, log_scale: tuple[float, float]) -> np.ndarray:
    raw = rng.normal(size=(n, 10 * M))
    rest = raw[:, M:].reshape(n, 3, 3, M)
    rest[:, :, 0] *= 0.4
    rest[:, :, 1] = rng.uniform(*log_scale, size=rest[:, :, 1].shape)
    return raw


def as_images(raw: np.ndarray) -> Tensor:
    """Rows of parameters as images of one pixel, (n, 10 * M, 1, 1)."""
    return torch.from_numpy(raw.astype(np.float32))[:, :, None, None]


def on_the_grid(levels: np.ndarray) -> np.ndarray:
    return levels / 127.5 - 1


@pytest.mark.parametrize(
    ("log_scale", "tolerance"),
    [((-3.0, 0.5), 1e-4), ((-9.0, -3.0), 0.03)],
    ids=["broad", "narrow, in the tails"],
)
def test_likelihood_is_pixelcnns(log_scale: tuple[float, float], tolerance: float) -> None:
    rng = np.random.default_rng(0)
    raw = random_raw(rng, 60, log_scale)
    levels = rng.integers(0, 256, (60, 3))
    levels[:12] = np.resize([[0, 255, 7], [255, 0, 0], [3, 4, 255]], (12, 3))
    colours = on_the_grid(levels)
    target = torch.from_numpy(colours.astype(np.float32))[:, None, None]
    fast = negative_log_likelihood(as_images(raw), target, M).numpy() * 3
    slow = np.array(
        [
            -slow_log_probability(r.astype(np.float32).astype(float), tuple(c))
            for r, c in zip(raw, colours, strict=True)
        ]
    )
    # float32 leaves a few digits of the difference of two sigmoids
    np.testing.assert_allclose(fast, slow, rtol=tolerance, atol=tolerance)
    assert slow.std() > 0.5


def test_likelihood_averages_over_pixels() -> None:
    rng = np.random.default_rng(1)
    raw = random_raw(rng, 6, (-3, 0))
    target = torch.from_numpy(on_the_grid(rng.integers(0, 256, (6, 3))).astype(np.float32))
    single = negative_log_likelihood(as_images(raw), target[:, None, None], M)
    image = as_images(raw).reshape(1, 2, 3, 10 * M).permute(0, 3, 1, 2)
    whole = negative_log_likelihood(image, target.reshape(1, 2, 3, 3), M)
    torch.testing.assert_close(whole, single.mean().reshape(1))


@pytest.mark.parametrize("pinned", [0, 1, 2])
def test_probabilities_of_all_values_sum_to_one(pinned: int) -> None:
    """Two channels run over all 256 x 256 values; the third is certain to be 0 (its mean lies far below)."""
    raw = random_raw(np.random.default_rng(2 + pinned), 1, (-4, -0.5))
    raw[0, M:].reshape(3, 3, M)[pinned, 0] = -40.0
    levels = np.zeros((256, 256, 3))
    first, second = (c for c in range(3) if c != pinned)
    levels[..., first], levels[..., second] = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    target = torch.from_numpy(on_the_grid(levels).astype(np.float32)).reshape(-1, 1, 1, 3)
    nll = negative_log_likelihood(as_images(raw).expand(len(target), -1, -1, -1), target, M) * 3
    probability = torch.exp(-nll.double())
    assert probability.sum().item() == pytest.approx(1, abs=2e-4)
    assert (probability > 1e-6).sum() > 1000


def test_mean_in_closed_form() -> None:
    """Green is predicted from red, blue from red and green, within each mixture."""
    raw = random_raw(np.random.default_rng(7), 20, (-4, -3))
    rest = raw[:, M:].reshape(20, 3, 3, M)
    rest[:, :, 0] *= 0.5
    share = np.exp(raw[:, :M]) / np.exp(raw[:, :M]).sum(1, keepdims=True)
    c = np.tanh(rest[:, :, 2])
    red = rest[:, 0, 0]
    green = rest[:, 1, 0] + c[:, 0] * red
    blue = rest[:, 2, 0] + c[:, 1] * red + c[:, 2] * green
    expected = np.stack([(share * channel).sum(1) for channel in (red, green, blue)], 1)
    own = mixture_mean(as_images(raw), M).reshape(20, 3).numpy()
    np.testing.assert_allclose(own, expected.clip(-1, 1), rtol=1e-5, atol=1e-6)


def test_mean_is_the_mean_of_samples() -> None:
    raw = random_raw(np.random.default_rng(5), 1, (-4, -3.5))
    raw[0, M:].reshape(3, 3, M)[:, 0] *= 0.5  # far enough inside [-1, 1] that nothing is clipped
    n = 200_000
    drawn = mixture_sample(as_images(raw).expand(n, -1, -1, -1), M, torch.Generator().manual_seed(0)).reshape(
        n, 3
    )
    assert drawn.abs().max() < 1
    error = drawn.std(0) / n**0.5
    difference = (drawn.mean(0) - mixture_mean(as_images(raw), M).reshape(3)) / error
    assert difference.abs().max() < 4.5
    # between mixtures and within: the three channels are tied through the coefficients
    assert np.abs(np.corrcoef(drawn.T.numpy())[np.triu_indices(3, 1)]).max() > 0.1


def test_samples_follow_the_likelihood() -> None:
    """Empirical frequencies of one channel agree with the likelihood's marginal."""
    raw = random_raw(np.random.default_rng(6), 1, (-3, -1))
    raw[0, M:].reshape(3, 3, M)[1:, 0] = -40.0  # green and blue are 0
    n = 100_000
    drawn = mixture_sample(as_images(raw).expand(n, -1, -1, -1), M, torch.Generator().manual_seed(1)).reshape(
        n, 3
    )
    assert (drawn[:, 1:] == -1).all()
    levels = ((drawn[:, 0] + 1) * 127.5).round().long()
    seen = torch.bincount(levels, minlength=256).double() / n
    target = torch.full((256, 1, 1, 3), -1.0)
    target[:, 0, 0, 0] = torch.arange(256) / 127.5 - 1
    wanted = torch.exp(
        -3 * negative_log_likelihood(as_images(raw).expand(256, -1, -1, -1), target, M).double()
    )
    assert (seen.cumsum(0) - wanted.cumsum(0)).abs().max() < 1.63 / n**0.5 + 1e-3  # Kolmogorov-Smirnov at 1 %


@given(st.floats(-1e4, 1e4), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_pixels_stay_in_range(scale: float, seed: int) -> None:
    raw = scale * torch.randn(2, 10 * M, 3, 3, generator=torch.Generator().manual_seed(seed))
    for pixels in (mixture_sample(raw, M, torch.Generator().manual_seed(seed)), mixture_mean(raw, M)):
        assert pixels.shape == (2, 3, 3, 3)
        assert torch.isfinite(pixels).all()
        assert pixels.abs().max() <= 1
    _, _, log_scales, coefficients = split_parameters(raw, M)
    assert log_scales.min() >= -7
    assert coefficients.abs().max() <= 1


def test_same_generator_same_sample() -> None:
    raw = torch.randn(1, 10 * M, 4, 4, generator=torch.Generator().manual_seed(0))
    one, again, other = (mixture_sample(raw, M, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
