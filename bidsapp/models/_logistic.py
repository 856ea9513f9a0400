"""The discretised mixture of logistics, the VDVAE's output distribution (PixelCNN++, arXiv 1701.05517)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def split_parameters(raw: Tensor, n_mixtures: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split a network's output into the mixture's parameters.

    Parameters
    ----------
    raw : Tensor, shape (n, 10 * n_mixtures, H, W)
        Output of the last convolution, channels in the order of the published VDVAE.

    Returns
    -------
    log_weights : Tensor, shape (n, H, W, n_mixtures)
        Unnormalised log mixture weights.
    means, log_scales, coefficients : Tensor, shape (n, H, W, 3, n_mixtures)
        Of the three colour channels; log scales are at least -7, coefficients between -1 and 1.
    """
    raw = raw.float().permute(0, 2, 3, 1)
    log_weights = raw[..., :n_mixtures]
    rest = raw[..., n_mixtures:].reshape(*raw.shape[:3], 3, 3 * n_mixtures)
    means, log_scales, coefficients = rest.chunk(3, dim=-1)
    return log_weights, means, log_scales.clamp(min=-7.0), torch.tanh(coefficients)


def mixture_mean(raw: Tensor, n_mixtures: int) -> Tensor:
    """Mean of the mixture, the deterministic reading of the output.

    Returns
    -------
    Tensor, shape (n, H, W, 3), values in [-1, 1]
    """
    log_weights, means, _, coeffs = split_parameters(raw, n_mixtures)
    weights = log_weights.softmax(-1)
    red, green, blue = _chain(means, coeffs, clip=False)
    return torch.stack([(weights * c).sum(-1) for c in (red, green, blue)], -1).clamp(-1, 1)


def mixture_sample(raw: Tensor, n_mixtures: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw one sample per pixel, as the published VDVAE does.

    Returns
    -------
    Tensor, shape (n, H, W, 3), values in [-1, 1]
    """
    log_weights, means, log_scales, coeffs = split_parameters(raw, n_mixtures)
    gumbel = -torch.log(-torch.log(_uniform(log_weights.shape, log_weights, generator)))
    chosen = F.one_hot((log_weights + gumbel).argmax(-1), n_mixtures).to(means)[..., None, :]
    mean, log_scale, coeff = ((t * chosen).sum(-1, keepdim=True) for t in (means, log_scales, coeffs))
    u = _uniform(mean.shape, mean, generator)
    drawn = mean + log_scale.exp() * (torch.log(u) - torch.log1p(-u))
    return torch.cat(_chain(drawn, coeff, clip=True), -1)


def _chain(values: Tensor, coeffs: Tensor, *, clip: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Green is predicted from red, blue from red and green."""

    def limit(t: Tensor) -> Tensor:
        return t.clamp(-1, 1) if clip else t

    red = limit(values[..., 0, :])
    green = limit(values[..., 1, :] + coeffs[..., 0, :] * red)
    blue = limit(values[..., 2, :] + coeffs[..., 1, :] * red + coeffs[..., 2, :] * green)
    return red, green, blue


def _uniform(shape: torch.Size, like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else like.device
    u = torch.rand(shape, generator=generator, device=device, dtype=torch.float32)
    return (u * (1 - 2e-5) + 1e-5).to(like.device)
