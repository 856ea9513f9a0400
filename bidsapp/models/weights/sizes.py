"""Sizes of a recipe's targets and images, read from the models' configuration files alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bidsapp.config import Recipe
from bidsapp.models import costs

#: Of the published VDVAE, whose file comes without a configuration.
_IMAGENET64 = Path(__file__).parents[1] / "imagenet64.json"


def target_sizes(recipe: Recipe, root: Path) -> dict[str, int]:
    """Find the number of values of each target whose model's configuration is there.

    Parameters
    ----------
    recipe : Recipe
    root : Path
        The folder that holds the recipe's model folders.

    Returns
    -------
    dict of str to int
        Targets whose configuration can't be read are left out: what is missing is said elsewhere.
    """
    readers = {"vdvae": _vdvae, "clip_vision": _vision, "clip_text": _text, "clip_image": _embedding}
    sizes = {}
    for name in recipe.target_names:
        try:
            sizes[name] = readers[name](recipe, root)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sizes


def image_sides(recipe: Recipe, root: Path) -> tuple[int, int]:
    """Find the sides in pixels of the images that stage 1 and stage 2 make, 0 where not known.

    Parameters
    ----------
    recipe : Recipe
    root : Path
        As for :func:`target_sizes`.
    """
    sides = []
    for reader in (_vdvae_side, _diffusion_side):
        try:
            sides.append(reader(recipe, root))
        except (OSError, ValueError, KeyError, TypeError):
            sides.append(0)
    return sides[0], sides[1]


def image_cost(recipe: Recipe, root: Path, itemsize: int) -> int:
    """Bytes that one image of stage 2 takes while it is made; 0 where not known.

    Parameters
    ----------
    recipe : Recipe
    root : Path
        As for :func:`target_sizes`.
    itemsize : int
        Bytes of a value: 4, or 2 in half precision.
    """
    folder = root / recipe.models.diffusion
    try:
        unet, vae = _read(_unet(folder) / "config.json"), _read(folder / "vae" / "config.json")
        return costs.latent_diffusion(SimpleNamespace(**unet), SimpleNamespace(**vae), itemsize)
    except (OSError, ValueError, TypeError, AttributeError):
        return 0


def _unet(folder: Path) -> Path:
    return folder / ("image_unet" if (folder / "image_unet").is_dir() else "unet")


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _vdvae_config(recipe: Recipe, root: Path) -> dict[str, Any]:
    """Read what :func:`bidsapp.models.vdvae_files.read_config` reads, without torch."""
    folder = root / recipe.models.vdvae
    own = folder / "config.json"
    return _read(own if own.is_file() or not folder.is_dir() else _IMAGENET64)


def _vdvae(recipe: Recipe, root: Path) -> int:
    config = _vdvae_config(recipe, root)
    sides: list[int] = []
    for item in config["dec_blocks"].split(","):
        side, _, repeats = item.strip().partition("x")
        sides += [int(side.partition("m")[0])] * (int(repeats) if repeats else 1)
    return int(sum(config["zdim"] * side**2 for side in sides[: recipe.vdvae.layers]))


def _vdvae_side(recipe: Recipe, root: Path) -> int:
    return int(_vdvae_config(recipe, root)["image_size"])


def _diffusion_side(recipe: Recipe, root: Path) -> int:
    folder = root / recipe.models.diffusion
    doublings = len(_read(folder / "vae" / "config.json")["block_out_channels"]) - 1
    return int(_read(_unet(folder) / "config.json")["sample_size"] * 2**doublings)


def _vision(recipe: Recipe, root: Path) -> int:
    config = _read(root / recipe.models.diffusion / "image_encoder" / "config.json")
    return int(((config["image_size"] // config["patch_size"]) ** 2 + 1) * config["projection_dim"])


def _text(recipe: Recipe, root: Path) -> int:
    config = _read(root / recipe.models.diffusion / "text_encoder" / "config.json")
    return int(config["max_position_embeddings"] * config["projection_dim"])


def _embedding(recipe: Recipe, root: Path) -> int:
    # of IP-Adapter's repository, beside Stable Diffusion's folders
    folder = root / recipe.models.diffusion / "models" / "image_encoder"
    return int(_read(folder / "config.json")["projection_dim"])
