"""What is around the kernels of a computational drive: flash behind a port, and a DRAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.memory.flash_rates import page_rate, stream_rate
from opbyte.hw_models.technology import flash_of


@dataclass(frozen=True)
class Drive:
    """What is around the engine.

    Attributes:
        port: Short path of the flash port that the channels are behind.
        stream: Bytes/s of a stream of long reads.
        device: The flash device of its technology, None where that is a name only.
        dram: Bytes/s of the drive's DRAM, infinite without one.
        latency: Seconds until the first page is there.
    """

    port: str
    stream: Any
    device: Any
    dram: Any
    latency: Any

    @classmethod
    def of(cls, unit: UnitView) -> Drive | None:
        """Return the drive of a unit; None where it is at no flash."""
        machine = unit.machine
        flash, dram = None, np.inf
        for port in machine.unit_ports(unit.path):
            kind = machine.memory(port.rpartition(".")[0]).config.kind
            rate = machine.values.get(f"{port}.bandwidth", np.nan) * machine.values.get(
                f"{port}.efficiency", 1.0
            )
            if kind == "flash":
                flash = (port, rate)
            elif kind == "dram":
                dram = rate
        if flash is None:
            return None
        port, stream = flash
        config = machine.memory(port.rpartition(".")[0]).config
        device = flash_of(config, port.rpartition(".")[2])
        return cls(port, stream, device, dram, machine.values.get(f"{port}.latency", 0.0))

    def pages(self, page: float) -> Any:
        """Return the bytes/s of pages at random places."""
        device = self.known("pages at random places")
        return self.stream * min(1.0, page_rate(device, int(page)) / stream_rate(device))

    @property
    def writes(self) -> Any:
        """Return the bytes/s of programs: all planes at work, erases included, and the channels.

        C channels of rate b, n planes: min(C b, n page / (tPROG + tBERS / pages of a block)).
        """
        device = self.known("programs")
        planes = device.channels * device.chips * device.dies * device.planes
        each = device.program.value + device.erase.value / device.pages
        cells = planes * device.page.value / each
        return np.minimum(device.channels * device.channel_rate.value, cells)

    @property
    def channels(self) -> float:
        """Return the channels, one where the technology is a name only."""
        return 1.0 if self.device is None else float(self.device.channels)

    def known(self, what: str) -> Any:
        """Return the flash device.

        Raises:
            UncoveredError: If there is none.
        """
        if self.device is None:
            raise UncoveredError(
                f"'{self.port}': {what} need a `technology` that is a flash device. name one of "
                "`opbyte list flash`"
            )
        return self.device
