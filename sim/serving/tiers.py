"""The tier below the KV cache: which memory it is, how far it is, and how much it holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opbyte.core.errors import CapacityError, ConfigError, UncoveredError
from opbyte.hw_models.price import first_access, resource_rate
from opbyte.sim.place import Placer
from opbyte.sim.serving.memory import beside_cache, state_bytes, token_bytes
from opbyte.sim.serving.transfers import LinkPrice
from opbyte.workloads.serve import Serve

#: Placement of the caches of preempted requests.
SWAPPED = "kv.swap"


@dataclass(frozen=True)
class Tier:
    """A memory below the KV cache.

    Attributes:
        memory: Its path.
        blocks: Blocks that it holds for the engine.
        price: What a transfer costs.
    """

    memory: str
    blocks: int
    price: LinkPrice


def tier_below(placer: Placer, work: Serve) -> Tier:
    """Return where blocks of preempted requests go.

    The memory of the mapping's placement `kv.swap`, else the only one that links reach from the
    memory of the KV cache. Each device moves its share of a block at the rate of the slowest port
    or link on the way, after the latency of the first access.

    Raises:
        CapacityError: If the memory does not hold the swap space beside what else is there.
        ConfigError: If there is no such memory, or several.
        UncoveredError: If caches lie in several memories, or sequences have a state of fixed size.
    """
    machine, scheduling = placer.machine, work.scheduler
    home = placer.tiers("kv").in_
    if len(home) != 1:
        raise UncoveredError(
            f"{machine.name}: the mapping spreads KV caches over {', '.join(home)}, and no model "
            "swaps those. place `kv` in one memory"
        )
    fast = next(iter(home))
    memory = _memory(placer, fast)
    path = placer.path(fast, memory)
    each = token_bytes(work, placer.mapping.degrees) * scheduling.block_tokens
    if each <= 0.0 or state_bytes(work, placer.mapping.degrees) > 0.0:
        raise UncoveredError(
            f"{work.model.name} keeps a state of fixed size, and no model swaps that. use recompute"
        )
    blocks = int(scheduling.swap_space.value // each)
    taken = placer.occupancy(beside_cache(placer, work) | {SWAPPED: scheduling.swap_space.value})
    room = float(np.max(placer.capacity(memory)))
    placed = float(np.max(taken.get(memory, 0.0)))
    if SWAPPED not in placer.mapping.place:
        placed += scheduling.swap_space.value * placer.crowd(memory)
    if placed > room or blocks < 1:
        raise CapacityError([SWAPPED], memory, max(placed, each), room)
    rates = [resource_rate(machine, r, placer.instances(r)) for r in path]
    energy = sum(8.0 * machine.values.get(f"{r}.energy", np.nan) for r in path)
    price = LinkPrice(
        name=path[1] if len(path) > 2 else path[-1],
        start_s=float(np.max(first_access(machine, path))),
        block_s=each / min(float(np.min(rate)) for rate in rates),
        block_j=float(np.max(energy)) * each * placer.devices,
    )
    return Tier(memory, blocks, price)


def _memory(placer: Placer, fast: str) -> str:
    """Return the memory that swapped caches go to."""
    machine = placer.machine
    placed = placer.mapping.place.get(SWAPPED)
    if placed is not None:
        if len(placed.in_) != 1 or fast in placed.in_:
            raise ConfigError.one(
                "", f"mapping.place.{SWAPPED}", f"must be one memory other than '{fast}'",
                ", ".join(placed.in_),
            )  # fmt: skip
        return next(iter(placed.in_))
    found = []
    for path, memory in machine.memories.items():
        if path == fast or memory.config.kind == "sram":
            continue
        try:
            placer.path(fast, path)
        except ConfigError:
            continue
        found.append(path)
    if len(found) != 1:
        which = f"has several: {', '.join(found)}" if found else "has none that links reach"
        raise ConfigError.one(
            "", "scheduler.preempt",
            f"swap needs a memory below '{fast}', and {machine.name} {which}", "swap",
            f"place `{SWAPPED}` in one" if found else "use recompute, or add a host's memory",
        )  # fmt: skip
    return found[0]
