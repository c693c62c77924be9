"""Copies of tensors between tiers, layer by layer: what they cross, and for how long."""

from __future__ import annotations

from collections.abc import Mapping as MappingType
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from opbyte.core.dtypes import lookup
from opbyte.core.errors import ConfigError
from opbyte.core.mapping_file import Placement
from opbyte.core.ops import Array
from opbyte.core.placed import BACK, written_name
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.price import resource_rate
from opbyte.hw_models.waiting import first_access
from opbyte.sim.copies import host_io, route_rate
from opbyte.sim.neurons import neuron_bytes
from opbyte.sim.place import Placer
from opbyte.workloads.model import Model


@dataclass(frozen=True)
class Stream:
    """What is copied for each block.

    Attributes:
        name: Its name.
        tensor: Its class, as `place` names it.
        column: Column of `PlacedOps.moved`; empty for the activations between blocks.
        store: Whether it goes back to where it lives.
        once: Whether all batches share one copy.
    """

    name: str
    tensor: str
    column: str
    store: bool = False
    once: bool = False

    def key(self, tier: str) -> str:
        """Return the name of the bytes that are copied from or to one of its homes."""
        return f"{self.name}@{tier}" if self.column else self.name


STREAMS = (
    Stream("weight", "weight", "weight", once=True),
    Stream("neurons", "ffn.weight", "", once=True),
    Stream("kv_load", "kv", "kv_read"),
    Stream("kv_store", "kv", "kv_write", store=True),
    Stream("swap_in", "kv", ""),
    Stream("swap_out", "kv", "", store=True),
    Stream("activation_load", "activation", ""),
    Stream("activation_store", "activation", "", store=True),
)


#: Streams between a memory and the one that it swaps to.
SWAPS = ("swap_in", "swap_out")
#: Ways that need no buffers of their own in the cache.
NO_BUFFERS = ("cache", "blocked", *SWAPS)


@dataclass(frozen=True)
class Use:
    """One stream of all batches through one way.

    Attributes:
        name: Its stream, `cache` for what keeping neurons in place takes, or `blocked` for what
            a thread does before it starts kernels.
        bytes: What is copied, (blocks, 1 or points).
        seconds: Seconds of full use of each resource, each (blocks, points).
        alone: Seconds where nothing else runs, (blocks, points).
        early: It overlaps with other blocks.
        fills: The first block waits for it.
    """

    name: str
    bytes: Array
    seconds: dict[str, Array]
    alone: Array
    early: bool
    fills: bool


@dataclass(frozen=True)
class _Way:
    """From one tier of a class to its cache, or back.

    Attributes:
        name: As in `Use`.
        key: Name of the bytes of which a share takes it.
        share: Share of the bytes that take it.
        rates: Resource -> bytes/s, each (points,).
        latency: Seconds before the first byte, (points,).
        energy: J/byte.
    """

    name: str
    stream: Stream
    key: str
    share: float
    rates: dict[str, Array]
    latency: Any
    energy: Any
    early: bool


@dataclass(frozen=True)
class Streams:
    """The copies of a mapping."""

    machine: Machine
    ways: tuple[_Way, ...]
    caches: dict[str, Placement]
    unpacked: dict[str, tuple[str, float, Array]]
    """Stream -> port, bytes that cross it for each that is stored, and the port's rate."""

    @classmethod
    def of(cls, home: Placer, model: Model, *, ideal: bool) -> Streams:
        """Return the copies of a placer's mapping.

        Args:
            model: The model, for the formats in which its tensors are stored.
            ideal: Peak rates, no latencies, no software.
        """
        ways, caches, unpacked = [], {}, {}
        neuron = neuron_bytes(model, home.mapping.neurons)
        for stream in STREAMS:
            if stream.name == "neurons" and neuron is None:
                continue
            placement = home.tiers(stream.tensor)
            if stream.name in SWAPS:
                if placement.spill:
                    ways += _swap_ways(home, stream, placement, ideal=ideal)
            elif placement.cache:
                caches[stream.tensor] = placement
                for tier, share in placement.in_.items():
                    if tier != placement.cache.tier:
                        found = _ways(home, stream, placement, (tier, share), neuron, ideal=ideal)
                        ways += found
                        ways += _kept(home, found[0]) if stream.name == "neurons" else []
            if placement.format and stream.column and not stream.store:
                tier = placement.cache.tier if placement.cache else next(iter(placement.in_))
                port = f"{tier}.{next(iter(home.machine.memory(tier).config.ports))}"
                stored = model.precision.kv if stream.tensor == "kv" else model.precision.weight
                kernels = placement.format
                wide = lookup(kernels.to).bits_per_element / lookup(stored).bits_per_element
                rate = np.atleast_1d(resource_rate(home.machine, port, 1.0, ideal=ideal))
                unpacked[stream.name] = (port, kernels.passes * wide, rate)
        return cls(home.machine, tuple(ways), caches, unpacked)

    def check_crosses(self, tensor: str, via: tuple[str, ...]) -> None:
        """Refuse a route that no copy of its class takes.

        Raises:
            ConfigError: If none crosses all its links.
        """
        own = [way for way in self.ways if way.stream.tensor == tensor]
        if not any(set(via) <= {written_name(r) for r in way.rates} for way in own):
            raise ConfigError.one(
                "", f"mapping.routes.{tensor}.via", "are links that copies of the class cross",
                ", ".join(via), f"place {tensor} in a memory behind them, or name others",
            )  # fmt: skip

    def uses(self, moved: MappingType[str, Array], batches: int) -> list[Use]:
        """Return the seconds of each copy.

        Args:
            moved: Bytes for one batch by `Stream.key` of each way, each (blocks, points).
        """
        found = []
        for way in self.ways:
            runs = 1 if way.stream.once else batches
            size = runs * way.share * moved[way.key]
            seconds = {r: size / rate for r, rate in way.rates.items()}
            alone = np.max(np.broadcast_arrays(*seconds.values()), axis=0)
            alone = alone + np.where(size > 0, runs * way.latency, 0.0)
            found.append(Use(way.name, size, seconds, alone, way.early, way.stream.once))
        return found

    def unpacking(self, moved: MappingType[str, Array]) -> dict[str, Array]:
        """Return port seconds of kernels that unpack compressed tensors, for one batch.

        One fused kernel reads what is stored and writes it in the wider format, which the operator
        then reads instead: twice the wide bytes in all. Several kernels pass more often. The stored
        bytes are counted as the operator's own.
        """
        total: dict[str, Array] = {}
        for name, (port, crossed, rate) in self.unpacked.items():
            if name in moved:
                add(total, {port: crossed * moved[name] / rate})
        return total

    def joules(self, moved: MappingType[str, Array], batches: int) -> Array:
        """Return the energy of all copies of some bytes for one batch, (points,)."""
        total: Any = np.zeros(1)
        for way in self.ways:
            runs = 1 if way.stream.once else batches
            total = total + runs * way.share * moved[way.key] * way.energy
        return np.atleast_1d(total)

    def buffers(self, largest: MappingType[str, Array]) -> dict[str, Array]:
        """Return the bytes of copies that a cache holds at once.

        Args:
            largest: Bytes by `Stream.key` for the largest block and one batch.
        """
        held: dict[str, Array] = {}
        for way in self.ways:
            cache = self.caches[way.stream.tensor].cache
            if way.stream.store or cache is None or way.name in NO_BUFFERS:
                continue
            size = (2 if way.early else 1) * way.share * largest[way.key]
            add(held, {cache.tier: size})
        return held

    def by_memory(self, used: MappingType[str, Array]) -> dict[str, Array]:
        """Return seconds by link and by memory: the ports of one memory share its cells."""
        total: dict[str, Array] = {}
        for name, seconds in used.items():
            tier = name.rpartition(".")[0]
            add(total, {tier if tier in self.machine.memories else name: seconds})
        return total


def _kept(home: Placer, way: _Way) -> list[_Way]:
    """Return what keeping the window takes: a neuron that leaves gets the last one's place.

    Each fresh neuron is appended where the rows in use end, and one row is moved into the gap of
    one that left (LLM in a flash, section 3.3): two copies of its bytes, by a thread of the host
    where its memory holds them. Their energy is not counted.
    """
    machine, placement = home.machine, home.tiers(way.stream.tensor)
    assert placement.cache is not None, "only what is cached is copied"
    if home.mapping.neurons is None or home.mapping.neurons.kept is None:
        return []
    tier, io = placement.cache.tier, host_io(machine)
    if io and machine.memory(tier).part == io.removesuffix(".io"):
        rates = {f"{io}.memcpy": np.atleast_1d(machine.values[f"{io}.memcpy"]) / 2.0}
    else:
        # Kernels of the device, which read and write its own memory.
        port = f"{tier}.{next(iter(machine.memory(tier).config.ports))}"
        rates = {port: np.atleast_1d(resource_rate(machine, port, home.instances(port))) / 4.0}
    return [replace(way, name="cache", rates=rates, latency=0.0, energy=0.0)]


def _swap_ways(home: Placer, stream: Stream, placement: Placement, *, ideal: bool) -> list[_Way]:
    """Return the way between a memory and the one below; it overlaps as copies to the cache do."""
    tier, below = next(iter(placement.in_)), placement.spill[0]
    path = home.path(below.tier, tier, below.via)
    early = placement.cache is None or placement.cache.prefetch == "all"
    return _along(home, stream, stream.name, path, 1.0, None, early=early, ideal=ideal)


def _ways(
    home: Placer,
    stream: Stream,
    placement: Placement,
    home_share: tuple[str, float],
    neuron: float | None,
    *,
    ideal: bool,
) -> list[_Way]:
    (tier, share), cache = home_share, placement.cache
    assert cache is not None, "only what is cached is copied"
    path = home.path(tier, cache.tier, cache.via)
    early = cache.prefetch == "all"
    key = stream.key(tier)
    return _along(home, stream, key, path, share, neuron, early=early, ideal=ideal)


def _along(
    home: Placer,
    stream: Stream,
    key: str,
    path: list[str],
    share: float,
    neuron: float | None,
    *,
    early: bool,
    ideal: bool,
) -> list[_Way]:
    """Return a way along ports and links with the software on it, and what that blocks."""
    machine = home.machine
    links = path[1:-1]
    rates: dict[str, Array] = {}
    named, blocked = {}, []
    for resource in path:
        rate: Any = resource_rate(machine, resource, home.instances(resource), ideal=ideal)
        if stream.store and resource == path[0]:
            rate = machine.values.get(f"{resource}.write", rate)
        full = resource in links and machine.config.links[resource].duplex == "full"
        named[resource] = resource + BACK if full and stream.store else resource
        rates[named[resource]] = np.atleast_1d(rate)
    latency: Any = 0.0 if ideal else first_access(machine, path)
    for route in home.mapping.routes.get(stream.tensor, ()):
        if route.software is None or not set(route.via) <= set(links):
            continue
        name = f"software.{'+'.join(route.via)}" + (BACK if stream.store else "")
        if not ideal:
            plain = {link: rates[named[link]] for link in links}
            rates[name] = route_rate(machine, path, route, plain, write=stream.store, neuron=neuron)
            if route.software.blocks:
                own = {name: rates.pop(name)}
                blocked.append(_Way("blocked", stream, key, share, own, 0.0, 0.0, early=False))
    energies = [8.0 * machine.values.get(f"{written_name(r)}.energy", np.nan) for r in path]
    way = _Way(stream.name, stream, key, share, rates, latency, sum(energies), early)
    return [way, *blocked]


def add(total: dict[str, Array], more: MappingType[str, Array]) -> None:
    """Add seconds or bytes to those of the same name."""
    for name, value in more.items():
        total[name] = total[name] + value if name in total else value
