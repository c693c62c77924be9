"""The way of KV caches from engine to engine: a link of the machine, taken in turn."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

import numpy as np

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.registry import nearest
from opbyte.hw_models.price import resource_rate
from opbyte.sim.place import Placer

#: Instance of a link's part, and the direction where each has one of its own.
End = tuple[int, str]


@dataclass
class Wire:
    """A link whose ends each carry one transfer at a time, in the order in which they are asked.

    Attributes:
        name: Of the link.
        rate: Of one end and direction, bytes/s.
        latency: Seconds.
        ends: Instances of the link's part that each engine's devices are in, by engine.
        joules_per_byte: Of the link, and of the memories at both of its ends.
        duplex: Each end sends and receives at the same time.
        shared: All ends are one (a bus).
        busy: Seconds for which ends were busy in a direction, of all transfers.
        joules: Of all transfers.
    """

    name: str
    rate: float
    latency: float
    ends: tuple[tuple[int, ...], ...]
    joules_per_byte: float = np.nan
    duplex: bool = True
    shared: bool = False
    busy: float = 0.0
    joules: float = 0.0
    _free_at: dict[End, float] = field(default_factory=lambda: defaultdict(float))

    def idle(self) -> Wire:
        """Return the same link before anything was sent."""
        return replace(self, busy=0.0, joules=0.0, _free_at=defaultdict(float))

    def send(self, now: float, source: int, target: int, size: float) -> float:
        """Return when the bytes of a transfer that is asked for now have arrived.

        It starts when all ends of both engines are free, and keeps them for bytes / rate; its
        devices send equal shares. The latency is on the way and keeps nobody waiting.

        Args:
            source, target: Engines.
            size: Bytes of all devices.
        """
        taken = self.taken(source)[0] | self.taken(target)[1]
        seconds = size / self.lanes(source, target) / self.rate
        start = max(now, *(self._free_at[end] for end in taken))
        for end in taken:
            self._free_at[end] = start + seconds
        self.busy += len(taken) * seconds
        self.joules += size * self.joules_per_byte
        return start + self.latency + seconds

    def instances(self, readers: int) -> int:
        """Return how many ends, in a direction each, transfers between pools can take.

        Args:
            readers: Engines that send, the first ones.
        """
        sending = (self.taken(i)[0] for i in range(readers))
        receiving = (self.taken(j)[1] for j in range(readers, len(self.ends)))
        return len(set[End]().union(*sending, *receiving))

    def lanes(self, source: int, target: int) -> int:
        """Return in how many shares a transfer between two engines is sent at once."""
        return 1 if self.shared else min(len(self.ends[source]), len(self.ends[target]))

    def taken(self, engine: int) -> tuple[set[End], set[End]]:
        """Return the ends that transfers from an engine take there, and those to it."""
        if self.shared:
            return {(0, "")}, {(0, "")}
        out, into = ("out", "in") if self.duplex else ("", "")
        return {(i, out) for i in self.ends[engine]}, {(i, into) for i in self.ends[engine]}


def wire_of(placer: Placer, engines: int, via: str | None) -> Wire:
    """Return the link that joins the engines; engine i has the i-th `placer.devices` devices.

    Raises:
        ConfigError: If the machine has no such link, or several and none is named.
        UncoveredError: If the link has no rate.
    """
    machine, group = placer.machine, placer.group
    joining = {
        name: link.ends[0]
        for name, link in machine.config.links.items()
        if link.ends[0] == link.ends[1] and f"{group}.".startswith(f"{link.ends[0]}.")
    }
    name = via or _found(placer, engines, joining)
    if name not in joining:
        known = ", ".join(joining) or "none"
        guess = nearest(name, joining)
        raise ConfigError.one(
            "",
            "fleet.via" if via else "fleet.pools",
            f"{machine.name} has no link between instances of '{group}', or of what holds them, "
            "that could carry KV caches from pool to pool",
            via or "",
            f"did you mean '{guess}'?" if guess else f"Known: {known}. Add one, or use replicas.",
        )
    link, values = machine.config.links[name], machine.values
    inside = machine.counts[group] // machine.counts[joining[name]]
    ends = tuple(
        tuple(sorted({d // inside for d in range(i * placer.devices, (i + 1) * placer.devices)}))
        for i in range(engines)
    )
    rate = float(np.max(resource_rate(machine, name, 1.0, ideal=False)))
    if rate <= 0.0:
        raise UncoveredError(f"{machine.name}: link '{name}' has no rate. set {name}.bandwidth")
    ports = [
        (share, f"{tier}.{next(iter(machine.memory(tier).config.ports))}")
        for tier, share in placer.tiers("kv").in_.items()
    ]
    cells = sum(share * values.get(f"{port}.energy", np.nan) for share, port in ports)
    return Wire(
        name,
        rate,
        float(np.max(values.get(f"{name}.latency", 0.0))),
        ends,
        8.0 * float(np.max(values.get(f"{name}.energy", np.nan) + 2.0 * cells)),
        duplex=link.duplex == "full",
        shared=link.topology == "bus",
    )


def _found(placer: Placer, engines: int, joining: dict[str, str]) -> str:
    """Return the link between devices where one node holds all, else the one between nodes.

    Raises:
        ConfigError: If engines share a node, and there are several nodes.
    """
    counts, group = placer.machine.counts, placer.group
    own = next((name for name, part in joining.items() if part == group), "")
    for name, part in joining.items():
        inside = counts[group] // counts[part]
        if part == group or engines * placer.devices <= inside:
            continue
        if placer.devices % inside:
            raise ConfigError.one(
                "",
                "fleet.via",
                f"engines of {placer.devices} devices are inside and outside of a '{part}' of "
                f"{inside}: KV caches could go by several links",
                "",
                f"name one of {', '.join(joining)}",
            )
        return name
    return own
