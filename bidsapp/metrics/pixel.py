"""Pixel metrics: correlation and structural similarity of image pairs.

Images are 8-bit, or floats in [0, 1] as some protocols resize them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8] | npt.NDArray[np.floating[Any]]
Vector = npt.NDArray[np.float64]

#: Weights of R, G, B in luminance, as in scikit-image's ``rgb2gray``.
_LUMINANCE = (0.2125, 0.7154, 0.0721)
#: Wang et al. (2004): window sigma; constants (K1 L)^2 and (K2 L)^2 with data range L = 1.
_SIGMA, _C1, _C2 = 1.5, 0.01**2, 0.03**2
#: The window is cut at 3.5 sigma; means leave out a border of its radius.
_TRUNCATE = 3.5
_RADIUS = int(_TRUNCATE * _SIGMA + 0.5)
#: Pixels in a block.
_BLOCK = 1 << 18
#: An image whose variance (of values in [0, 1]) is not above this is constant but for rounding; a single
#: 8-bit value off by one in 512 x 512 pixels is above it.
_FLAT = 1e-12
#: Largest value of float images: 1, plus what resizing may add by rounding.
_WHITE = 1 + 1e-5


def pixcorr(a: Images, b: Images) -> Vector:
    """Pearson correlation over all RGB values of each pair of images.

    Parameters
    ----------
    a, b : ndarray of uint8, or of float in [0, 1], (n, H, W, 3)

    Returns
    -------
    ndarray of float64, (n,)
        0 where an image is constant (the correlation is not defined there).

    Raises
    ------
    ValueError
        For other dtypes, values or shapes, and for images of two sizes.
    """
    _check(a, b)
    out = np.zeros(a.shape[0])
    for i, (one, two) in enumerate(zip(a, b, strict=True)):
        x, y = one.ravel().astype(np.float64), two.ravel().astype(np.float64)
        x -= x.mean()
        y -= y.mean()
        # Not BLAS's dot: for vectors as short as these, waking its threads costs more than the sum.
        xx, yy, xy = (np.einsum("i,i->", *pair) for pair in ((x, x), (y, y), (x, y)))
        varies = min(xx, yy) > _FLAT * x.size
        out[i] = np.clip(xy / np.sqrt(xx * yy), -1, 1) if varies else 0.0
    return out


def ssim(a: Images, b: Images) -> Vector:
    """Structural similarity of each pair of images in grey scale.

    Equal to scikit-image's ``structural_similarity`` of ``rgb2gray`` images with
    ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0``
    (Wang et al. 2004, IEEE Trans. Image Process. 13:600), as in both published protocols.

    Parameters
    ----------
    a, b : ndarray of uint8, or of float in [0, 1], (n, H, W, 3)
        At least 11 pixels high and wide.

    Returns
    -------
    ndarray of float64, (n,)

    Raises
    ------
    ValueError
        As :func:`pixcorr`.
    """
    return _ssim_images(a, b, axes=(1, 2))


def ssim_columnwise(a: Images, b: Images) -> Vector:
    """Mean 1-D structural similarity of the columns of each pair of grey-scale images.

    scikit-image 0.17 computed this when a grey-scale image was passed with ``multichannel=True``: each
    column was treated as a channel. Brain-Diffuser's published SSIM values are of this type; on blurred
    images they are higher than :func:`ssim`, whose parameters, result and errors it shares.
    """
    return _ssim_images(a, b, axes=(1,))


def ssim_shifted(a: Images, b: Images, shifts: Sequence[int]) -> Vector:
    """Mean :func:`ssim` of pairs that do not belong together, (shifts,).

    Shift s pairs ``b[j]`` with ``a[(j + s) % n]``; the mean is over the n pairs.
    """
    _check(a, b, smallest=2 * _RADIUS + 1)
    n = a.shape[0]
    total = np.zeros(len(shifts))
    for block in _blocks(b):
        moments = _Moments(b[block], (1, 2))
        for k, shift in enumerate(shifts):
            others = (np.arange(n)[block] + shift) % n
            total[k] += _ssim(_Moments(a[others], (1, 2)), moments).sum()
    total /= n
    return total


def _ssim_images(a: Images, b: Images, axes: tuple[int, ...]) -> Vector:
    _check(a, b, smallest=2 * _RADIUS + 1)
    out = np.empty(a.shape[0])
    for block in _blocks(a):
        out[block] = _ssim(_Moments(a[block], axes), _Moments(b[block], axes))
    return out


def _blocks(images: Images) -> Iterator[slice]:
    n, height, width, _ = images.shape
    step = max(1, _BLOCK // (height * width))
    for start in range(0, n, step):
        yield slice(start, start + step)


class _Moments:
    """Grey-scale images (k, H, W) and their local means and variances, filtered along ``axes``."""

    def __init__(self, rgb: Images, axes: tuple[int, ...]) -> None:
        self.axes = axes
        white = 255.0 if rgb.dtype == np.uint8 else 1.0
        red, green, blue = (
            rgb[..., channel].astype(np.float64) * (weight / white)
            for channel, weight in enumerate(_LUMINANCE)
        )
        self.gray: Vector = red + green + blue
        self.mean = _blur(self.gray, axes)
        self.variance = _blur(self.gray * self.gray, axes) - self.mean * self.mean


def _blur(gray: npt.NDArray[Any], axes: tuple[int, ...]) -> Vector:
    from scipy.ndimage import gaussian_filter

    blurred: Vector = gaussian_filter(gray, _SIGMA, truncate=_TRUNCATE, mode="reflect", axes=axes)
    return blurred


def _ssim(x: _Moments, y: _Moments) -> Vector:
    """Mean structural similarity of each pair, (k,)."""
    products = x.mean * y.mean
    covariance = _blur(x.gray * y.gray, x.axes) - products
    numerator = (2 * products + _C1) * (2 * covariance + _C2)
    denominator = (x.mean**2 + y.mean**2 + _C1) * (x.variance + y.variance + _C2)
    inside = tuple(slice(_RADIUS, -_RADIUS) if axis in x.axes else slice(None) for axis in (0, 1, 2))
    means: Vector = (numerator / denominator)[inside].mean(axis=(1, 2))
    return means


def _check(a: Images, b: Images, smallest: int = 1) -> None:
    if a.dtype != b.dtype or not (a.dtype == np.uint8 or np.issubdtype(a.dtype, np.floating)):
        raise ValueError(f"both must be uint8 (or float) images; {a.dtype} and {b.dtype} were given")
    if a.dtype != np.uint8 and not all(x.min(initial=0) >= 0 and x.max(initial=1) <= _WHITE for x in (a, b)):
        raise ValueError("float images must lie between 0 and 1 (or be given as uint8)")
    if a.shape != b.shape or a.ndim != 4 or a.shape[3] != 3:
        message = f"shapes {a.shape} and {b.shape} were given; both must be (n, H, W, 3) of one size"
        raise ValueError(f"{message} (resize the images first)")
    if min(a.shape[1:3]) < smallest:
        raise ValueError(
            f"images of {a.shape[1:3]} pixels were given; SSIM needs at least {smallest} x {smallest}"
        )
