"""Routed experts of a server that lie in a slow memory: what the fast one keeps of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.sim.expert_offload import Experts, crowd_of, experts_of, offloads
from opbyte.sim.place import Placer
from opbyte.sim.serving.memory import beside_cache, cache_degrees, token_bytes
from opbyte.workloads.serve import Serve


def served_experts(placer: Placer, work: Serve, *, divides: bool) -> Experts | None:
    """Return the experts of a server whose mapping caches them; None without such a cache.

    The fast memory keeps those that the largest step needs at once; a cache has what weights,
    activations and the blocks of the KV cache leave.

    Args:
        divides: The scheduler divides steps by layers.
    Raises:
        ConfigError: If both caches would take what is left.
        UncoveredError: If no model covers the experts, or joins them with what is asked for.
    """
    # Whole models and adapters have caches of their own (`many`), by the same word of a mapping.
    several = work.models is not None or (work.adapters is not None and not work.model.moe_layers)
    if several or not offloads(placer.mapping):
        return None
    scheduling, cache = work.scheduler, placer.tiers("expert.weight").cache
    assert cache is not None
    place = f"mapping '{placer.mapping.name}' of {placer.machine.name}"
    refused = {
        "guesses (speculate)": work.speculation,
        "adapters": work.adapters,
        "steps divided by layers (layered)": divides,
        "caches that go to the memory below (preempt: swap)": scheduling.preempt == "swap",
        "contents below the cache (spill)": placer.tiers("kv").spill,
        "the bound that knows the future (evict: belady)": cache.evict == "belady",
    }
    for what, asked in refused.items():
        if asked:
            raise UncoveredError(f"{place}: no model joins {what} with copies of experts. leave "
                                 "one out")  # fmt: skip
    held: dict[str, Any] = beside_cache(placer, work)
    if cache.evict != "none":
        if scheduling.kv_blocks is None:
            raise ConfigError.one(
                "", "scheduler.kv_blocks", f"must be given: {place} caches experts in what the KV "
                "cache leaves", None, "give a number of blocks, or use evict: none",
            )  # fmt: skip
        each = token_bytes(work, cache_degrees(placer.mapping)) * scheduling.block_tokens
        held["kv"] = each * scheduling.kv_blocks
    tokens = [np.full(1, float(scheduling.max_batched_tokens))]
    return experts_of(placer, work.model, held, tokens, ideal=False)


def kept(placer: Placer, experts: Experts | None) -> dict[str, Any]:
    """Return the bytes that copies of experts take in one instance of the fast memory."""
    if experts is None or experts.resident:
        return {}
    reserve = experts.cache.reserve.value if experts.cache.reserve else 0.0
    fast = experts.copy.fast
    return {fast: (experts.slots * experts.copy.bytes + reserve) * crowd_of(placer, fast)}
