"""What a CXL memory expander delivers: idle latency, peak, and latency under load.

Reads come back after the sum of their steps,

    idle = steps + wire + (tRCD + tCL + tBL)        wire = (1 + 5) slots / raw rate

and lines stream at the slowest of link, controller and DRAM. Under a load of x lines/s an access
also waits in three queues: both directions of the link serve one line after the other in a fixed
time t, and find arrivals at random (M/D/1, Kleinrock, Queueing Systems I, section 5.8: u t / (2 (1
- u)) with u = x t); so do the DRAM channels, which beside wait for banks and refresh as the command
kernel finds at even intervals. Of N lines that a host keeps outstanding Little's law (Operations
Research 9, 1961) leaves

    x = N / latency(x)

and beyond saturation the latency is N / x.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from opbyte.core.errors import ConfigError
from opbyte.core.units import is_number
from opbyte.hw_models.memory.cxl_devices import CxlDevice, load_cxl
from opbyte.hw_models.memory.cxl_flits import LINE, Slots, lane_bytes_per_s, payload_rate
from opbyte.hw_models.memory.rates import Access, share
from opbyte.hw_models.memory.standards import Standard

__all__ = ["Cxl", "CxlLoad", "cxl", "dram_idle_s", "dram_wait_s"]

#: Shares of the peak that a curve looks at.
_LOADS = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.94, 0.97, 0.99)


def dram_idle_s(standard: Standard) -> float:
    """Return the time of one read of a closed row: tRCD + tCL + tBL, seconds."""
    ticks = standard.ticks
    return (ticks.get("nRCDRD", ticks.get("nRCD", 0)) + standard.read_latency) * standard.tick_s


@dataclass(frozen=True)
class CxlLoad:
    """Latency of reads under one load.

    Attributes:
        bytes_per_s: Reads and writes that are served.
        latency_s: Mean of a read, from the device's host port to the host's.
        link_wait_s: Of that, waiting for the link.
        dram_wait_s: Of that, waiting for banks and data bus, refresh included.
        outstanding: Lines under way on average: Little's law.
    """

    bytes_per_s: float
    latency_s: float
    link_wait_s: float
    dram_wait_s: float

    @property
    def outstanding(self) -> float:
        """Return the lines that are under way on average."""
        return self.bytes_per_s * self.latency_s / LINE


class Cxl:
    """One expander with its link."""

    def __init__(self, device: CxlDevice) -> None:
        """Wrap a resolved device."""
        self.device = device

    def __repr__(self) -> str:
        return f"Cxl({self.device.name!r})"

    # -- rates -----------------------------------------------------------------------------

    def link_bytes_per_s(self, read_pct: float = 100) -> float:
        """Return the payload of the link, reads and writes together."""
        link = self.device.link
        return payload_rate(link.generation, link.lanes, link.flit, read_pct / 100)

    def dram_bytes_per_s(self, read_pct: int = 100) -> float:
        """Return what the channels behind sustain, by the command kernel."""
        dram = self.device.dram
        access = dram.access.model_copy(update={"read_pct": read_pct})
        return dram.channels * dram.standard.peak_bytes_per_s * share(dram.standard, access)

    def peak_bytes_per_s(self, read_pct: int = 100) -> float:
        """Return the most that the device delivers: the slowest of link, controller and DRAM."""
        return self.limits(read_pct)[self.limit(read_pct)]

    def limits(self, read_pct: int = 100) -> dict[str, float]:
        """Return the rates of `link`, `dram` and, where given, `controller`, bytes/s."""
        _check_reads(self.device.name, read_pct)
        found = {"link": self.link_bytes_per_s(read_pct), "dram": self.dram_bytes_per_s(read_pct)}
        if self.device.rate is not None:
            found["controller"] = self.device.rate.value
        return found

    def limit(self, read_pct: int = 100) -> str:
        """Return which of them is the slowest."""
        found = self.limits(read_pct)
        return min(found, key=lambda name: found[name])

    # -- latency ---------------------------------------------------------------------------

    @property
    def steps_s(self) -> dict[str, float]:
        """Return the seconds of each step of a read of an idle device."""
        link = self.device.link
        one = self._slot_s
        wire = {f"wire, x{link.lanes}": 6.0 * one}
        return self.device.steps.named() | wire | {"dram": dram_idle_s(self.device.dram.standard)}

    @property
    def idle_latency_s(self) -> float:
        """Return the latency of a read of an idle device, without the host's own way to its port.

        A load from a core takes the way to the port and back beside, see `path` of a unit.
        """
        return sum(self.steps_s.values())

    @property
    def _slot_s(self) -> float:
        link = self.device.link
        raw = lane_bytes_per_s(link.generation, link.lanes)
        return Slots.of(link.flit, 1.0).each / raw

    def at(self, bytes_per_s: float, read_pct: int = 100) -> CxlLoad:
        """Return the latency of reads under a load below the peak.

        Raises:
            ConfigError: For a load that is not above 0 and below the peak, or writes alone.
        """
        peak = self.peak_bytes_per_s(read_pct)
        if read_pct < 1:
            rule = "must be at least 1: among writes alone no read has a latency"
            raise ConfigError.one(self.device.name, "read_pct", rule, read_pct)
        if not is_number(bytes_per_s) or not 0.0 < bytes_per_s < peak:
            rule = f"must lie between 0 and the peak, {peak / 1e9:.4g} GB/s"
            raise ConfigError.one(self.device.name, "bytes_per_s", rule, bytes_per_s)
        slots = Slots.of(self.device.link.flit, read_pct / 100)
        lines = bytes_per_s / LINE
        waits = [_wait(lines, n * self._slot_s) for n in (slots.down, slots.up)]
        dram = self.device.dram
        each = bytes_per_s / dram.channels / dram.standard.peak_bytes_per_s
        access = dram.access.model_copy(update={"read_pct": read_pct})
        banks = dram_wait_s(dram.standard, access, each)
        total = self.idle_latency_s + sum(waits) + banks
        return CxlLoad(bytes_per_s, total, sum(waits), banks)

    def outstanding(self, lines: float, read_pct: int = 100, path_s: float = 0.0) -> CxlLoad:
        """Return rate and latency with a fixed number of lines under way: Little's law.

        Args:
            path_s: What each line takes beside, from who asks to the device's port and back.
        Raises:
            ConfigError: If the lines are not above 0, the path is below, or all are writes.
        """
        if not is_number(lines) or not 0.0 < lines < np.inf:
            raise ConfigError.one(self.device.name, "lines", "must be above 0", lines)
        if not is_number(path_s) or not 0.0 <= path_s < np.inf:
            raise ConfigError.one(self.device.name, "path_s", "must not be below 0", path_s)
        from scipy.optimize import brentq

        peak = self.peak_bytes_per_s(read_pct)
        low, high = 1e-9 * peak, (1.0 - 1e-9) * peak

        def missing(x: float) -> float:
            return x * (self.at(x, read_pct).latency_s + path_s) / LINE - lines

        if missing(high) <= 0.0:
            # All wait for the slowest of link and DRAM.
            found = self.at(high, read_pct)
            more = lines * LINE / peak - path_s - found.latency_s
            link = more if self.limit(read_pct) == "link" else 0.0
            return CxlLoad(
                peak, found.latency_s + more, found.link_wait_s + link,
                found.dram_wait_s + more - link,
            )  # fmt: skip
        if missing(low) >= 0.0:
            rate = lines * LINE / (self.idle_latency_s + path_s)
            return CxlLoad(rate, self.idle_latency_s, 0.0, 0.0)
        return self.at(float(brentq(missing, low, high, xtol=1e-9 * peak)), read_pct)

    def curve(self, read_pct: int = 100) -> list[CxlLoad]:
        """Return latency against load, the lightest first; the last has all `tags` under way."""
        peak = self.peak_bytes_per_s(read_pct)
        most = self.outstanding(self.device.tags, read_pct)
        below = [self.at(u * peak, read_pct) for u in _LOADS if u * peak < most.bytes_per_s]
        return [*below, most]


def cxl(name_or_path: str | os.PathLike[str], **changes: Any) -> Cxl:
    """Return a CXL memory expander.

    Args:
        name_or_path: Catalog name, such as `cxl-asic-x8`, or a file of kind `cxl`.
        changes: Other values than the file's: `link={"lanes": 16}`, `capacity="256 GB"`.

    Raises:
        ConfigError: If there is no such device, with the nearest name, or a change breaks a rule.
    """
    return Cxl(load_cxl(name_or_path, **changes))


def _check_reads(where: str, read_pct: float) -> None:
    if not is_number(read_pct) or not 0 <= read_pct <= 100 or read_pct != int(read_pct):
        rule = "must be a whole number from 0 to 100"
        raise ConfigError.one(where, "read_pct", rule, read_pct)


def _wait(lines: float, service: float) -> float:
    """Return the mean wait of an M/D/1 queue, seconds."""
    busy = lines * service
    return busy * service / (2.0 * (1.0 - busy))


def dram_wait_s(standard: Standard, access: Access, load: float) -> float:
    """Return how much longer a read takes than on an idle channel, seconds.

    Args:
        load: Share of the peak of the data bus.
    """
    loads, waits = _dram_curve(standard, access)
    most = share(standard, access)
    line = LINE / (standard.peak_bytes_per_s * most)
    return float(np.interp(load, loads, waits)) + _wait(min(load / most, 1.0 - 1e-9) / line, line)


@functools.lru_cache(maxsize=64)
def _dram_curve(
    standard: Standard, access: Access, points: int = 14
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return delivered shares of the peak and mean waits, the first one 0."""
    from opbyte.hw_models.memory.dram import Dram
    from opbyte.hw_models.memory.patterns import streams_of, writes_of

    channel, count = Dram(standard), 1 << 15
    addresses = streams_of(standard, access.streams, count)
    writes = writes_of(count, access.read_pct)
    # Whole ticks between arrivals: ever further apart from the data bus's own time on.
    first = max(1, round(standard.burst_bytes / standard.peak_bytes_per_s / standard.tick_s))
    steps = sorted({int(first * x) for x in np.geomspace(1.0, 64.0, points)}, reverse=True)
    found = [channel.stream(addresses, writes, interval=x, **access.choices) for x in steps]
    idle, most = found[0].mean_read_latency_s, share(standard, access)
    loads, waits = [0.0], [0.0]
    for result in found[1:]:
        if loads[-1] < result.efficiency < most:
            loads.append(result.efficiency)
            waits.append(max(result.mean_read_latency_s - idle, waits[-1]))
    return tuple(loads), tuple(waits)
