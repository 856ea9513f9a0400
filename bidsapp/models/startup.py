"""Before a run computes anything, every model of its recipe is loaded, asked its canaries, and freed.

One set of weights is held at a time. Models that passed are recorded in the work folder with everything that
their answers depend on, so that a second run, or the next subject's job, does not ask again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bidsapp import __version__
from bidsapp.errors import AppError
from bidsapp.models import canaries
from bidsapp.models.batching import Workload
from bidsapp.models.canaries import Ask, Canary
from bidsapp.models.clip import CLIP_STD
from bidsapp.models.devices import device_name, empty_cache
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


@dataclass(frozen=True)
class Trial:
    """One set of weights, and what is asked of it."""

    #: for the log
    name: str
    where: Path
    #: hash of the files
    weights: str
    #: takes models, ``where`` and what to ask with; loads the weights, asks, and keeps nothing
    run: Callable[[Models, Path, Ask], None]
    #: what the answers depend on besides weights, device and versions
    settings: Mapping[str, Any] = field(default_factory=dict)


def check_models(models: Models, work_dir: Path) -> str:
    """Check all models of a recipe, except those that passed with the same weights, device and versions.

    Then the hashes of weights that have no record are recorded: all of them work.
    Returns a line for the log: which models passed now, and which before (as the work folder records).

    Raises
    ------
    AppError
        Exit code 65 for a wrong answer, 75 if memory does not suffice; and the errors of loading.
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
    models.record_weights()
    parts = [f"{', '.join(now)} passed now"] if now else []
    parts += [f"{', '.join(before)} passed in an earlier run"] if before else []
    return "canaries: " + "; ".join(parts)


def trials(models: Models) -> list[Trial]:
    """List what there is to ask, in the order in which a run uses it; nothing is loaded yet."""
    section = models.recipe.models
    layers = {"layers": models.recipe.vdvae.layers}
    folder, files = models.root / section.diffusion, models.digest_of(section.diffusion)
    found = [Trial("VDVAE", models.root / section.vdvae, models.digest_of(section.vdvae), _vdvae, layers)]
    shared = _networks_of_generator(models)
    for place, name in enumerate(models.new_generator().canaries()):
        networks = {} if place else shared  # they use the image encoder, which comes first
        settings = {"networks": [repr(item) for item in networks.items()]}
        found.append(Trial(name, folder, files, partial(_generator, name, networks), settings))
    for name in models.recipe.metrics.networks if not models.uses else ():
        if name not in shared and evalnets.available(name):
            path = evalnets.weights_of(name)
            found.append(Trial(name, path, sha256_file(path), _efficientnet_lite0))
    by_file: dict[str, dict[str, Any]] = {}
    for name, use in models.uses.items():
        if name not in shared:
            by_file.setdefault(use.file or weights.CLIP_NETWORK, {})[name] = use
    for file, uses in by_file.items():
        settings = {"uses": [repr(item) for item in uses.items()]}  # sizes and layers are the protocol's
        path = protocol_networks.find_checkpoint(models.evaluation, file)
        digest = models.digest_of(f"{weights.EVALUATION}/{path.name}")
        found.append(Trial(", ".join(uses), path, digest, partial(_protocol, uses), settings))
    return found


def _networks_of_generator(models: Models) -> dict[str, Any]:
    """Find networks that are the generator's own CLIP, by name, with the protocol's use of them."""
    if not models.uses:
        return {name: None for name in models.recipe.metrics.networks if name == "small_clip"}
    own = weights.brings_clip(models.recipe)
    return {n: use for n, use in models.uses.items() if own and use.architecture == protocol_networks.CLIP}


# ------------------------------------------------- what is asked of each


def _vdvae(models: Models, where: Path, ask: Ask) -> None:
    """Latents of the recipe's layers, and all blocks of the decoder: later blocks follow the prior."""
    model = models.load_vdvae()
    layers, config = models.recipe.vdvae.layers, model.config
    fixed, side = canaries.image(config.image_size), config.image_size
    shape = (1, sum(model.layer_sizes(layers)))
    with canaries.given_to(model.encoder.in_conv) as seen:
        latents = ask(f"VDVAE encoder ({layers} layers)", lambda: model.encode_latents(fixed, layers), shape)
    canaries.check_input("the VDVAE", where, seen, [config.scale / 255] * 3)
    raw: list[np.ndarray] = []
    hook = model.decoder.out_net.out_conv.register_forward_hook(
        lambda _module, _given, out: raw.append(out.detach().float().cpu().numpy())
    )
    ask(
        f"VDVAE image ({layers} layers)",
        lambda: model.decode_latents(latents, canaries.generators()),
        (1, side, side, 3),
    )
    hook.remove()
    # before it is clipped and rounded, where a small drift shows
    ask(f"VDVAE decoder ({layers} layers)", lambda: raw[0], (1, 10 * config.n_mixtures, side, side))


def _generator(part: str, networks: Mapping[str, Any], models: Models, where: Path, ask: Ask) -> None:
    """Ask a part of the generator, and the evaluation networks that share its image encoder."""
    generator = models.new_generator()
    generator.canaries()[part](ask)
    for name, use in networks.items():
        features: evalnets.FeatureNetwork = generator.encoder.image_embeddings
        if use is not None:
            features = protocol_networks.feature_network(models.protocol_clip(generator), use, models.device)
        first = canaries.first_layer(generator.encoder.vision)
        canaries.ask_for_features(ask, name, where, (features, first, CLIP_STD))


def _efficientnet_lite0(models: Models, where: Path, ask: Ask) -> None:
    network = evalnets.EfficientNetLite0(models.device)
    first = canaries.first_layer(network.model)
    canaries.ask_for_features(ask, "efficientnet_lite0", where, (network, first, evalnets.LITE0_STD))


def _protocol(uses: Mapping[str, Any], models: Models, where: Path, ask: Ask) -> None:
    """Ask evaluation networks that share a checkpoint, as the protocol uses each."""
    architecture = next(iter(uses.values())).architecture
    if architecture == protocol_networks.CLIP:
        model = models.protocol_clip().to(models.device).eval()
        first = canaries.first_layer(model)
    else:
        model = protocol_networks.load_network(architecture, where, models.device)
        first = model  # Inception changes its input's scale before its first layer
    for name, use in uses.items():
        features = protocol_networks.feature_network(model, use, models.device)
        canaries.ask_for_features(ask, name, where, (features, first, MEAN_STD[use.mean_std][1]))


# ------------------------------------------------- asking, and recording what passed


def _asker(models: Models, trial: Trial, asked: list[str]) -> Ask:
    """Compare with the lock of the weights' folder; weights of packages have none."""
    roots = [models.evaluation.parent] if trial.where.is_relative_to(models.evaluation) else []
    if models.recipe.models.location != "package" and trial.where.is_relative_to(models.root):
        roots.append(models.root)
    lock = Lock.read(roots[0]) if roots else None
    folder = trial.where.relative_to(roots[0]).parts[0] if roots else trial.where.name

    def ask(what: str, answer: Callable[[], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        def one() -> np.ndarray:
            return models.batches.run(Workload(what, cost=0, most=1), 1, lambda _: answer())

        canary = Canary(f"{folder}#{what}", trial.where, shape, trial.weights)
        found = canaries.check(canary, one, models.device, models.dtype, lock)
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
        "device": device_name(models.device),
        "dtype": models.dtype,
        "versions": {"bidsapp-recon": __version__, **versions},
    }


def _record(work_dir: Path, trial: Trial, key: Mapping[str, Any]) -> Path:
    name = re.sub("[^a-z0-9]+", "-", trial.name.lower())
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return work_dir / FOLDER / f"{name}-{digest[:16]}.json"


def _passed(record: Path, key: Mapping[str, Any]) -> bool:
    """Whether a record shows that exactly this passed; a damaged one does not count."""
    try:
        content = read_json(record)
    except AppError:
        return False
    return bool(content.pop("passed", None)) and content == key
