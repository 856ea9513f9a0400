"""What one image costs in a network's pass: bytes of the tensors alive at the worst moment.

From the architectures' sizes alone, each a little above the measured number (the tests measure them, at
full size on tensors without content). Weights are not counted, nor what a device takes for itself, such as
workspaces of convolutions. Batches are planned with these numbers in :mod:`bidsapp.models.batching`.
"""

from __future__ import annotations

from typing import Any

from bidsapp.models.vdvae_blocks import VDVAEConfig, parse_blocks

_FLOAT32 = 4
#: Most values alive per pixel of the input, in the convolutional networks that judge: 71 in ResNet-50.
_JUDGE_VALUES = 80


def vdvae(config: VDVAEConfig) -> int:
    """Encode or decode one image: a stream at each resolution, and eight more tensors of the finest one.

    In half precision copies of inputs in that type come, and their outputs are half as large.
    """
    sides = {block.resolution for block in parse_blocks(config.dec_blocks)} | {config.image_size}
    return _FLOAT32 * config.width * (sum(side**2 for side in sides) + 8 * config.image_size**2)


def clip_vision(config: Any, itemsize: int = _FLOAT32) -> int:
    """One image through a CLIP vision encoder with ``config``; ``itemsize`` bytes a value."""
    return _transformer(config, (config.image_size // config.patch_size) ** 2 + 1, itemsize)


def clip_text(config: Any, itemsize: int = _FLOAT32) -> int:
    """One caption through a CLIP text encoder."""
    return _transformer(config, config.max_position_embeddings, itemsize)


def _transformer(config: Any, tokens: int, itemsize: int) -> int:
    """Three tensors as wide as the MLP and six of the stream, and attention's scores in float32, twice."""
    values = tokens * (3 * config.intermediate_size + 6 * config.hidden_size)
    return int(values * itemsize + 2 * _FLOAT32 * config.num_attention_heads * tokens**2)


def latent_diffusion(unet: Any, vae: Any, itemsize: int = _FLOAT32, *, fused: bool = True) -> int:
    """One image of stage 2: the larger of the UNet's pass over the guidance pair and AutoKL's decode.

    Parameters
    ----------
    unet, vae : configurations of a diffusers UNet2DConditionModel and AutoencoderKL
    itemsize : int
        Bytes a value.
    fused : bool
        Whether attention never holds a whole matrix of scores, as on the CPU and CUDA.
    """
    side = unet.sample_size * 2 ** (len(vae.block_out_channels) - 1)
    # AutoKL: four maps at the full size, as wide as what the last upsampling hands on
    decode = 4 * max(vae.block_out_channels[:2]) * side**2 * itemsize
    maps = [c * (unet.sample_size // 2**level) ** 2 for level, c in enumerate(unet.block_out_channels)]
    # the skip connections wait, and a transformer's gated MLP takes about 22 times its stream
    values = (unet.layers_per_block + 1) * sum(maps) + 26 * max(maps)
    heads = unet.attention_head_dim  # diffusers' name for the number of heads
    most_heads = max(heads) if isinstance(heads, (list, tuple)) else heads
    scores = 0 if fused else 2 * _FLOAT32 * most_heads * unet.sample_size**4
    return int(max(decode, 2 * (values * itemsize + scores)))


def judging_network(side: int) -> int:
    """One image of side x side pixels through a convolutional network that judges, in float32."""
    return _FLOAT32 * _JUDGE_VALUES * side**2
