"""Ways through a machine: the ports and links between its memories and units."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from opbyte.core.errors import ConfigError
from opbyte.hw_models.machine import Machine

#: Share and resources, by their places, of the way to each tier of a tensor class.
TierWays: TypeAlias = tuple[tuple[float, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Ways:
    """Ways through one machine."""

    machine: Machine

    def hops(self, tier: str, unit: str) -> list[str]:
        """Return the ports and links between a memory and a unit, both ends included."""
        machine = self.machine
        memory = machine.memory(tier)
        ports = machine.unit_ports(unit)
        for port in ports:
            if port.rpartition(".")[0] == tier:
                return [port]
        own = (
            [ports[0]] if machine.memory(ports[0].rpartition(".")[0]).config.kind == "sram" else []
        )
        out = f"{tier}.{next(iter(memory.config.ports))}"
        if memory.part == machine.unit(unit).part:
            return [out, *own]
        return [out, *self.links_between(memory.part, machine.unit(unit).part), *own]

    def beside(self, unit: str) -> set[str]:
        """Return the memories of a unit's ports and of its part."""
        machine, own = self.machine, self.machine.unit(unit).part
        ports = {port.rpartition(".")[0] for port in machine.unit_ports(unit)}
        return ports | {path for path, memory in machine.memories.items() if memory.part == own}

    def counts_bytes_under_way(self, unit: str) -> bool:
        """Return whether bytes under way bound a unit, or an engine of some link."""
        engines = any(link.in_flight is not None for link in self.machine.config.links.values())
        return engines or self.machine.unit(unit).config.misses is not None

    def to_tiers(
        self, tiers: Mapping[str, float], unit: str, resources: tuple[str, ...]
    ) -> TierWays:
        """Return share and resources of the way from each tier to a unit."""
        return tuple(
            (share, tuple(resources.index(r) for r in self.hops(tier, unit)))
            for tier, share in tiers.items()
        )

    def path(self, source: str, target: str, via: str | None = None) -> list[str]:
        """Return the ports and links that a copy from one memory to another crosses.

        Args:
            via: Link that it takes; by default the fewest.
        Raises:
            ConfigError: If no chain of links joins them, or `via` is no link or does not.
        """
        memories = [self.machine.memory(m) for m in (source, target)]
        out, into = (f"{m.path}.{next(iter(m.config.ports))}" for m in memories)
        if via:
            self._check_joins(via, memories[0].path, memories[1].path)
        links = [via] if via else self.links_between(memories[0].part, memories[1].part)
        return [out, *links, into]

    def _check_joins(self, via: str, source: str, target: str) -> None:
        """Refuse a link that does not join two memories: their parts, or ports of theirs."""
        ends = (source, target)
        joining = [
            name
            for name, link in self.machine.config.links.items()
            if link.ends[0] != link.ends[1]
            and any(all(map(self._touches, pair, ends)) for pair in (link.ends, link.ends[::-1]))
        ]
        if via not in joining:
            raise ConfigError.one(
                "",
                "via",
                f"must be a link of {self.machine.name} that joins '{source}' and '{target}'",
                via,
                f"those that do: {', '.join(joining) or 'none'}. name one, or leave `via` out",
            )

    def _touches(self, end: str, memory: str) -> bool:
        """Return whether an end of a link, a part or a port, is at a memory."""
        if end in self.machine.counts:
            return end == self.machine.memory(memory).part
        return end.rpartition(".")[0] == memory

    def links_between(self, start: str, goal: str) -> list[str]:
        """Return the fewest links that lead from one part to another.

        Raises:
            ConfigError: If no chain of links joins them.
        """
        links = self.machine.config.links
        ends = {name: tuple(self.part_of(e) for e in link.ends) for name, link in links.items()}
        queue: deque[tuple[str, list[str]]] = deque([(start, [])])
        seen = {start}
        while queue:
            part, path = queue.popleft()
            if part == goal:
                return list(path)
            for name, (a, b) in ends.items():
                for here, there in ((a, b), (b, a)):
                    if here == part and there not in seen:
                        seen.add(there)
                        queue.append((there, [*path, name]))
        raise ConfigError.one(
            "",
            "machine.links",
            f"no link of {self.machine.name} leads from '{start}' to '{goal}'",
            "",
            "add a link, or place the tensor elsewhere",
        )

    def part_of(self, end: str) -> str:
        """Return the part that an end of a link is, or whose memory has the port that it is."""
        return end if end in self.machine.counts else end.rpartition(".")[0].rpartition(".")[0]
