"""Drives as homes of tensors of a training step: what a byte crosses on its way.

Neither units nor copy engines read a drive. A byte passes a buffer in the memory of the part that
the drive hangs on, where it is written once and read once. A drive's port is busy for what is read,
at its rate of reads, and for what is written, at its rate of writes. Commands are those of large
blocks (1 MiB and more), whose cost is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from opbyte.hw_models.machine import Machine
from opbyte.hw_models.price import resource_rate
from opbyte.hw_models.waiting import engine_waits
from opbyte.sim.place import Placer

__all__ = ["Drives", "is_drive", "two_ways"]


@dataclass(frozen=True)
class Drives:
    """Ways to and from drives.

    Attributes:
        ideal: Peak instead of effective rates.
    """

    placer: Placer
    ideal: bool

    def buffer(self, tier: str) -> str | None:
        """Return the port of the memory that holds a drive's buffers, None where there is none."""
        machine = self.placer.machine
        own = machine.memory(tier).part
        for link in machine.config.links.values():
            ends = [self.placer.ways.part_of(end) for end in link.ends]
            if own not in ends:
                continue
            (other, *_) = [end for end in ends if end != own] or [own]
            for path, memory in machine.memories.items():
                if memory.part == other and memory.config.kind not in ("sram", "flash"):
                    return f"{path}.{next(iter(memory.config.ports))}"
        return None

    def to_memory(self, tier: str, memory: str) -> list[tuple[str, float]]:
        """Return what a byte crosses between a drive and a memory, and how often."""
        return self._buffered(tier, self.placer.path(tier, memory))

    def to_unit(self, tier: str, unit: str) -> list[tuple[str, float]]:
        """Return what a byte crosses between a drive and a unit, and how often."""
        out = f"{tier}.{next(iter(self.placer.machine.memory(tier).config.ports))}"
        parts = self.placer.machine.memory(tier).part, self.placer.machine.unit(unit).part
        return self._buffered(tier, [out, *self.placer.links_between(*parts)])

    def _buffered(self, tier: str, way: list[str]) -> list[tuple[str, float]]:
        found = dict.fromkeys(way, 1.0)
        buffer = self.buffer(tier)
        if buffer is not None and buffer not in way:
            found[buffer] = 2.0
        return list(found.items())

    def engine_waits(self, tier: str, unit: str, read: Any) -> dict[str, Any]:
        """Return the least seconds in which engines of links read bytes, for a unit or beside it.

        Args:
            tier: Where the bytes lie; of a drive they are read in its buffers.
        """
        if self.ideal:
            return {}
        buffer = self.buffer(tier) if is_drive(self.placer.machine, tier) else None
        way = self.placer.hops(tier if buffer is None else buffer.rpartition(".")[0], unit)
        return engine_waits(self.placer.machine, way, read, self.placer.instances)

    def rate(self, resource: str, *, written: bool) -> Any:
        """Return the bytes/s of a port or link, for one device."""
        machine, many = self.placer.machine, self.placer.instances(resource)
        rate = np.atleast_1d(resource_rate(machine, resource, many, ideal=self.ideal))
        slower = machine.values.get(f"{resource}.write")
        if not written or slower is None:
            return rate
        return rate * slower / machine.values[f"{resource}.bandwidth"]


def is_drive(machine: Machine, tier: str) -> bool:
    """Return whether a memory is a storage device."""
    memory = machine.memory(tier).config
    ports = memory.ports.values()
    return memory.kind == "flash" or any(
        p.write is not None or p.command is not None for p in ports
    )


def two_ways(machine: Machine, resource: str) -> bool:
    """Return whether a resource is a link that carries both directions at once."""
    link = machine.config.links.get(resource)
    return link is not None and link.duplex == "full"
