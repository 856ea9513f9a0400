"""The brain's final reconstructions, scored by each published protocol."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from bidsapp.config import RunConfig
from bidsapp.evidence import ProtocolScores, Value
from bidsapp.metrics.protocols import PublishedProtocol, published_protocols
from bidsapp.metrics.scoring import Scores, score

if TYPE_CHECKING:
    from bidsapp.models.suite import Models

LOG = logging.getLogger("bidsapp")


def score_by_each(
    own: Scores, images: np.ndarray, shown: np.ndarray, models: Models, config: RunConfig
) -> tuple[ProtocolScores, ...]:
    """Score reconstructions by the other published protocols too.

    Parameters
    ----------
    own : Scores
        Of the same images, by the recipe's protocol.
    images, shown : ndarray of uint8, (n, H, W, 3)
        The brain's reconstructions after stage 2, and the stimuli.

    Returns
    -------
    tuple of ProtocolScores
        The recipe's own first; empty if it is not a published one. The others use those of the recipe's
        networks whose weights are installed; none are downloaded for them.
    """
    protocols = published_protocols()
    section = config.recipe.metrics
    if section.protocol not in protocols:
        return ()
    found = [_protocol_scores(own, protocols[section.protocol], {})]
    for name, protocol in protocols.items():
        if name == section.protocol:
            continue
        uses = {n: protocol.networks[n] for n in section.networks if n in protocol.networks}
        networks = models.judges(uses)
        absent = {f"{u.score}_{n}": u.file for n, u in uses.items() if n not in networks}
        for metric, file in absent.items():
            LOG.info(
                "protocol %s: %s is not computed, because %s is missing", name, metric, file or "its CLIP"
            )
        made = score(np.asarray(images), shown, networks, seed=config.seed, protocol=name)
        found.append(_protocol_scores(made, protocol, absent))
    return tuple(found)


def _protocol_scores(
    scores: Scores, protocol: PublishedProtocol, absent: Mapping[str, str]
) -> ProtocolScores:
    values = {k: Value(s.mean, s.low, s.high) for k, s in scores.summary.items()}
    n = max((len(v) for v in scores.per_image.values()), default=0)
    return ProtocolScores(protocol.name, protocol.title, values, dict(absent), n)
