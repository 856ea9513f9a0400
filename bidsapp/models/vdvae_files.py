"""Load a VDVAE from a folder: this project's layout, or the file that openai/vdvae published."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from bidsapp.errors import AppError, ExitCode
from bidsapp.models.devices import numerics
from bidsapp.models.vdvae import VDVAE, VDVAEConfig
from bidsapp.models.weights.checkpoints import load_strictly

#: Weights by preference: converted, as published.
NAMES = ("model.safetensors", "imagenet64-iter-1600000-model-ema.th")
_IMAGENET64 = Path(__file__).with_name("imagenet64.json")


def load_vdvae(folder: Path, device: str = "cpu", dtype: str = "auto") -> VDVAE:
    """Load a VDVAE, strictly, with the number formats of its device.

    Parameters
    ----------
    folder : Path
        Holds weights under one of :data:`NAMES`, and their ``config.json``; without one they are the
        published weights of ImageNet 64 x 64.
    device : str
    dtype : {"auto", "float32", "float16", "bfloat16"}
        As :func:`~bidsapp.models.devices.numerics` takes it.

    Returns
    -------
    VDVAE
        In evaluation mode, float32 weights.

    Raises
    ------
    AppError
        Exit code 75 if there are no weights; 65 if they are damaged or do not fit the configuration.
    """
    path = next((folder / name for name in NAMES if (folder / name).is_file()), folder / NAMES[-1])
    model = _empty(read_config(folder))
    load_strictly(model, path, prefix="module.")
    formats = numerics(device, dtype)
    model = model.to(device).eval()
    if formats.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.half_type = formats.vdvae_half
    return model


def read_config(folder: Path) -> VDVAEConfig:
    """Read the configuration beside the weights, or the published one where there is none.

    Raises
    ------
    AppError
        Exit code 65 if it is not a VDVAE's.
    """
    beside = folder / "config.json"
    path = beside if beside.is_file() else _IMAGENET64
    try:
        return VDVAEConfig(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise AppError(
            f"{path}: not a VDVAE's configuration ({error}). Fetch it again.", exit_code=ExitCode.BAD_DATA
        ) from error


def _empty(config: VDVAEConfig) -> VDVAE:
    """Make a model whose weights are yet to be loaded; drawing random ones would take seconds."""
    with torch.device("meta"):
        model = VDVAE(config)
    return model.to_empty(device="cpu")
