"""Energy of AiM commands, after the power calculator of CENT's simulator.

    activation and precharge    of each bank that is activated
    read, write                 of each column that leaves or enters a bank or a register
    MAC                         of each command to all banks; an element-wise product takes a
                                quarter of it, its result stays inside the bank group
    bus                         of each column between a channel and the controller
    memory controller           of each request, and of each command on the interface
    controller                  of each instruction
    standby                     of each channel, with rows open or shut

Physical values count standby as static power of the whole machine all the time (shut), and here
what open rows take more. The simulator counts a 32nd of it (cycles of 32 channels, divided by 32
twice), and only while a kernel runs.
"""

from __future__ import annotations

from typing import Any

from opbyte.hw_models.compute.aim.channels import Channels
from opbyte.hw_models.compute.aim.commands import Commands

_READ = ("RD", "RDCP", "RDMAC16", "RDAF16")
_WRITE = ("WR", "WRCP", "WRMAC16")
_BUS = ("RD", "WR", "WRGB", "RDMAC16", "RDAF16", "WRMAC16", "WRA16")
_REQUESTS = (*_BUS, "MAC16", "AF16", "EWMUL16", "RDCP", "WRCP")


def joules_of(c: Channels, done: Commands, devices: float = 1.0) -> dict[str, Any]:
    """Return the energy of commands, by cause.

    Args:
        devices: Devices in which the stage runs them, for standby.
    """

    def of(*names: str) -> Any:
        return sum((done.counts.get(name, 0.0) for name in names), start=0.0)

    def each(name: str) -> Any:
        return c.unit.get(f"command_energy.{name}")

    banks = c.device.all_banks
    active = (done.clocks - done.shut) / c.device.clock
    shut = done.shut / c.device.clock
    if c.artifact:
        standby = (each("open") * active + each("shut") * shut) / c.guests
    else:
        standby = (each("open") - each("shut")) * active * c.span
    return {
        "activate": each("activate") * (of("ACT") + banks * of("ACT16")),
        "read": each("read") * (of(*_READ) + banks * of("AF16")),
        "write": each("write") * (of(*_WRITE) + banks * of("WRA16")),
        "mac": each("mac") * (of("MAC16") + of("EWMUL16") / 4.0),
        "bus": each("bus") * of(*_BUS),
        "memory controller": each("instruction") * of(*_REQUESTS)
        + each("command") * of(*done.counts),
        "controller": each("decode") * done.instructions,
        "standby": standby * devices,
    }
