"""The published ImageNet-64 configuration at full size, with random weights (``pytest -m slow``)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.vdvae_equations import (
    IMAGENET64,
    decode_raw,
    randomised,
    reference_encoder,
    reference_mean_pixels,
    reference_top_down,
)


@pytest.mark.slow
def test_full_size_equals_the_published_equations() -> None:
    model = randomised(IMAGENET64)
    images = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    state = {name: value.detach() for name, value in model.state_dict().items()}
    with torch.no_grad():
        activations = reference_encoder(state, IMAGENET64, images)
        latents, raw = reference_top_down(state, IMAGENET64, 1, activations=activations)
    expected = torch.cat([z.flatten(1) for z in latents], 1).numpy()
    np.testing.assert_allclose(model.encode_latents(images), expected[:, :91168], rtol=0, atol=1e-5)
    encoded = model.encode_latents(images, model.n_blocks)
    np.testing.assert_allclose(encoded, expected, rtol=0, atol=1e-5)
    pixels, own = decode_raw(model, encoded, (0,))
    torch.testing.assert_close(own, raw, rtol=1e-5, atol=1e-5)
    assert np.abs(pixels.astype(int) - reference_mean_pixels(raw, 10)).max() <= 1
    assert pixels.std() > 1
