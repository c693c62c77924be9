"""Adapters and models that live below the fast memory: where, and what a copy of one costs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from opbyte.core.errors import CapacityError, ConfigError, UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.mapping_file import Placement
from opbyte.core.parallel import Parallel
from opbyte.hw_models.price import resource_rate
from opbyte.hw_models.waiting import first_access
from opbyte.sim.place import Placer
from opbyte.sim.serving.transfers import LinkPrice
from opbyte.workloads.adapter_step import adapter_bytes
from opbyte.workloads.phases import Decode
from opbyte.workloads.residents import Residents
from opbyte.workloads.serve import Serve

#: Name of a mapping whose cache of whole models says where they live, if nothing else does.
_EXPERTS = "coe"


@dataclass(frozen=True)
class Below:
    """A memory that holds all adapters or models, and the way to the fast one.

    Attributes:
        memory: Its path.
        bytes: Of one adapter or model on each device.
        devices: That each get one.
        price: Of a copy; one block is one adapter or model.
        shares: Resource -> its part that a copy under way takes, latencies left out.
    """

    memory: str
    bytes: float
    devices: int
    price: LinkPrice
    shares: dict[str, float] = field(default_factory=dict)


def below(placer: Placer, block: Residents, tensor: str, size: float) -> Below:
    """Return where all adapters or models live.

    The slowest port or link sets the rate of a copy; before the first byte passes the latency of
    the way, and copies follow each other.

    Args:
        tensor: Placement that a mapping may have for them: `adapter.weight` or `model.weight`.
        size: Bytes of one on each device.
    Raises:
        CapacityError: If the memory does not hold all of them.
        ConfigError: If there is no such memory, or several.
        UncoveredError: If weights are spread over several memories.
    """
    machine = placer.machine
    fast = fast_memory(placer)
    home, via = _home(placer, block, tensor, fast)
    if home == fast:
        raise ConfigError.one(
            "", f"mapping.place.{tensor}", "must be another memory than the one that units read",
            home, "name one below it, or leave the block out: all of them are there",
        )  # fmt: skip
    held = block.count * size * placer.crowd(home)
    room = float(np.max(placer.capacity(home)))
    if held > room:
        raise CapacityError([tensor], home, held, room)
    path = placer.path(home, fast, via or _joining(placer, home, fast))
    rates = {r: float(np.min(resource_rate(machine, r, placer.instances(r)))) for r in path}
    slowest = min(rates.values())
    if slowest <= 0.0:
        raise UncoveredError(f"{machine.name}: copies from '{home}' cross something without a rate")
    energy = sum(8.0 * machine.values.get(f"{r}.energy", np.nan) for r in path)
    price = LinkPrice(
        name=path[1] if len(path) > 2 else path[-1],
        start_s=float(np.max(first_access(machine, path))),
        block_s=size / slowest,
        block_j=float(np.max(energy)) * size * placer.devices,
    )
    shares = {r: slowest / rate for r, rate in rates.items()}
    return Below(home, size, placer.devices, price, shares)


def one_bytes(work: Serve, degrees: Parallel) -> float:
    """Return the bytes of one adapter or model on each device, 0 where there are neither."""
    if work.adapters is not None:
        return adapter_bytes(work.model, work.adapters.adapter, degrees)
    if work.models is not None:
        held = Decode(work.model, 1, 1).footprint(degrees)
        return float(np.max(held["weight"]) + np.max(held["expert"]))
    return 0.0


def slots_of(work: Serve, degrees: Parallel) -> int:
    """Return how many adapters or models the fast memory holds at once, 0 where there are none.

    Raises:
        CapacityError: If not one fits in the bytes that are given.
    """
    block = work.adapters or work.models
    if block is None:
        return 0
    if block.slots is not None:
        return min(block.slots, block.count)
    assert block.bytes is not None
    each = one_bytes(work, degrees)
    slots = int(block.bytes.value // each)
    if slots < 1:
        noun = "adapter" if work.adapters is not None else "model"
        raise CapacityError([noun], "the bytes given", each, block.bytes.value)
    return min(slots, block.count)


def fast_memory(placer: Placer) -> str:
    """Return the memory that units read weights from.

    Raises:
        UncoveredError: If there are several.
    """
    places = placer.tiers("weight").in_
    if len(places) != 1:
        raise UncoveredError(
            f"{placer.machine.name}: the mapping spreads weights over {', '.join(places)}, and no "
            "model copies adapters or models to several memories. place `weight` in one"
        )
    return next(iter(places))


def uncached(mapping: SoftwareMapping, fast: str) -> SoftwareMapping:
    """Return the mapping by which steps run: all weights that they read are in the fast memory."""
    place = {
        name: Placement.model_validate({"in": {fast: 1.0}}) if given.cache else given
        for name, given in mapping.place.items()
    }
    return mapping.model_copy(update={"place": place})


def _home(placer: Placer, block: Residents, tensor: str, fast: str) -> tuple[str, str | None]:
    """Return the memory that holds all of them, and the link if it is named."""
    if block.tier is not None:
        return placer.machine.memory(block.tier).path, block.via
    machine, mapping = placer.machine, placer.mapping
    known = [mapping.place.get(tensor), mapping.place.get("expert.weight")]
    if _EXPERTS in machine.config.mappings:
        known.append(machine.mapping(_EXPERTS).place.get("expert.weight"))
    for i, placement in enumerate(known):
        if placement is None or len(placement.in_) != 1 or (i > 0 and placement.cache is None):
            continue
        cache = placement.cache
        if cache is None or cache.tier == fast:
            return next(iter(placement.in_)), block.via or (cache.via if cache else None)
    return _reached(placer, fast, tensor), block.via


def _joining(placer: Placer, home: str, fast: str) -> str | None:
    """Return the link between ports of the two memories, None where there is none."""
    for name, link in placer.machine.config.links.items():
        if {end.rpartition(".")[0] for end in link.ends} == {home, fast}:
            return name
    return None


def _reached(placer: Placer, fast: str, tensor: str) -> str:
    found = []
    for path, memory in placer.machine.memories.items():
        if path == fast or memory.config.kind == "sram":
            continue
        try:
            placer.path(path, fast)
        except ConfigError:
            continue
        found.append(path)
    if len(found) != 1:
        which = f"has several: {', '.join(found)}" if found else "has none that links reach"
        raise ConfigError.one(
            "", tensor.replace(".weight", "s.tier"),
            f"a memory below '{fast}' is due, and {placer.machine.name} {which}", "",
            "name one" if found else "add a host's memory and a link to it",
        )  # fmt: skip
    return found[0]
