"""Latency of a memory's port under load.

An access waits in the queues of a CXL expander (`opbyte.hw_models.memory.cxl`) or of DRAM channels.
Both are computed for the rates of the machine's file; another bandwidth or efficiency of a design
point is another clock: with the rate s times as high, W(x) of the file becomes W(x / s) / s.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.machine_file import Memory
from opbyte.hw_models.memory.cxl import dram_wait_s
from opbyte.hw_models.memory.rates import DEFAULT
from opbyte.hw_models.technology import expander_of, standard_of

__all__ = ["port_rate", "port_wait_s"]


def port_rate(machine: Machine, port: str) -> Any:
    """Return what a port sustains, bytes/s.

    Raises:
        UncoveredError: If it has no bandwidth.
    """
    bandwidth = machine.values.get(f"{port}.bandwidth")
    if bandwidth is None:
        raise UncoveredError(f"{machine.name}: '{port}' has no bandwidth. give it one")
    return bandwidth * machine.values.get(f"{port}.efficiency", 1.0)


def port_wait_s(machine: Machine, port: str, offered: Any) -> Array:
    """Return how long an access waits under a load, seconds, (points,); infinite from the rate on.

    Args:
        port: Short path.
        offered: Bytes/s that pass the port meanwhile.
    Raises:
        UncoveredError: If the memory is neither an expander nor a DRAM whose timing is known.
    """
    tier, _, name = port.rpartition(".")
    memory: Memory = machine.memory(tier).config
    own = memory.ports[name]
    assert own.bandwidth is not None, "checked by whoever asks for the rate"
    written = own.bandwidth.value * (own.efficiency.value if own.efficiency else 1.0)
    rates, loads = np.broadcast_arrays(
        np.atleast_1d(port_rate(machine, port)), np.atleast_1d(offered)
    )
    return np.array(
        [
            _wait(machine.name, port, memory, x * written / rate) * written / rate
            if x < rate
            else np.inf
            for x, rate in zip(loads.tolist(), rates.tolist(), strict=True)
        ]
    )


def _wait(machine: str, port: str, memory: Memory, offered: float) -> float:
    if offered <= 0.0:
        return 0.0
    expander = expander_of(memory)
    if expander is not None:
        reads = expander.device.dram.access.read_pct
        peak = expander.peak_bytes_per_s(reads)
        found = expander.at(min(offered, (1.0 - 1e-9) * peak), reads)
        return found.link_wait_s + found.dram_wait_s
    standard = standard_of(memory)
    if standard is None or memory.channels is None:
        raise UncoveredError(
            f"{machine}: what '{port}' waits under load needs a DRAM `technology` with `channels`, "
            "or a CXL expander. give one, or leave out `offered`"
        )
    load = offered / (memory.channels * standard.peak_bytes_per_s)
    return dram_wait_s(standard, memory.access or DEFAULT, load)
