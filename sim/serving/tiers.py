"""Tiers below the KV cache: which memories they are, how far away, and how much they hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opbyte.core.errors import CapacityError, ConfigError, UncoveredError
from opbyte.hw_models.price import resource_rate
from opbyte.hw_models.waiting import first_access
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
        ConfigError: If there is no such memory, or several, or the space is less than a block.
        UncoveredError: If caches lie in several memories, or sequences have a state of fixed size.
    """
    scheduling = work.scheduler
    fast = _home(placer)
    memory = _memory(placer, fast)
    each = _block_bytes(placer, work)
    blocks = int(scheduling.swap_space.value // each)
    if blocks < 1:
        raise ConfigError.one(
            "", "scheduler.swap_space", f"holds no block of {each / 2**20:.3g} MiB",
            f"{scheduling.swap_space.value / 2**20:.3g} MiB", "raise swap_space",
        )  # fmt: skip
    taken = placer.occupancy(beside_cache(placer, work) | {SWAPPED: scheduling.swap_space.value})
    room = float(np.max(placer.capacity(memory)))
    placed = float(np.max(taken.get(memory, 0.0)))
    if SWAPPED not in placer.mapping.place:
        placed += scheduling.swap_space.value * placer.crowd(memory)
    if placed > room:
        raise CapacityError([SWAPPED], memory, placed, room)
    return Tier(memory, blocks, _hop(placer, placer.path(fast, memory), each))


def cache_tiers(placer: Placer, work: Serve) -> tuple[Tier, ...]:
    """Return where contents of the KV cache are kept below it, the nearest memory first.

    The memories of `spill` of the mapping's placement of `kv`. Each is joined to the one above it,
    the first to the memory of the cache.

    Raises:
        CapacityError: If a memory does not hold its capacity, or not one block.
        ConfigError: If contents are not remembered, or no link leads from memory to memory.
        UncoveredError: If caches lie in several memories, sequences have a state of fixed size,
            preempted requests are swapped, or two ways share a link.
    """
    spills = placer.tiers("kv").spill
    if not spills:
        return ()
    _check_spill(work)
    upper, each = _home(placer), _block_bytes(placer, work)
    taken = placer.occupancy(beside_cache(placer, work))
    tiers: list[Tier] = []
    crossed: set[str] = set()
    for spill in spills:
        crowd = placer.crowd(spill.tier)
        room = float(np.max(placer.capacity(spill.tier)))
        room -= float(np.max(taken.get(spill.tier, 0.0)))
        size = room if spill.capacity is None else spill.capacity.value
        if size > room or size < each * crowd:
            raise CapacityError(["kv.spill"], spill.tier, max(size, each * crowd), room)
        path = placer.path(upper, spill.tier, spill.via)
        shared = crossed & set(path[1:-1])
        if shared:
            raise UncoveredError(
                f"{placer.machine.name}: the ways to two tiers share '{min(shared)}', and no model "
                "lets them. join each memory of `spill` to the one above it"
            )
        crossed |= set(path[1:-1])
        price = _hop(placer, path, each)
        tiers.append(Tier(spill.tier, int(size // (each * crowd)), price))
        upper = spill.tier
    return tuple(tiers)


def _check_spill(work: Serve) -> None:
    """Refuse what keeps no contents, or keeps them in another way too."""
    if not work.scheduler.prefix_cache:
        raise ConfigError.one(
            "", "scheduler.prefix_cache", "contents that nobody looks for can not spill", "false",
            "set it to true, or leave out `spill`",
        )  # fmt: skip
    if work.scheduler.preempt == "swap":
        raise UncoveredError(
            "preempt: swap beside `spill`: what a preempted request had computed is below already, "
            "and comes back from there. use recompute"
        )
    if work.speculation is not None:
        raise UncoveredError("no model spills the caches of two models. leave out speculate")


def _home(placer: Placer) -> str:
    """Return the memory of the KV cache."""
    home = placer.tiers("kv").in_
    if len(home) != 1:
        raise UncoveredError(
            f"{placer.machine.name}: the mapping spreads KV caches over {', '.join(home)}, and no "
            "model moves those. place `kv` in one memory"
        )
    return next(iter(home))


def _block_bytes(placer: Placer, work: Serve) -> float:
    """Return the bytes of a block on each device."""
    degrees = placer.mapping.degrees
    each = token_bytes(work, degrees) * work.scheduler.block_tokens
    if each <= 0.0 or state_bytes(work, degrees) > 0.0:
        raise UncoveredError(
            f"{work.model.name} keeps a state of fixed size, and no model moves that. use "
            "preempt: recompute, and no `spill`"
        )
    return each


def _hop(placer: Placer, path: list[str], each: float) -> LinkPrice:
    """Return what a copy of blocks of so many bytes on each device costs along a path."""
    machine = placer.machine
    rates = [resource_rate(machine, r, placer.instances(r)) for r in path]
    slowest = min(float(np.min(rate)) for rate in rates)
    last = path[-1]
    written = machine.values.get(f"{last}.write", np.inf) * placer.instances(last)
    energy = sum(8.0 * machine.values.get(f"{r}.energy", np.nan) for r in path)
    return LinkPrice(
        name=path[1] if len(path) > 2 else path[-1],
        start_s=float(np.max(first_access(machine, path))),
        block_s=each / slowest,
        block_j=float(np.max(energy)) * each * placer.devices,
        block_bytes=each * placer.devices,
        down_s=each / min(slowest, float(np.min(written))),
    )


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
