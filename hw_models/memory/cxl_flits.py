"""Flits of CXL.mem: how much of a link's rate is payload.

A flit carries slots of 16 bytes. A line of 64 bytes takes four of them; what asks for it, goes
before it or confirms it takes the rest. With r the share of lines that are read, the two
directions carry, in slots for each line,

    down (to the memory)    r * 1        + (1 - r) * (1 + 4)        requests; writes with their data
    up (to the host)        r * (h + 4)  + (1 - r) * a              data with headers; confirmations

where h = 1/2 of a slot is the header of read data and a = 1/2 that of a confirmation: the header
slot of a flit holds two of either (formats H5 and H4), and flits of nothing but data need none. A
slot costs s = flit / slots bytes on the wire, 68 / 4 or 256 / 15, so that lanes of raw rate R carry

    payload = 64 R / (s max(down, up))

Source: CXL specification 3.0, section 4.2.3 (68-byte flits, slot formats) and 4.3 (256-byte flits
of 15 slots beside header, CRC and FEC).
"""

from __future__ import annotations

from dataclasses import dataclass

from opbyte.core.errors import ConfigError

__all__ = ["FLITS", "GENERATIONS", "LANES", "LINE", "Slots", "lane_bytes_per_s", "payload_rate"]

#: Bytes of a line, the unit of every request.
LINE = 64
#: Flit, bytes on the wire -> slots that it carries.
FLITS = {68: 4, 256: 15}
#: PCIe generation -> raw bytes/s of a lane and direction; up to 5 with 128b/130b coding.
GENERATIONS = {4: 16e9 / 8 * 128 / 130, 5: 32e9 / 8 * 128 / 130, 6: 64e9 / 8}
LANES = (1, 2, 4, 8, 16)
_DATA = 4
_REQUEST = 1.0
#: Slots of one header of read data, and of one confirmation of a write.
_HEADER, _CONFIRMATION = 0.5, 0.5


@dataclass(frozen=True)
class Slots:
    """Slots of a line on average, by direction.

    Attributes:
        down: To the memory.
        up: To the host.
        each: Bytes on the wire of one slot.
    """

    down: float
    up: float
    each: float

    @classmethod
    def of(cls, flit: int, reads: float) -> Slots:
        """Return the slots of lines of which a share is read.

        Args:
            flit: Bytes of a flit, 68 or 256.
            reads: Share of lines that are read, 0 to 1.
        Raises:
            ConfigError: For another flit, or a share outside 0 to 1.
        """
        if flit not in FLITS:
            raise ConfigError.one("", "flit", "must be one of 68 B and 256 B", f"{flit:g} B")
        if not 0.0 <= reads <= 1.0:
            raise ConfigError.one("", "reads", "must be a share from 0 to 1", reads)
        writes = 1.0 - reads
        return cls(
            down=reads * _REQUEST + writes * (_REQUEST + _DATA),
            up=reads * (_HEADER + _DATA) + writes * _CONFIRMATION,
            each=flit / FLITS[flit],
        )

    @property
    def efficiency(self) -> float:
        """Payload of both directions over the raw rate of one: above 1 where writes join reads."""
        return LINE / (self.each * max(self.down, self.up))


def lane_bytes_per_s(generation: int, lanes: int) -> float:
    """Return the raw rate of one direction, coding taken off, bytes/s.

    Raises:
        ConfigError: For a generation or a number of lanes that do not exist.
    """
    if generation not in GENERATIONS:
        known = ", ".join(map(str, GENERATIONS))
        raise ConfigError.one("", "generation", f"must be one of {known}", generation)
    if lanes not in LANES:
        raise ConfigError.one("", "lanes", f"must be one of {', '.join(map(str, LANES))}", lanes)
    return GENERATIONS[generation] * lanes


def payload_rate(generation: int, lanes: int, flit: int, reads: float) -> float:
    """Return the payload of a link, reads and writes together, bytes/s: the equation above."""
    return lane_bytes_per_s(generation, lanes) * Slots.of(flit, reads).efficiency
