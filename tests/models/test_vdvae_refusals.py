"""What the VDVAE refuses: block strings, images, layers, latents and generators that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_parts import elbo_terms

from bidsapp.models.vdvae import VDVAE, VDVAEConfig, parse_blocks


@pytest.fixture(scope="module")
def small() -> VDVAE:
    config = VDVAEConfig(16, "16x2,16d2,8d2,4d2,2d2,1x2", "1x2,2m1,2,4m2,4x2,8m4,16m8,16x2", width=16, zdim=5)
    return VDVAE(config).eval()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


POSITIVE = st.integers(1, 512)
ITEMS = st.one_of(
    st.tuples(POSITIVE, st.just("x"), st.integers(1, 40)),
    st.tuples(POSITIVE, st.just("d"), POSITIVE),
    st.tuples(POSITIVE, st.just("m"), POSITIVE),
)


@given(st.lists(ITEMS, min_size=1, max_size=8))
def test_block_strings_say_what_they_hold(items: list[tuple[int, str, int]]) -> None:
    specs = parse_blocks(", ".join(f"{left}{mark}{right}" for left, mark, right in items))
    assert len(specs) == sum(right if mark == "x" else 1 for _, mark, right in items)
    at = 0
    for left, mark, right in items:
        for spec in specs[at : at + (right if mark == "x" else 1)]:
            assert spec.resolution == left
            assert spec.down_rate == (right if mark == "d" else None)
            assert spec.mixin == (right if mark == "m" else None)
            at += 1


def test_a_bare_number_is_one_block() -> None:
    assert parse_blocks("8") == parse_blocks("8x1")


@pytest.mark.parametrize(
    "text", ["", "x", "64x", "64q2", "64x2x3", "64d", "m4", "64x1,,32x1", "a", "64x0", "64x-2", "0x1", "8d0"]
)
def test_other_block_strings_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"literal for int|not enough values|too many values|at least 1"):
        parse_blocks(text)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 16, 16, 3), np.float32),
        np.zeros((2, 8, 8, 3), np.uint8),
        np.zeros((2, 3, 16, 16), np.uint8),
        np.zeros((16, 16, 3), np.uint8),
    ],
    ids=["float", "size", "channels first", "one image"],
)
def test_other_images_are_refused(small: VDVAE, wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8 images of shape"):
        small.encode_latents(wrong, 2)
    with pytest.raises(ValueError, match="uint8 images of shape"):
        elbo_terms(small, wrong)


@pytest.mark.parametrize("n_layers", [-1, 0, 12])
def test_layers_that_are_not_there_are_refused(small: VDVAE, images: np.ndarray, n_layers: int) -> None:
    assert small.n_blocks == 11
    with pytest.raises(ValueError, match="11 blocks"):
        small.encode_latents(images, n_layers)


def test_latents_that_fit_no_number_of_blocks_are_refused(small: VDVAE) -> None:
    for width in (3, sum(small.layer_sizes(3)) - 1, sum(small.layer_sizes()) + 1):
        with pytest.raises(ValueError, match=f"{width} latent values"):
            small.decode_latents(np.zeros((1, width), np.float32), generators(0))


def test_one_generator_an_image(small: VDVAE) -> None:
    """One generator for two images would give both the same noise."""
    latents = np.zeros((2, sum(small.layer_sizes(2))), np.float32)
    for seeds in ((), (1,), (1, 2, 3)):
        with pytest.raises(ValueError, match="generators"):
            small.decode_latents(latents, generators(*seeds))
    # nothing is drawn here, so none is needed
    assert small.decode_latents(latents, [], temperature=0.0).shape == (2, 16, 16, 3)
    full = np.zeros((2, sum(small.layer_sizes())), np.float32)
    assert small.decode_latents(full, []).shape == (2, 16, 16, 3)
