"""Before a run computes anything, every model of its recipe is loaded, asked its canaries, and freed.

One set of weights is held at a time. What passed is recorded in the work folder by everything that the
answers depend on, so that a second run, or the next subject's job, does not ask again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from bidsapp import __version__
from bidsapp.errors import AppError
from bidsapp.models import canaries
from bidsapp.models.clip import CLIP_STD, token_shapes
from bidsapp.models.devices import describe, empty_cache
from bidsapp.models.judges import evalnets, protocol_networks
from bidsapp.models.preprocessing import MEAN_STD
from bidsapp.models.weights import registry as weights
from bidsapp.models.weights.lock import Lock
from bidsapp.storage.files import sha256_file
from bidsapp.storage.text import read_json, write_json

if TYPE_CHECKING:
    from bidsapp.models.suite import Models

LOG = logging.getLogger("bidsapp")
#: Sub-folder of the work folder.
FOLDER = "canaries"
_PACKAGES = ("torch", "diffusers", "transformers")
#: what is asked, something that answers, the answer's shape -> the answer
Ask = Callable[[str, Callable[[], np.ndarray], tuple[int, ...]], np.ndarray]


@dataclass(frozen=True)
class Trial:
    """One set of weights, and what is asked of it.

    Attributes
    ----------
    name : str
        For the log.
    where : Path
        The weights.
    weights : str
        Hash of their files.
    run : callable
        Takes models, ``where`` and what to ask with; loads the weights, asks, and keeps nothing.
    settings : mapping
        What the answers depend on beside weights, device and versions.
    """

    name: str
    where: Path
    weights: str
    run: Callable[[Models, Path, Ask], None]
    settings: Mapping[str, Any] = field(default_factory=dict)


def check_models(models: Models, work_dir: Path) -> str:
    """Ask all models of a recipe that have not passed with the same weights, device and versions.

    Parameters
    ----------
    models : Models
    work_dir : Path
        Where it is recorded what passed.

    Returns
    -------
    str
        What was asked now and what had passed before, for the log.

    Raises
    ------
    AppError
        Exit code 65 for an answer that is not as it should be, 75 where memory does not suffice; as the
        models' loading does.
    """
    now, before = [], []
    for trial in trials(models):
        key = _key(trial, models)
        record = _record(work_dir, trial, key)
        if _passed(record, key):
            before.append(trial.name)
            continue
        start = time.monotonic()
        asked: list[str] = []
        trial.run(models, trial.where, _asker(models, trial, asked))
        empty_cache(models.device)
        write_json(record, {**key, "passed": asked})
        LOG.info("canaries: %s passed in %.1f s", trial.name, time.monotonic() - start)
        now.append(trial.name)
    said = [f"{', '.join(now)} passed now"] if now else []
    said += [f"{', '.join(before)} passed in an earlier run"] if before else []
    return "canaries: " + "; ".join(said)


def trials(models: Models) -> list[Trial]:
    """List what there is to ask, in the order in which a run uses it; nothing is loaded yet."""
    section = models.recipe.models
    layers = {"layers": models.recipe.vdvae.layers}
    vdvae, diffusion = models.root / section.vdvae, models.root / section.diffusion
    files = models.digest_of(section.diffusion)
    found = [Trial("VDVAE", vdvae, models.digest_of(section.vdvae), _vdvae, layers)]
    riding = _judges_of_clip(models)
    if models.recipe.diffusion.kind == "versatile-diffusion":
        judges = {"judges": [repr(item) for item in riding.items()]}
        found.append(Trial("CLIP", diffusion, files, partial(_clip, riding), judges))
        found.append(Trial("diffusion", diffusion, files, _diffusion))
    else:
        found.append(Trial("diffusion", diffusion, files, _adapter))
    for name in models.recipe.metrics.networks if not models.uses else ():
        if name not in riding and evalnets.available(name):
            path = evalnets.weights_of(name)
            found.append(Trial(name, path, sha256_file(path), _efficientnet_lite0))
    files_of_judges: dict[str, dict[str, Any]] = {}
    for name, use in models.uses.items():
        if name not in riding:
            files_of_judges.setdefault(use.file or weights.CLIP_NETWORK, {})[name] = use
    for file, uses in files_of_judges.items():
        name = ", ".join(uses)
        settings = {"uses": [repr(item) for item in uses.items()]}  # sizes and layers are the protocol's
        path = protocol_networks.find_checkpoint(models.evaluation, file)
        digest = models.digest_of(f"{weights.EVALUATION}/{path.name}")
        found.append(Trial(name, path, digest, partial(_protocol, uses), settings))
    return found


def _judges_of_clip(models: Models) -> dict[str, Any]:
    """Judging networks that are the generator's own CLIP, by name, with the protocol's use of them."""
    if not models.uses:
        return {name: None for name in models.recipe.metrics.networks if name == "small_clip"}
    own = weights.brings_clip(models.recipe)
    return {n: use for n, use in models.uses.items() if own and use.architecture == protocol_networks.CLIP}


# ------------------------------------------------- what is asked of each


def _vdvae(models: Models, where: Path, ask: Ask) -> None:
    """Latents of the recipe's layers, and all blocks of the decoder: those beyond follow the prior."""
    model = models.load_vdvae()
    layers, config = models.recipe.vdvae.layers, model.config
    picture, side = canaries.image(config.image_size), config.image_size
    shape = (1, sum(model.layer_sizes(layers)))
    with canaries.given_to(model.encoder.in_conv) as seen:
        latents = ask(
            f"VDVAE encoder ({layers} layers)", lambda: model.encode_latents(picture, layers), shape
        )
    canaries.check_input("the VDVAE", where, seen, [config.scale / 255] * 3)
    raw: list[np.ndarray] = []
    hook = model.decoder.out_net.out_conv.register_forward_hook(
        lambda _module, _given, out: raw.append(out.detach().float().cpu().numpy())
    )
    ask(
        f"VDVAE picture ({layers} layers)",
        lambda: model.decode_latents(latents, canaries.generators()),
        (1, side, side, 3),
    )
    hook.remove()
    # before it is clipped and rounded, where a small drift shows
    ask(f"VDVAE decoder ({layers} layers)", lambda: raw[0], (1, 10 * config.n_mixtures, side, side))


def _clip(judges: Mapping[str, Any], models: Models, where: Path, ask: Ask) -> None:
    clip = models.load_clip()
    picture = canaries.image(clip.image_size)
    with canaries.given_to(_first_layer(clip.vision)) as seen:
        ask("image encoder", lambda: clip.vision_tokens(picture), (1, *clip.vision_shape))
    canaries.check_input("the image encoder", where, seen, CLIP_STD)
    ask("text encoder", lambda: clip.text_tokens([canaries.CAPTION]), (1, *clip.text_shape))
    for name, use in judges.items():
        network: evalnets.FeatureNetwork = clip.image_embeddings
        if use is not None:
            model = models.judging_clip(clip.vision)
            network = protocol_networks.feature_network(model, use, models.device)
        _ask_network(ask, name, where, network, _first_layer(clip.vision), CLIP_STD)


def _diffusion(models: Models, where: Path, ask: Ask) -> None:
    model = models.load_diffusion()
    seen, read = (canaries.tokens((1, *shape)) for shape in token_shapes(where))
    nothing, side = (np.zeros_like(seen), np.zeros_like(read)), model.image_size

    def answer() -> np.ndarray:
        start, draws = canaries.image(side), canaries.generators()
        return model.image_to_image(start, seen, read, nothing, draws, canaries.SETTINGS)

    ask("diffusion", answer, (1, side, side, 3))


def _adapter(models: Models, where: Path, ask: Ask) -> None:
    model = models.load_adapter()
    encoder, embedding = model.pipeline.image_encoder, canaries.tokens((1, model.embedding_size))
    _ask_network(ask, "image encoder", where, model.image_embeddings, _first_layer(encoder), CLIP_STD)
    side = model.image_size

    def answer() -> np.ndarray:
        start, draws = canaries.image(side), canaries.generators()
        return model.image_to_image(start, embedding, draws, canaries.SETTINGS)

    ask("diffusion", answer, (1, side, side, 3))


def _efficientnet_lite0(models: Models, where: Path, ask: Ask) -> None:
    network = evalnets.EfficientNetLite0(models.device)
    _ask_network(ask, "efficientnet_lite0", where, network, _first_layer(network.model), evalnets.LITE0_STD)


def _protocol(uses: Mapping[str, Any], models: Models, where: Path, ask: Ask) -> None:
    """Judges that share a checkpoint, as the protocol uses each."""
    architecture = next(iter(uses.values())).architecture
    if architecture == protocol_networks.CLIP:
        model = models.judging_clip().to(models.device).eval()
    else:
        model = protocol_networks.load_network(architecture, where, models.device)
    # Inception changes its input's scale before its first layer
    given = _first_layer(model) if architecture == protocol_networks.CLIP else model
    for name, use in uses.items():
        network = protocol_networks.feature_network(model, use, models.device)
        _ask_network(ask, name, where, network, given, MEAN_STD[use.mean_std][1])


def _ask_network(
    ask: Ask,
    name: str,
    where: Path,
    network: evalnets.FeatureNetwork,
    first: nn.Module,
    std: Sequence[float],
) -> None:
    """Ask for features; ``first`` is the module whose input is the picture, divided by ``std``."""
    answers: list[np.ndarray] = []

    def answer() -> np.ndarray:
        answers.append(network(canaries.image(64)))
        return answers[-1]

    with canaries.given_to(first) as seen:
        ask(name, answer, (1, -1))
    canaries.check_input(name, where, seen, std)


def _first_layer(model: nn.Module) -> nn.Module:
    """Give the first convolution, which is given the picture."""
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d))


# ------------------------------------------------- asking, and recording that it passed


def _asker(models: Models, trial: Trial, asked: list[str]) -> Ask:
    """Compare with the lock of the weights' folder; weights of packages have none."""
    roots = [models.evaluation.parent] if trial.where.is_relative_to(models.evaluation) else []
    if models.recipe.models.location != "package" and trial.where.is_relative_to(models.root):
        roots.append(models.root)
    lock = Lock.read(roots[0]) if roots else None
    folder = trial.where.relative_to(roots[0]).parts[0] if roots else trial.where.name

    def ask(what: str, answer: Callable[[], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        def one() -> np.ndarray:
            return models.batches.run(what, 1, lambda _: answer(), cost=0, most=1)

        name = f"{folder}#{what}"
        found = canaries.check(name, trial.where, one, shape, models.device, lock, models.dtype)
        asked.append(what)
        return found

    return ask


def _key(trial: Trial, models: Models) -> dict[str, Any]:
    """Give what the answers depend on."""
    versions = {name: metadata.version(name) for name in _PACKAGES}
    return {
        "model": trial.name,
        "weights": trial.weights,
        "settings": dict(trial.settings),
        "device": describe(models.device),
        "dtype": models.dtype,
        "versions": {"bidsapp-recon": __version__, **versions},
    }


def _record(work_dir: Path, trial: Trial, key: Mapping[str, Any]) -> Path:
    name = re.sub("[^a-z0-9]+", "-", trial.name.lower())
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return work_dir / FOLDER / f"{name}-{digest[:16]}.json"


def _passed(record: Path, key: Mapping[str, Any]) -> bool:
    """Whether a record says that just this passed; a damaged one says nothing."""
    try:
        content = read_json(record)
    except AppError:
        return False
    return bool(content.pop("passed", None)) and content == key
