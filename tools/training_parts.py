"""What only training the embedded models needs: the VDVAE's losses, its first weights, the hub's layout."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bidsapp.models._logistic import split_parameters
from bidsapp.models.vdvae import VDVAE
from bidsapp.models.vdvae_blocks import Block


def negative_log_likelihood(raw: Tensor, target: Tensor, n_mixtures: int) -> Tensor:
    """Negative log likelihood of 8-bit images.

    Parameters
    ----------
    raw : Tensor, shape (n, 10 * n_mixtures, H, W)
    target : Tensor, shape (n, H, W, 3), values in [-1, 1] on the grid of 255 steps

    Returns
    -------
    Tensor, shape (n,)
        Nats per pixel and channel.
    """
    log_weights, means, log_scales, coeffs = split_parameters(raw, n_mixtures)
    x = target[..., None]
    green = means[..., 1, :] + coeffs[..., 0, :] * x[..., 0, :]
    blue = means[..., 2, :] + coeffs[..., 1, :] * x[..., 0, :] + coeffs[..., 2, :] * x[..., 1, :]
    centred = x - torch.stack([means[..., 0, :], green, blue], -2)
    inverse_scale = torch.exp(-log_scales)
    upper = inverse_scale * (centred + 1 / 255)
    lower = inverse_scale * (centred - 1 / 255)
    inside = torch.log((torch.sigmoid(upper) - torch.sigmoid(lower)).clamp(min=1e-10))
    # Where the bin's mass underflows, take its width times the density at its middle.
    middle = inverse_scale * centred
    density = middle - log_scales - 2 * F.softplus(middle) - float(torch.log(torch.tensor(127.5)))
    inside = torch.where(torch.sigmoid(upper) - torch.sigmoid(lower) > 1e-5, inside, density)
    log_prob = torch.where(
        x < -0.999, F.logsigmoid(upper), torch.where(x > 0.999, -F.softplus(lower), inside)
    )
    total = torch.logsumexp(log_prob.sum(-2) + F.log_softmax(log_weights, -1), -1)
    return -total.mean(dim=(1, 2)) / 3


def elbo_terms(model: VDVAE, images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Distortion and rate of images, in nats per pixel and channel, each of shape (n,); for training."""
    model.check_images(images)
    activations = model.encoder(model.normalise(images))
    streams = model.decoder.start(len(images))
    rate = torch.zeros(len(images), device=model.device)
    for block in model.decoder.blocks:
        x = block.enter(streams)
        q_mean, q_log = (t.float() for t in block.posterior_of(x, activations[block.base]))
        p_mean, p_log, x = block.prior_of(x)
        p_mean, p_log = p_mean.float(), p_log.float()
        z = q_mean + q_log.exp() * torch.randn_like(q_mean)
        kl = (
            p_log
            - q_log
            - 0.5
            + 0.5 * (torch.exp(2 * q_log) + (q_mean - p_mean) ** 2) * torch.exp(-2 * p_log)
        )
        rate = rate + kl.sum(dim=(1, 2, 3))
        streams[block.base] = block.leave(x, z)
    raw = model.decoder.finish(streams, model.config.image_size)
    target = torch.from_numpy(np.ascontiguousarray(images)).to(model.device).float() / 127.5 - 1
    distortion = negative_log_likelihood(raw, target, model.config.n_mixtures)
    return distortion, rate / (3 * model.config.image_size**2)


def scale_initial_weights(model: VDVAE) -> None:
    """Scale the residual branches' last weights by sqrt(1 / depth), as the paper does before training."""
    with torch.no_grad():
        for residual in cast("list[Block]", list(model.encoder.enc_blocks)):
            residual.c4.weight *= len(model.encoder.enc_blocks) ** -0.5
        for block in model.decoder.blocks:
            block.z_proj.weight *= model.n_blocks**-0.5
            block.resnet.c4.weight *= model.n_blocks**-0.5
            block.prior.c4.weight.zero_()
            nn.init.zeros_(cast(Tensor, block.prior.c4.bias))


def split_paths(unet: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State dicts of a dual UNet in the hub's layout: the image UNet's, and the text attentions'."""
    image: dict[str, Tensor] = {}
    text: dict[str, Tensor] = {}
    for key, value in unet.state_dict().items():
        head, _, rest = key.partition(".attentions.")
        if rest:
            index, half, tail = rest.split(".", 2)
            (image if half == "vision" else text)[f"{head}.attentions.{index}.{tail}"] = value
        else:
            image[key] = value
    return image, text
