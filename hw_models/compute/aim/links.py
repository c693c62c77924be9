"""Broadcast and gather between devices that split matrices by their outputs, in whole flits.

broadcast    latency + ceil(bytes / payload) * flit / rate, with multicast for any number
gather       latency + (p - 1) * ceil(bytes / p / payload) * flit / rate: one device takes in
the parts of all others
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from opbyte.core.errors import UncoveredError
from opbyte.hw_models.compute.pim.products import up
from opbyte.hw_models.machine import Machine


@dataclass(frozen=True)
class Moved:
    """Seconds, and bits that cross the interface of some device."""

    seconds: Any = 0.0
    bits: Any = 0.0

    def __add__(self, other: Moved) -> Moved:
        """Return both, one after the other."""
        return Moved(self.seconds + other.seconds, self.bits + other.bits)

    def times(self, times: Any) -> Moved:
        """Return the same a number of times."""
        return Moved(self.seconds * times, self.bits * times)


@dataclass(frozen=True)
class Wire:
    """The link between the devices of a stage.

    Attributes:
        parts: Devices.
    """

    name: str
    machine: Machine
    parts: int

    @classmethod
    def between(cls, machine: Machine, part: str, parts: int) -> Wire:
        """Return the link between instances of a part.

        Raises:
            UncoveredError: If there is none, or it has no multicast for several.
        """
        for name, link in machine.config.links.items():
            if link.ends == (part, part):
                if parts > 2 and not link.multicast:
                    raise UncoveredError(
                        f"{machine.name}: '{name}' has no multicast, and no model broadcasts over "
                        f"{parts} of '{part}' without. set `multicast`, or `tp: 1`"
                    )
                return cls(name, machine, parts)
        raise UncoveredError(
            f"{machine.name}: no link joins instances of '{part}', over which outputs are split. "
            "add one, or use `tp: 1`"
        )

    def _seconds(self, messages: Any, size: Any) -> Any:
        """Return the seconds of messages of so many bytes each."""
        values = self.machine.values
        flit = values.get(f"{self.name}.flit.size")
        wire = size if flit is None else up(size / values[f"{self.name}.flit.payload"]) * flit
        rate = values[f"{self.name}.bandwidth"] * values.get(f"{self.name}.efficiency", 1.0)
        return values.get(f"{self.name}.latency", 0.0) + messages * wire / rate

    def broadcast(self, size: Any) -> Moved:
        """Return what a vector of so many bytes takes to all devices of the stage."""
        return Moved(self._seconds(1.0, size), 8.0 * size * self.parts)

    def gather(self, size: Any) -> Moved:
        """Return what the parts of a vector of so many bytes take to one device."""
        others = self.parts - 1.0
        return Moved(self._seconds(others, size / self.parts), 8.0 * size * others / self.parts)

    def joules(self, bits: Any) -> Any:
        """Return the energy of bits on the wire, NaN where the link gives none."""
        return bits * self.machine.values.get(f"{self.name}.energy", float("nan"))
