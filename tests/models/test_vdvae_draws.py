"""What the VDVAE draws: an image's own generator, or one for a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.vdvae_equations import SMALL, generators, randomised

from bidsapp.models.vdvae import VDVAE


@pytest.fixture(scope="module")
def small() -> VDVAE:
    return randomised(SMALL)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


def test_a_drawn_latent_does_not_depend_on_its_batch(small: VDVAE, images: np.ndarray) -> None:
    together = small.encode_latents(images, 3, sample=True, generator=generators(5, 6, 7))
    alone = [
        small.encode_latents(images[i : i + 1], 3, sample=True, generator=generators(5 + i)) for i in range(3)
    ]
    np.testing.assert_allclose(np.concatenate(alone), together, rtol=1e-4, atol=1e-4)
    reseeded = small.encode_latents(images, 3, sample=True, generator=generators(5, 60, 7))
    np.testing.assert_array_equal(reseeded[[0, 2]], together[[0, 2]])
    assert (reseeded[1] != together[1]).mean() > 0.9
    with pytest.raises(ValueError, match="3 images need as many generators, got 2"):
        small.encode_latents(images, 3, sample=True, generator=generators(5, 6))


@pytest.mark.parametrize("sample", [False, True])
def test_one_generator_for_a_batch(small: VDVAE, images: np.ndarray, sample: bool) -> None:
    latents = small.encode_latents(images, 3)

    def decode(rows: slice, generator: torch.Generator | list[torch.Generator]) -> np.ndarray:
        return small.decode_latents(latents[rows], generator, sample=sample)

    one = slice(0, 1)
    np.testing.assert_array_equal(decode(one, generators(5)[0]), decode(one, generators(5)))
    everything = slice(None)
    batch = decode(everything, generators(5)[0])
    np.testing.assert_array_equal(batch, decode(everything, generators(5)[0]))
    assert (decode(everything, generators(6)[0]) != batch).mean() > 0.1
    # its stream goes on: the images of a batch get draws of their own
    twice = small.decode_latents(latents[[0, 0]], generators(5)[0], sample=sample)
    assert (twice[0] != twice[1]).mean() > 0.1
    with pytest.raises(ValueError, match="3 images need as many generators, got 0"):
        small.decode_latents(latents)
