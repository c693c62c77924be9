"""How many experts a block finds missing: expected, and of drawn tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array
from opbyte.sim.expert_blocks import Blocks
from opbyte.sim.residency import LruSet, belady_misses, lru_iteration_misses
from opbyte.workloads.routing import Routing
from opbyte.workloads.token_draws import drawn_steps

if TYPE_CHECKING:
    from opbyte.sim.expert_offload import Experts

#: Experts asked for in a drawn sequence, about, and least and most iterations of one.
_ASKED, _LEAST, _MOST = 20_000, 16, 512
#: Independent draws of a token that are averaged, at least.
_DRAWS = 8


def expected_misses(
    routing: Routing, experts: Experts, distinct: Array, tokens: Array
) -> tuple[Array, Array]:
    """Return experts that each block misses and asks for, each (blocks, points).

    LRU as if iterations of this phase followed one another. Belady's bound has no closed form: the
    share that is missing is played on the sequences that the event fidelity draws with seed 0, and
    is no larger than LRU's.

    Args:
        distinct: Different experts that each block's tokens are expected to choose,
            (blocks, points).
        tokens: Tokens that pass each block, (blocks, points).
    Raises:
        UncoveredError: If a cache serves experts whose tokens do not draw one by one.
        WorkloadError: The same, for Belady.
    """
    whole = experts.cache.prefetch == "all"
    asked = np.full_like(distinct, experts.ffn.experts) if whole else distinct
    if experts.resident:
        return np.zeros_like(asked), asked
    if experts.cache.evict == "none":
        return asked, asked
    if routing.kind not in ("uniform", "zipf"):
        raise UncoveredError(
            f"a cache of experts needs the routing 'uniform' or 'zipf', got '{routing.kind}'. "
            "use one of them, or evict: none"
        )
    shape = np.broadcast_shapes(asked.shape, experts.slots.shape)
    slots, tokens = np.broadcast_to(experts.slots, shape), np.broadcast_to(tokens, shape)
    misses = np.zeros(shape)
    for cell in np.unique(np.stack([slots[0], *tokens]), axis=1).T:
        here = (slots[0] == cell[0]) & (tokens == cell[1:, None]).all(axis=0)
        misses[:, here] = _lru(routing, experts, cell[0], cell[1:])[:, None]
        if experts.cache.evict == "belady":
            share = _belady(routing, experts, int(cell[0]), cell[1:])[:, None]
            asked_here = np.broadcast_to(asked, shape)[:, here]
            misses[:, here] = np.minimum(misses[:, here], share * asked_here)
    return misses, asked


def _lru(routing: Routing, experts: Experts, slots: float, tokens: Array) -> Array:
    """Return the expected misses of each block, (blocks,)."""
    visit = routing.hit_probability(experts.ffn.experts, experts.ffn.top_k)
    if experts.cache.prefetch == "all":
        visit = np.ones_like(visit)
    return lru_iteration_misses(visit, tokens, slots, routing.locality)


def _belady(routing: Routing, experts: Experts, slots: int, tokens: Array) -> Array:
    """Return the share of what each block asks for that is missing, (blocks,)."""
    played = _played(routing, experts, slots, tokens, 0)
    each = [(missed[1:].mean(axis=0), asked[1:].mean(axis=0)) for missed, asked in played]
    missed, asked = np.mean(each, axis=0)
    return np.asarray(missed / asked)


def played_misses(
    routing: Routing, experts: Experts, blocks: Blocks, seed: int
) -> list[tuple[Array, Array]]:
    """Return experts that drawn tokens miss and ask for, each (iterations, blocks), by sequence.

    The cache starts as LRU leaves it after as many iterations that are not counted. The first
    iteration that is counted is the one before those that are timed. Where tokens seldom draw anew
    there are several sequences, each from draws of its own: one alone would hang on its first.

    Raises:
        WorkloadError: If no token draws by itself under the routing.
    """
    return _played(routing, experts, int(experts.slots[0]), blocks.tokens[:, 0], seed)


def _played(
    routing: Routing, experts: Experts, slots: int, tokens: Array, seed: int
) -> list[tuple[Array, Array]]:
    asked = _asked(experts, tokens)
    length = int(np.clip(_ASKED // asked, _LEAST, _MOST))
    fresh = length * (1.0 - (0.0 if experts.cache.prefetch == "all" else routing.locality))
    count = int(np.clip(np.ceil(_DRAWS / max(fresh, 1.0)), 1, _DRAWS))
    rng = np.random.default_rng(seed)
    timed = max(_LEAST, length // count)
    drawn = (_needs(routing, experts, tokens, length + timed, rng) for _ in range(count))
    return [_sequence(experts, slots, needs, length) for needs in drawn]


def _sequence(
    experts: Experts, slots: int, needs: list[list[Any]], before: int
) -> tuple[Array, Array]:
    """Return misses and what is asked for, each (iterations, blocks), of the later iterations."""
    warm, timed = needs[:before], needs[before:]
    asked = np.array([[len(block) for block in step] for step in timed], float)
    if experts.cache.evict == "none":
        return asked, asked
    cache = LruSet(slots)
    for step in warm:
        for block in step:
            cache.need(block)
    flat = [block for step in timed for block in step]
    if experts.cache.evict == "belady":
        missed = belady_misses(flat, slots, tuple(cache.entries))
    else:
        missed = [cache.need(block) for block in flat]
    return np.array(missed, float).reshape(asked.shape), asked


def _sizes(tokens: Array) -> list[int]:
    return [max(1, int(np.rint(n))) for n in tokens]


def _asked(experts: Experts, tokens: Array) -> int:
    """Return how many experts an iteration asks for at most."""
    count, picks = experts.ffn.experts, experts.ffn.top_k
    whole = experts.cache.prefetch == "all"
    return sum(count if whole else min(count, n * picks) for n in _sizes(tokens))


def _needs(
    routing: Routing, experts: Experts, tokens: Array, steps: int, rng: np.random.Generator
) -> list[list[Any]]:
    """Return the experts that each block of each iteration asks for, by names of their own."""
    count, picks, sizes = experts.ffn.experts, experts.ffn.top_k, _sizes(tokens)
    if experts.cache.prefetch == "all":
        chosen: list[Any] = [[np.arange(count)] * steps for _ in sizes]
    else:
        chosen = [drawn_steps(routing, count, picks, n, steps, rng) for n in sizes]
    layers = range(len(sizes))
    return [[(chosen[i][s] + i * count).tolist() for i in layers] for s in range(steps)]
