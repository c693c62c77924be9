"""Writes beyond those of the host: garbage collection, and how long blocks stand it.

A block is erased as a whole, so pages that are still valid in it are moved first. The ratio of all
programs to the host's is the write amplification. It is found on one plane, as logical pages stay
in the plane that their number names; blocks are chosen and pages moved without a clock.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import CapacityError, ConfigError, UncoveredError
from opbyte.core.registry import lookup_error
from opbyte.hw_models.memory.flash_devices import FlashDevice

__all__ = ["PATTERNS", "POLICIES", "Wear", "Worn", "filled", "worn"]

Ints = npt.NDArray[np.int64]
PATTERNS = ("seq", "random", "kv")
POLICIES = ("greedy", "fifo", "sampled")
DAY = 86_400.0
YEAR = 365.25 * DAY
#: Pages of a block that a plane keeps free for collecting, in blocks.
SPARE = 2
#: Pages of a device whose blocks are followed; each takes 8 bytes.
MOST_PAGES = 1 << 26


@dataclass(frozen=True)
class Worn:
    """What writes to a plane led to, once the plane was full.

    Attributes:
        host: Pages that the host wrote.
        moved: Valid pages that were copied before their block was erased.
        erases: Blocks that were erased.
    """

    device: FlashDevice
    host: int
    moved: int
    erases: int

    @property
    def write_amplification(self) -> float:
        """Programs over those that the host asked for."""
        return (self.host + self.moved) / self.host

    @property
    def sustained_bytes_per_s(self) -> float:
        """Most bytes/s that the host can write for ever.

        Arrays, channels or link, whichever is slowest; a bound, as nothing waits.
        """
        d, wa = self.device, self.write_amplification
        page = float(d.page_bytes)
        per_page = (
            wa * d.program.value
            + (wa - 1.0) * d.read.value
            + self.erases / self.host * d.erase.value
        )
        arrays = d.channels * d.targets_per_channel * d.most_planes * page / per_page
        buses = d.channels * d.channel_rate.value / (2.0 * wa - 1.0)
        link = d.pcie.rate.value * d.pcie.payload / (d.pcie.payload + d.pcie.header)
        return min(arrays, buses, link)


@dataclass(frozen=True)
class Wear:
    """How long a device stands writes.

    Attributes:
        bytes_per_day: What the host writes.
        rated_bytes: What the host may write until all blocks have had their cycles, wear being
            even.
    """

    bytes_per_day: float
    write_amplification: float
    rated_bytes: float
    capacity_bytes: float

    @classmethod
    def of(cls, device: FlashDevice, bytes_per_day: float, write_amplification: float) -> Wear:
        """Return the wear of a device.

        Raises:
            UncoveredError: If no source says how many cycles its blocks stand.
            ConfigError: If a number breaks a rule.
        """
        if device.cycles is None:
            raise UncoveredError(
                f"the endurance of {device.name} is not covered: no source gives its cycles. "
                "Give `cycles`."
            )
        if not 0 < bytes_per_day < float("inf"):
            rule = "must be bytes above 0"
            raise ConfigError.one(device.name, "bytes_per_day", rule, bytes_per_day)
        if not 1 <= write_amplification < float("inf"):
            rule = "must be 1 or more"
            raise ConfigError.one(device.name, "write_amplification", rule, write_amplification)
        all_bytes = float(device.physical_pages) * device.page_bytes * device.cycles
        rated = all_bytes / write_amplification
        return cls(bytes_per_day, write_amplification, rated, float(device.capacity_bytes))

    @property
    def years(self) -> float:
        """Time until the rated bytes have been written."""
        return self.rated_bytes / self.bytes_per_day * DAY / YEAR

    @property
    def drive_writes_per_day(self) -> float:
        """The device's capacity that the host writes in a day."""
        return self.bytes_per_day / self.capacity_bytes

    @property
    def share_of_five_years(self) -> float:
        """Rated bytes that five years use up; above 1 the device does not last them."""
        return 5.0 * YEAR / DAY * self.bytes_per_day / self.rated_bytes


def worn(
    device: FlashDevice, pattern: str = "kv", *, fill: float = 0.9, rounds: float = 4.0,
    policy: str = "greedy", sequence: int = 64, seed: int = 1,
) -> Worn:  # fmt: skip
    """Return what a pattern of page writes leads to.

    Args:
        pattern: `seq` writes all pages in order, again and again; `random` overwrites any of
            them; `kv` appends a page to each of many sequences in turn, and gives all pages of a
            sequence back at its end.
        fill: Share of the logical pages that hold data (`kv`: at most, when all are longest).
        rounds: Logical pages' worth of writes that count; as many come before them.
        policy: Which block is erased: `greedy`, that with fewest valid pages; `fifo`, that which
            was written first; `sampled`, the best of log2(blocks) that are drawn.
        sequence: Mean pages of a plane that a sequence has at its end (`kv`).
        seed: Of what is drawn.

    Raises:
        ConfigError: For an unknown pattern or policy, or a number that breaks a rule.
        CapacityError: If the device has too few spare blocks to move anything.
    """
    if pattern not in PATTERNS:
        raise lookup_error("pattern of writes", pattern, PATTERNS)
    if policy not in POLICIES:
        raise lookup_error("policy", policy, POLICIES)
    for name, value, most in (("fill", fill, 1.0), ("rounds", rounds, 1000.0)):
        if not 0 < value <= most:
            raise ConfigError.one(device.name, name, f"must lie above 0, at most {most:g}", value)
    if sequence < 1 or sequence != int(sequence):
        raise ConfigError.one(device.name, "sequence", "must be a whole number of pages", sequence)
    plane = device.blocks * device.pages
    logical = int(plane * (1.0 - device.overprovisioning.value) * fill)
    _check_room(device, logical, SPARE)
    from opbyte.hw_models.memory.nand_kernel.collect import collect

    rng = np.random.default_rng(seed)
    count = int(rounds * logical)
    ops = _writes(pattern, rng, logical, 2 * count, sequence)
    host, moved, erases = collect(
        device.blocks, device.pages, logical, ops, POLICIES.index(policy), SPARE,
        int(np.count_nonzero(ops >= 0)) // 2, seed,
    )  # fmt: skip
    return Worn(device, host, moved, erases)


def filled(device: FlashDevice, fill: float, rounds: float, seed: int) -> npt.NDArray[np.int32]:
    """Return the blocks of all planes after writes, for a stream that follows.

    The first pages of each plane are written in order, then overwritten at random.

    Args:
        fill: Share of the logical pages that hold data, from 0 on.
        rounds: Overwrites, in such pages.
        seed: Of what is drawn.

    Raises:
        ConfigError: If a number breaks a rule.
        CapacityError: If the device is too large, or has too few spare blocks.
    """
    for name, value, most in (("fill", fill, 1.0), ("rounds", rounds, 1000.0)):
        if not 0 <= value <= most:
            raise ConfigError.one(device.name, name, f"must lie within 0 to {most:g}", value)
    if device.physical_pages > MOST_PAGES:
        size = device.page_bytes
        what = "a device whose blocks are followed (fewer `blocks` or `pages` behave alike)"
        raise CapacityError(what, "memory", device.physical_pages * size, MOST_PAGES * size)
    from opbyte.hw_models.memory.nand_kernel.blocks import memory
    from opbyte.hw_models.memory.nand_kernel.collect import fill as write

    planes, start = device.total_planes, device.free_blocks(device.collection.start)
    logical = -(-device.logical_pages // planes)
    _check_room(device, logical, start)
    policy = POLICIES.index(device.collection.policy)
    blocks = memory(planes, device.blocks, device.pages, logical, policy, seed)
    written = int(fill * (device.logical_pages // planes))
    write(blocks, planes, written, int(rounds * written), start)
    return blocks


def _check_room(device: FlashDevice, logical: int, spare: int) -> None:
    plane = device.blocks * device.pages
    if logical < 1 or plane - logical < (spare + 2) * device.pages:
        kept = logical + (spare + 2) * device.pages
        what = f"data and the {spare + 2} blocks of each plane that collecting needs"
        size = device.total_planes * device.page_bytes
        raise CapacityError(what, device.name, kept * size, plane * size)


def _writes(
    pattern: str, rng: np.random.Generator, logical: int, count: int, sequence: int
) -> Ints:
    """Return pages that are written, and -1 - page for those that are given back, (operations,)."""
    if pattern == "seq":
        return np.arange(count, dtype=np.int64) % logical
    if pattern == "random":
        return rng.integers(0, logical, count)
    longest = min(2 * int(sequence), logical)
    lanes = logical // longest
    lengths = np.full(lanes, 0)
    ends = rng.integers(1, longest + 1, lanes)
    out: list[Ints] = []
    first = np.arange(lanes, dtype=np.int64) * longest
    made = 0
    while made < count:
        out.append(first + lengths)
        made += lanes
        lengths = lengths + 1
        over = np.flatnonzero(lengths == ends)
        out.extend(-1 - (first[lane] + np.arange(lengths[lane])) for lane in over)
        lengths[over] = 0
        ends[over] = rng.integers(1, longest + 1, len(over))
    return np.concatenate(out)
