"""Pixel metrics against scikit-image and literal formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import convolve1d
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity

from bidsapp.metrics import pixel
from bidsapp.metrics.pixel import pixcorr, ssim, ssim_columnwise, ssim_shifted

SETTINGS = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}


def _pairs(n: int = 3, height: int = 40, width: int = 33, seed: int = 0):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 256, (n, height, width, 3)).astype(np.uint8)
    noise = rng.normal(0, 60, a.shape)
    return a, np.clip(a + noise, 0, 255).astype(np.uint8)


def test_pixcorr_is_corrcoef():
    a, b = _pairs()
    expected = [np.corrcoef(x.ravel() / 1.0, y.ravel() / 1.0)[0, 1] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(pixcorr(a, b), expected, rtol=1e-12)
    np.testing.assert_allclose(pixcorr(a, a), 1)
    np.testing.assert_allclose(pixcorr(a, 255 - a), -1)


def test_pixcorr_of_a_constant_image_is_zero():
    a, b = _pairs()
    b[1] = 77
    got = pixcorr(a, b)
    assert got[1] == 0
    assert pixcorr(b[1:2], b[1:2])[0] == 0
    b[1, 0, 0, 0] = 78  # the slightest variation is a correlation again
    expected = np.corrcoef(a[1].ravel() / 1.0, b[1].ravel() / 1.0)[0, 1]
    assert pixcorr(a, b)[1] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", [(40, 33), (11, 11), (64, 64)])
def test_ssim_is_scikit_images(shape):
    a, b = _pairs(3, *shape)
    expected = [
        structural_similarity(rgb2gray(x), rgb2gray(y), **SETTINGS) for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(ssim(a, b), expected, rtol=1e-10)
    np.testing.assert_allclose(ssim(a, a), 1)
    np.testing.assert_allclose(ssim(a, b), ssim(b, a), rtol=1e-12)


def test_columnwise_ssim_treats_columns_as_channels():
    a, b = _pairs()
    expected = [
        structural_similarity(rgb2gray(x), rgb2gray(y), channel_axis=-1, **SETTINGS)
        for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(ssim_columnwise(a, b), expected, rtol=1e-10)


def test_columnwise_ssim_is_the_formula_column_by_column():
    """The equations of Wang et al. with explicit window weights; no filter of the implementation."""
    a, b = _pairs(1, 30, 12)
    offsets = np.arange(-5, 6)
    weights = np.exp(-0.5 * (offsets / 1.5) ** 2)
    weights /= weights.sum()
    total = []
    for column in range(12):
        x, y = (rgb2gray(image[0])[:, column] for image in (a, b))
        mx, my, xx, yy, xy = (
            convolve1d(v, weights, mode="reflect")[5:-5] for v in (x, y, x * x, y * y, x * y)
        )
        top = (2 * mx * my + 1e-4) * (2 * (xy - mx * my) + 9e-4)
        total.append(top / ((mx**2 + my**2 + 1e-4) * (xx - mx**2 + yy - my**2 + 9e-4)))
    np.testing.assert_allclose(ssim_columnwise(a, b), [np.mean(total)], rtol=1e-10)


def test_columnwise_ssim_is_higher_on_blurred_images():
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    scene = gaussian_filter(rng.normal(size=(1, 96, 96, 3)), (0, 3, 3, 0))
    scene = (255 * (scene - scene.min()) / np.ptp(scene)).astype(np.uint8)
    blurred = gaussian_filter(scene.astype(float), (0, 5, 5, 0)).astype(np.uint8)
    assert ssim_columnwise(scene, blurred)[0] > ssim(scene, blurred)[0] + 0.02


@pytest.mark.parametrize("block", [1, 300, 1 << 18])
def test_shifted_pairs_and_blocks(monkeypatch, block):
    monkeypatch.setattr(pixel, "_BLOCK", block)
    a, b = _pairs(4, 16, 16)
    got = ssim_shifted(a, b, [1, 3, 0])
    for shift, mean in zip((1, 3, 0), got, strict=True):
        expected = [ssim(a[[(j + shift) % 4]], b[[j]])[0] for j in range(4)]
        assert mean == pytest.approx(np.mean(expected), rel=1e-12)
    assert got[2] == pytest.approx(ssim(a, b).mean(), rel=1e-12)


def test_refusals():
    a, b = _pairs()
    for x, y in ((a, b[:2]), (a, b / 255.0), (a.astype(int), b.astype(int)), (a[..., 0], b[..., 0])):
        for function in (pixcorr, ssim, ssim_columnwise):
            with pytest.raises(ValueError, match="both must be"):
                function(x, y)
    with pytest.raises(ValueError, match="at least 11"):
        ssim(a[:, :10], b[:, :10])
    for wrong in (b / 1.0, b / 255.0 - 0.1, np.full(b.shape, np.nan)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            ssim(a / 255.0, wrong)


def test_floats_score_as_the_bytes_they_came_from():
    a, b = _pairs()
    for kind, tolerance in ((np.float64, 1e-12), (np.float32, 1e-6)):
        floats = [(x / 255.0).astype(kind) for x in (a, b)]
        for function in (pixcorr, ssim, ssim_columnwise):
            np.testing.assert_allclose(function(*floats), function(a, b), rtol=tolerance)


def test_a_constant_float_image_is_constant_but_for_rounding():
    a, _ = _pairs(2, 425, 425)
    floats = (a / 255.0).astype(np.float32)
    flat = np.full_like(floats, 0.7)
    flat[0, ::2] += np.float32(1e-7)
    assert (flat[0] != flat[1]).any()
    np.testing.assert_array_equal(pixcorr(floats, flat), 0)
    flat[0, 5, 5, 0] += 1 / 255
    assert pixcorr(floats, flat)[0] != 0
