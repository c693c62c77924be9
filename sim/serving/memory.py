"""How many blocks of KV cache an engine has: what fits beside weights and activations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from opbyte.core.errors import CapacityError, UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.ops import Number
from opbyte.core.parallel import Parallel
from opbyte.sim.place import Placer
from opbyte.sim.serving.blocks import Growth
from opbyte.sim.serving.many.below import one_bytes, slots_of
from opbyte.workloads.footprint import layer_cache_bytes
from opbyte.workloads.mixed import Mixed
from opbyte.workloads.model import Model
from opbyte.workloads.numeric import maximum
from opbyte.workloads.phases import Decode
from opbyte.workloads.serve import Scheduling, Serve
from opbyte.workloads.speculation import together
from opbyte.workloads.speculative import SpeculativeDecode

#: Tokens over which the growth of a cache is measured.
_SPAN = 1


def _models(work: Serve) -> list[Model]:
    """Return the model, and the draft where one guesses."""
    draft = work.speculation.draft if work.speculation else None
    return [work.model] if draft is None else [work.model, draft]


def token_bytes(work: Serve, degrees: Parallel) -> float:
    """Return the bytes of KV cache that a token takes on each device, 0 where there is none."""
    growth = 0.0
    for model in _models(work):
        first, second = (
            Decode(model, 1, 1 + _SPAN * i).footprint(degrees).get("kv", 0.0) for i in (0, 1)
        )
        growth += float(np.max(second)) - float(np.max(first))
    return growth / _SPAN


def cache_degrees(mapping: SoftwareMapping) -> Parallel:
    """Return how the caches of one batch are split over the devices that hold them."""
    degrees = mapping.degrees if mapping.attention is None else mapping.attention_degrees
    return replace(degrees, microbatches=1)


def growth_of(work: Serve, degrees: Parallel) -> tuple[Growth, ...]:
    """Return how the cache of a sequence grows, empty where all layers keep all tokens.

    A layer keeps `kv_budget` tokens at most, and those of its window or chunk where `windows` are
    freed. Its share is that of a token's bytes on a device, in 64ths of a byte.
    """
    freed, budget = work.scheduler.windows == "freed", work.scheduler.kv_budget
    sizes: Counter[int] = Counter()
    for model in _models(work):
        for index in model.order:
            layer = model.layers[index]
            size = float(np.max(layer_cache_bytes(layer, model, degrees, 1.0, 0.0)))
            limits = [getattr(layer.mixer, name, 0) for name in ("window", "chunk")]
            kept = [limit for limit in (*(limits if freed else ()), budget) if limit]
            sizes[min(kept, default=0)] += round(64 * size)
    grown = tuple(Growth(size, limit) for limit, size in sorted(sizes.items()) if size)
    return () if all(limit == 0 for _, limit in grown) else grown


def state_bytes(work: Serve, degrees: Parallel) -> float:
    """Return the bytes of a sequence on each device whatever its length: recurrent layers."""
    return float(np.max(Decode(work.model, 1, 1).footprint(degrees).get("state", 0.0)))


def kv_blocks(
    placer: Placer,
    work: Serve,
    kept: Mapping[str, Any] | None = None,
    padded: float = 1.0,
) -> int:
    """Return the blocks that are given, or as many as the fullest memory has room for.

    Every memory gives the engine `scheduler.memory` of its capacity, all of it for a given number
    of blocks. Of that, weights, the activations of the largest step and the state of all sequences
    (recurrent layers) are taken. A block holds its tokens' keys and values in a draft model too.

    Args:
        kept: What else is taken of memories, bytes in one instance.
        padded: Bytes that caches take in their memory over their own.
    Raises:
        CapacityError: If not one block is left, or there is no room for those that are given.
        UncoveredError: If the model has no cache that grows with a context.
    """
    scheduling, given = work.scheduler, work.scheduler.kv_blocks
    taken = placer.occupancy(beside_cache(placer, work))
    for tier, size in (kept or {}).items():
        taken[tier] = taken.get(tier, 0.0) + size
    growth = token_bytes(work, cache_degrees(placer.mapping))
    if growth <= 0.0 and given is None:
        raise UncoveredError(
            f"{work.model.name} has no cache that grows with its context. give "
            "scheduler.kv_blocks, which then only limits how many requests run"
        )
    each = placer.occupancy({"kv": padded * growth * scheduling.block_tokens})
    blocks, share = math.inf, scheduling.memory if given is None else 1.0
    for tier in {**taken, **each}:
        size, beside = (float(np.max(held.get(tier, 0.0))) for held in (each, taken))
        room, needed = float(np.max(placer.capacity(tier))) * share, beside + (given or 1) * size
        if needed > room:
            raise CapacityError(sorted({*placer.holders.get(tier, [])}), tier, needed, room)
        blocks = min(blocks, (room - beside) // size if size else math.inf)
    return given or int(blocks)


def beside_cache(placer: Placer, work: Serve) -> dict[str, Any]:
    """Return the bytes that one device holds beside caches, by tensor class.

    Weights, the activations of the largest step, and the state of all sequences; of the model that
    guesses too; and the slots of adapters or models.
    """
    scheduling, degrees = work.scheduler, placer.mapping.degrees
    fixed: dict[str, Any] = together(
        *(_fixed(model, scheduling, degrees) for model in _models(work))
    )
    fixed["state"] = scheduling.max_sequences * state_bytes(work, degrees)
    slots = slots_of(work, degrees)
    if work.adapters is not None:
        fixed["adapter.weight"] = slots * one_bytes(work, degrees)
    if work.models is not None:
        fixed |= {name: slots * fixed[name] for name in ("weight", "expert") if name in fixed}
    speculation = work.speculation
    if speculation is not None:
        # Logits of all guesses may take more than the largest step of prompts.
        batch = max(1, scheduling.max_batched_tokens // (1 + speculation.guesses))
        batch = min(batch, scheduling.max_sequences)
        widest = SpeculativeDecode(work.model, batch, 1, speculation).footprint(degrees)
        fixed["activation"] = maximum(fixed["activation"], widest["activation"])
    return fixed


def _fixed(model: Model, scheduling: Scheduling, degrees: Parallel) -> dict[str, Number]:
    """Return what a model holds whoever runs: weights, and activations of the largest step."""
    # A piece is no longer than the model's context.
    longest = model.max_context or scheduling.max_batched_tokens
    whole, rest = divmod(scheduling.max_batched_tokens, longest)
    pieces = ((float(longest), 0.0),) * whole + (((float(rest), 0.0),) if rest else ())
    fixed = dict(Mixed(model, pieces).footprint(degrees))
    fixed.pop("kv", None)
    return fixed
