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


def expected_misses(routing: Routing, experts: Experts, blocks: Blocks) -> tuple[Array, Array]:
    """Return experts that each block misses and asks for, each (blocks, points).

    LRU as if iterations of this phase followed one another; Belady's bound has no closed form and
    is played on the sequence that the event fidelity draws with seed 0.

    Raises:
        UncoveredError: If a cache serves experts whose tokens do not draw one by one.
        WorkloadError: The same, for Belady.
    """
    whole = experts.cache.prefetch == "all"
    asked = np.full_like(blocks.distinct, experts.ffn.experts) if whole else blocks.distinct
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
    slots, tokens = np.broadcast_to(experts.slots, shape), np.broadcast_to(blocks.tokens, shape)
    misses = np.zeros(shape)
    for cell in np.unique(np.stack([slots[0], *tokens]), axis=1).T:
        here = (slots[0] == cell[0]) & (tokens == cell[1:, None]).all(axis=0)
        misses[:, here] = _of_point(routing, experts, int(cell[0]), cell[1:])[:, None]
    return misses, asked


def _of_point(routing: Routing, experts: Experts, slots: int, tokens: Array) -> Array:
    """Return the expected misses of each block, (blocks,)."""
    if experts.cache.evict == "belady":
        missed, _ = _played(routing, experts, slots, tokens, 0)
        return np.asarray(missed[1:].mean(axis=0))
    visit = routing.hit_probability(experts.ffn.experts, experts.ffn.top_k)
    if experts.cache.prefetch == "all":
        visit = np.ones_like(visit)
    return lru_iteration_misses(visit, tokens, float(slots), routing.locality)


def played_misses(
    routing: Routing, experts: Experts, blocks: Blocks, seed: int
) -> tuple[Array, Array]:
    """Return experts that drawn tokens miss and ask for, each (iterations, blocks).

    The cache starts as LRU leaves it after as many iterations that are not counted. The first
    iteration that is counted is the one before those that are timed.

    Raises:
        WorkloadError: If no token draws by itself under the routing.
    """
    return _played(routing, experts, int(experts.slots[0]), blocks.tokens[:, 0], seed)


def _played(
    routing: Routing, experts: Experts, slots: int, tokens: Array, seed: int
) -> tuple[Array, Array]:
    needs = _needs(routing, experts, tokens, seed)
    half = len(needs) // 2
    warm, timed = needs[:half], needs[half:]
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


def _needs(routing: Routing, experts: Experts, tokens: Array, seed: int) -> list[list[Any]]:
    """Return the experts that each block of each iteration asks for, by names of their own."""
    count, picks = experts.ffn.experts, experts.ffn.top_k
    sizes = [max(1, int(np.rint(n))) for n in tokens]
    whole = experts.cache.prefetch == "all"
    asked = sum(count if whole else min(count, n * picks) for n in sizes)
    steps = 2 * int(np.clip(_ASKED // asked, _LEAST, _MOST))
    if whole:
        chosen: list[Any] = [[np.arange(count)] * steps for _ in sizes]
    else:
        rng = np.random.default_rng(seed)
        chosen = [drawn_steps(routing, count, picks, n, steps, rng) for n in sizes]
    layers = range(len(sizes))
    return [[(chosen[i][s] + i * count).tolist() for i in layers] for s in range(steps)]
