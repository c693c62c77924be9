"""Experts that tokens choose, drawn token by token: what a cache of experts sees.

Each token takes `picks` different experts by systematic sampling over the experts in random order,
whose inclusion probabilities are exactly those of `Routing.hit_probability` (Madow, Ann. Math.
Stat. 20, 1949), so that draws and expectations are about one distribution.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import WorkloadError
from opbyte.core.ops import Array
from opbyte.workloads.routing import Routing

Ids = npt.NDArray[np.int64]


def drawn_steps(
    routing: Routing,
    experts: int,
    picks: int,
    tokens: int,
    steps: int,
    rng: np.random.Generator,
) -> list[Ids]:
    """Return the distinct experts of one layer in each of `steps` iterations, ascending.

    Args:
        routing: `uniform` or `zipf`; with its locality a token keeps the experts that the token
            in its place took in the iteration before.
        tokens: Tokens of an iteration.
    Raises:
        WorkloadError: If no token draws by itself under this routing.
    """
    if routing.kind not in ("uniform", "zipf"):
        raise WorkloadError(
            f"routing: experts are drawn token by token under the kinds 'uniform' and 'zipf', "
            f"got {routing.kind!r}"
        )
    hit = routing.hit_probability(experts, picks)
    current = _drawn(hit, picks, tokens, rng)
    found = [np.unique(current)]
    for _ in range(steps - 1):
        anew = rng.random(tokens) >= routing.locality
        current[anew] = _drawn(hit, picks, int(anew.sum()), rng)
        found.append(np.unique(current))
    return found


def _drawn(hit: Array, picks: int, tokens: int, rng: np.random.Generator) -> Ids:
    """Return the experts of tokens that draw independently, (tokens, picks)."""
    order = np.argsort(rng.random((tokens, len(hit))), axis=1)
    reached = np.cumsum(hit[order], axis=1)
    marks = rng.random((tokens, 1)) + np.arange(min(picks, len(hit)))
    place = (reached[:, None, :] <= marks[:, :, None]).sum(axis=2)
    return np.take_along_axis(order, np.minimum(place, len(hit) - 1), axis=1)
