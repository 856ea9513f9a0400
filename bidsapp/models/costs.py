"""What models need, from their configurations alone: bytes per image, sizes of targets and images.

The formulas are a little above what the tests measure, at full size on tensors without content. They count
the tensors alive at the worst moment of a pass, neither weights nor what a device takes for itself, such as
workspaces of convolutions. Batches are planned with them in :mod:`bidsapp.models.batching`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from bidsapp.errors import AppError
from bidsapp.models.generators import generator_class
from bidsapp.models.vdvae_blocks import VDVAEConfig, latent_sizes, parse_blocks, read_config
from bidsapp.recipes import Recipe

_FLOAT32 = 4
#: Most values alive per pixel of the input in convolutional evaluation networks: 71 in ResNet-50.
_EVALUATION_VALUES = 80
T = TypeVar("T")


def vdvae(config: VDVAEConfig) -> int:
    """Encode or decode one image: a stream at each resolution, and eight more tensors of the finest one.

    In half precision there are copies of inputs in that type too, and outputs are half as large.
    """
    sides = {block.resolution for block in parse_blocks(config.dec_blocks)} | {config.image_size}
    return _FLOAT32 * config.width * (sum(side**2 for side in sides) + 8 * config.image_size**2)


def clip_vision(config: Any, itemsize: int = _FLOAT32) -> int:
    """One image through a CLIP vision encoder with ``config``; ``itemsize`` bytes per value."""
    return _transformer(config, (config.image_size // config.patch_size) ** 2 + 1, itemsize)


def clip_text(config: Any, itemsize: int = _FLOAT32) -> int:
    """One caption through a CLIP text encoder."""
    return _transformer(config, config.max_position_embeddings, itemsize)


def _transformer(config: Any, tokens: int, itemsize: int) -> int:
    """Three tensors as wide as the MLP and six of the stream, and attention's scores in float32, twice."""
    values = tokens * (3 * config.intermediate_size + 6 * config.hidden_size)
    return int(values * itemsize + 2 * _FLOAT32 * config.num_attention_heads * tokens**2)


def latent_diffusion(unet: Any, vae: Any, itemsize: int = _FLOAT32, *, fused: bool = True) -> int:
    """One image of stage 2: the larger of the UNet's pass over the guidance pair and AutoKL's decoder.

    Parameters
    ----------
    unet, vae : configurations of a diffusers UNet2DConditionModel and AutoencoderKL
    itemsize : int
        Bytes per value.
    fused : bool
        Whether attention never holds a whole matrix of scores, as on the CPU and CUDA.
    """
    side = unet.sample_size * 2 ** (len(vae.block_out_channels) - 1)
    # AutoKL: four maps at the full size, as wide as the output of the last upsampling
    decode = 4 * max(vae.block_out_channels[:2]) * side**2 * itemsize
    maps = [c * (unet.sample_size // 2**level) ** 2 for level, c in enumerate(unet.block_out_channels)]
    # the skip connections wait, and a transformer's gated MLP takes about 22 times its stream
    values = (unet.layers_per_block + 1) * sum(maps) + 26 * max(maps)
    heads = unet.attention_head_dim  # diffusers' name for the number of heads
    most_heads = max(heads) if isinstance(heads, (list, tuple)) else heads
    scores = 0 if fused else 2 * _FLOAT32 * most_heads * unet.sample_size**4
    return int(max(decode, 2 * (values * itemsize + scores)))


def evaluation_network(side: int) -> int:
    """One image of side x side pixels through a convolutional evaluation network, in float32."""
    return _FLOAT32 * _EVALUATION_VALUES * side**2


# ------------------------------------------------- of a recipe, before anything is loaded


def target_sizes(recipe: Recipe, root: Path) -> dict[str, int]:
    """Find the number of values of each target.

    Parameters
    ----------
    root : Path
        The folder that holds the recipe's model folders.

    Returns
    -------
    dict of str to int
        Targets whose model configuration can't be read are left out: :mod:`bidsapp.models.weights.registry`
        reports what is missing.
    """
    generator, folder = generator_class(recipe.diffusion.kind), root / recipe.models.diffusion
    unknown: dict[str, tuple[int, int]] = {}
    shapes = _known(lambda: generator.target_shapes(folder), unknown)
    sizes = {name: tokens * values for name, (tokens, values) in shapes.items()}
    latents = _known(lambda: sum(latent_sizes(_vdvae(recipe, root))[: recipe.vdvae.layers]), 0)
    return {"vdvae": latents, **sizes} if latents else sizes


def image_sides(recipe: Recipe, root: Path) -> tuple[int, int]:
    """Find the sides in pixels of the images of stage 1 and stage 2, 0 where not known."""
    generator, folder = generator_class(recipe.diffusion.kind), root / recipe.models.diffusion
    first = _known(lambda: _vdvae(recipe, root).image_size, 0)
    return first, _known(lambda: generator.image_side(folder), 0)


def image_cost(recipe: Recipe, root: Path, itemsize: int) -> int:
    """Bytes of one image of stage 2, with ``itemsize`` bytes per value; 0 where not known."""
    generator = generator_class(recipe.diffusion.kind)
    return _known(lambda: generator.image_cost(root / recipe.models.diffusion, itemsize), 0)


def _vdvae(recipe: Recipe, root: Path) -> VDVAEConfig:
    folder = root / recipe.models.vdvae
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    return read_config(folder)


def _known(read: Callable[[], T], otherwise: T) -> T:
    """Read something from configuration files that may be missing or damaged."""
    try:
        return read()
    except (AppError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return otherwise
