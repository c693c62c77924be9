"""What the loop and its twin are given: a device as whole numbers, a stream as pages.

Times are whole picoseconds. Bus protocol after ONFI (NV-DDR2), with the clocks of a data sheet of
that class; packets after PCIe (header, sequence number, CRC and framing around each payload).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from opbyte.hw_models.memory.flash_devices import SECTOR, FlashDevice
from opbyte.hw_models.memory.nand_kernel.blocks import F_VALID

__all__ = [
    "MERGES", "NS", "WHOLE", "Counts", "Job", "Numbers", "buffer_time", "job_of", "link_time",
    "numbers_of",
]  # fmt: skip

Ints = npt.NDArray[np.int64]
NS = 1000
_FAR = 1 << 55
#: What happens to the rest of a page that is written in part: nothing; it is read, and only what
#: is new moves to the page register; it is read, and the whole page moves.
MERGES = ("none", "changed", "whole")
WHOLE = MERGES.index("whole")

#: ONFI NV-DDR2 clocks, ns: CE# set-up, WE# cycle, busy between planes, WE# high to busy, ready to
#: data, address to data, write postamble and its hold, CLE/ALE set-up.
_CS, _WC, _DBSY, _WB, _RR, _ADL, _WPST, _WPSTH, _CALS = 20, 25, 500, 100, 20, 70, 6, 15, 15
#: Cycles of a command with a page's address, with a block's, and of one more page before the last.
_PAGE, _BLOCK, _NEXT = 6, 4, 5
#: NVMe: bytes of a submission entry, a completion entry and a doorbell; of a read request.
_ENTRY, _COMPLETION, _DOORBELL, _ASK = 64, 16, 2, 4


class Numbers(NamedTuple):
    """A device and its host; times in picoseconds, sizes in bytes."""

    channels: int
    ways: int
    """Targets of a channel: chips, or dies where those work side by side."""
    dies: int
    """Dies of a target."""
    planes: int
    pages: int
    """Pages of a block."""
    page_bytes: int
    read: int
    program: int
    erase: int
    cycle: int
    """Time of `cycle_bytes` on a channel."""
    cycle_bytes: int
    most_planes: int
    cache_read: int
    commands_first: int
    ideal: int
    entries: int
    """Mapping entries that the controller holds."""
    mapping_bytes: int
    """Bytes of a mapping page that a miss reads."""
    buffer: int
    """Bytes of writes that may be on their way to flash."""
    answers: int
    """Whether writes are answered from the buffer."""
    buffer_row: int
    buffer_first: int
    buffer_pair: int
    buffer_row_time: int
    whole_ns: int
    merge: int
    """Whether writes of parts of pages are merged with the old data: `MERGES`."""
    unit: int
    """Bytes of a page that are written or not."""
    collects: int
    """Whether blocks are collected."""
    start: int
    """Free blocks of a plane below which collecting begins."""
    stall: int
    """Free blocks below which the host's writes wait for it."""
    flash_first: int
    copyback: int
    suspend_program: int
    suspend_erase: int
    resume: int
    payload: int
    header: int
    lanes: int
    lane_byte: int
    """Time of a byte on a lane."""
    ask: int
    entry: int
    completion: int
    doorbell: int
    command: int
    firmware: int
    fetch: int
    depth: int
    stop: int

    def read_command(self, planes: int) -> int:
        """Return the time of the command and addresses of a read."""
        ns = _CS + _WB + _RR + planes * _PAGE * _WC + (planes - 1) * _DBSY
        return ns * NS

    def program_command(self, planes: int) -> int:
        """Return the time of the command and addresses of a program, without its data."""
        more = _NEXT * _WC + _ADL + _WPST + _CALS + _WB + _DBSY
        ns = _CS + (planes - 1) * more + _PAGE * _WC + _ADL + _WPST + _WPSTH + _WB
        return ns * NS

    def erase_command(self, planes: int) -> int:
        """Return the time of the command and addresses of an erasure."""
        ns = _CS + _WB + planes * _BLOCK * _WC + (planes - 1) * _DBSY
        return ns * NS

    def transfer(self, size: int) -> int:
        """Return the time of data on a channel."""
        return size // self.cycle_bytes * self.cycle


@dataclass
class Counts:
    """What happened.

    Attributes:
        reads, programs: Pages, for whatever reason.
        merges: Reads of old data that a write leaves as they are.
        moved: Pages that were moved before their block was erased; `erases` of those blocks.
        suspensions: Programs and erasures that reads interrupted.
        bus: Time that data and program commands held a channel, summed over channels, ps.
    """

    reads: int = 0
    programs: int = 0
    commands: int = 0
    multiplane: int = 0
    mapping_hits: int = 0
    mapping_misses: int = 0
    mapping_reads: int = 0
    mapping_writes: int = 0
    buffer_hits: int = 0
    merges: int = 0
    moved: int = 0
    erases: int = 0
    suspensions: int = 0
    bus: int = 0


@dataclass(frozen=True)
class Job:
    """A stream as pages. Logical pages and mapping pages are numbered as they are used.

    Attributes:
        request_at: First piece of each request, and the end, (requests + 1,).
        writes: Whether a request writes, (requests,).
        request_bytes: (requests,).
        lpn, bytes: Logical page and bytes of each piece, (pieces,).
        mask: Units of its page that each piece covers, as bits, (pieces,).
        lpn_plane: Where a logical page lies, planes of all targets counted through, (lpns,).
        lpn_local: Its number within the plane, (lpns,).
        lpn_mask: Units of it that are on flash at the beginning, as bits, (lpns,).
        lpn_page: Its page within the block, -1 where it is written at its first use, (lpns,).
        lpn_mvpn: Its mapping page, (lpns,).
        mvpn_plane, mvpn_page: Where mapping pages lie, (mvpns,).
        memory: Blocks of all planes (`blocks.memory`); none where nothing is collected.
    """

    numbers: Numbers
    request_at: Ints
    writes: Ints
    request_bytes: Ints
    lpn: Ints
    bytes: Ints
    mask: Ints
    lpn_plane: Ints
    lpn_page: Ints
    lpn_local: Ints
    lpn_mask: Ints
    lpn_mvpn: Ints
    mvpn_plane: Ints
    mvpn_page: Ints
    memory: npt.NDArray[np.int32]

    @property
    def requests(self) -> int:
        """Number of requests."""
        return len(self.writes)

    @property
    def lpns(self) -> int:
        """Number of logical pages that are used."""
        return len(self.lpn_plane)


def link_time(n: Numbers, payload: int) -> int:
    """Return the time of a message with `payload` bytes on the PCIe link."""
    packets = -(-payload // n.payload)
    return -(-(payload + packets * n.header) // n.lanes) * n.lane_byte


def buffer_time(n: Numbers, size: int) -> int:
    """Return the time that the controller's DRAM takes for `size` bytes."""
    if not n.whole_ns:
        return n.buffer_first + size * n.buffer_pair // 2
    if size <= n.buffer_row:
        return n.buffer_first + size // 2 * n.buffer_pair
    # As another simulator has it: rows in pairs, the rest at bytes per ns times ns per byte.
    rest = size % n.buffer_row * NS // n.buffer_pair * NS
    rows = (n.buffer_first + n.buffer_row_time) * (size // n.buffer_row // 2)
    return rows + n.buffer_first + rest // NS * NS


def numbers_of(
    device: FlashDevice, depth: int, stop_s: float | None = None, collects: bool = False
) -> Numbers:
    """Return a device as numbers.

    Args:
        depth: Requests that the host keeps outstanding.
        stop_s: When the host stops sending; None: after the last request.
        collects: Whether blocks are collected.
    """
    pcie, suspend, unit = device.pcie, device.suspend, NS if device.whole_ns else 1

    def ps(seconds: float) -> int:
        return round(seconds * 1e12 / unit) * unit

    cycle_bytes = 2 * device.channel_width
    if device.whole_ns:
        cycle = int(1e9 * device.channel_width / device.channel_rate.value) * 2 * NS
    else:
        cycle = ps(cycle_bytes / device.channel_rate.value)
    lane_byte = ps(pcie.lanes / pcie.rate.value) if not device.whole_ns else round(
        pcie.lanes / pcie.rate.value * 1e12
    )  # fmt: skip
    n = Numbers(
        channels=device.channels,
        ways=device.targets_per_channel,
        dies=device.dies_per_target,
        planes=device.planes,
        pages=device.pages,
        page_bytes=device.page_bytes,
        read=ps(device.read.value),
        program=ps(device.program.value),
        erase=ps(device.erase.value),
        cycle=cycle,
        cycle_bytes=cycle_bytes,
        most_planes=device.most_planes,
        cache_read=int(device.cache_read),
        commands_first=int(device.commands_first),
        ideal=int(device.mapping.ideal),
        entries=device.mapping_entries,
        mapping_bytes=int(device.mapping.read.value),
        buffer=device.buffer_bytes,
        answers=int(device.buffer.answers),
        buffer_row=int(device.buffer.row.value),
        buffer_first=ps(device.buffer.latency.value),
        buffer_pair=ps(2.0 / device.buffer.rate.value),
        buffer_row_time=int(device.buffer.row.value) // 2 * ps(2.0 / device.buffer.rate.value)
        + ps(device.buffer.latency.value) // 2,
        whole_ns=int(device.whole_ns),
        merge=MERGES.index(device.merge),
        unit=unit_bytes(device),
        collects=int(collects),
        start=device.free_blocks(device.collection.start),
        stall=device.free_blocks(device.collection.stall),
        flash_first=int(device.collection.first == "flash"),
        copyback=int(device.collection.copyback),
        suspend_program=ps(suspend.program.value) if suspend.program else 0,
        suspend_erase=ps(suspend.erase.value) if suspend.erase else 0,
        resume=ps(suspend.resume.value),
        payload=pcie.payload,
        header=pcie.header,
        lanes=pcie.lanes,
        lane_byte=lane_byte,
        ask=0,
        entry=0,
        completion=0,
        doorbell=0,
        command=ps(device.host.command.value),
        firmware=ps(device.host.firmware.value),
        fetch=device.host.fetch,
        depth=depth,
        stop=_FAR if stop_s is None else ps(stop_s),
    )
    return n._replace(
        ask=link_time(n, _ASK),
        entry=link_time(n, _ENTRY),
        completion=link_time(n, _COMPLETION),
        doorbell=link_time(n, _DOORBELL),
    )


def unit_bytes(device: FlashDevice) -> int:
    """Return the bytes of a page that are on flash or not: a sector, at most 32 of a page."""
    sector = SECTOR
    while device.page_bytes > 32 * sector:
        sector *= 2
    return sector


def job_of(
    device: FlashDevice, numbers: Numbers, offsets: Ints, sizes: Ints, writes: Ints,
    memory: npt.NDArray[np.int32] | None = None,
) -> Job:  # fmt: skip
    """Return a stream of requests as pages.

    Args:
        offsets, sizes: Bytes of each request, (requests,).
        writes: Which requests write, (requests,).
        memory: Blocks of all planes (`blocks.memory`), where they are collected.
    """
    page = device.page_bytes
    first, last = offsets // page, (offsets + sizes - 1) // page
    each = last - first + 1
    at = np.concatenate([[0], np.cumsum(each)])
    owner = np.repeat(np.arange(len(offsets)), each)
    inside = np.arange(at[-1]) - at[owner]
    pages = first[owner] + inside
    begin = np.maximum(offsets[owner], pages * page)
    end = np.minimum(offsets[owner] + sizes[owner], (pages + 1) * page)
    lpns, lpn = _numbered(pages)
    mvpns, lpn_mvpn = _numbered(lpns // device.entries_per_mapping_page)
    total, unit = device.total_planes, numbers.unit
    local = lpns // total
    plane = _plane(device, lpns)
    touched = np.full(len(lpns), -1) if device.layout == "touch" else local % device.pages
    # A unit that is written in part counts as written, and one that is kept in part as kept.
    inside_page = begin - pages * page, end - pages * page
    mask = _below(-(-inside_page[1] // unit)) & ~_below(inside_page[0] // unit)
    whole = _below(np.full(len(lpns), -(-page // unit)))
    if memory is None:
        memory = np.zeros(1, np.int32)
        known = touched >= 0
    else:
        stretch = len(memory) // total
        known = memory[plane * stretch + F_VALID + 4 * device.blocks + local] >= 0
    ints = np.int64
    return Job(
        numbers,
        at.astype(ints),
        writes.astype(ints),
        sizes.astype(ints),
        lpn.astype(ints),
        (end - begin).astype(ints),
        mask.astype(ints),
        plane,
        touched.astype(ints),
        local.astype(ints),
        np.where(known, whole, 0).astype(ints),
        lpn_mvpn.astype(ints),
        _plane(device, mvpns),
        (mvpns // total % device.pages).astype(ints),
        memory,
    )


def _below(bits: Ints) -> Ints:
    """Return numbers whose first bits are set."""
    return (np.int64(1) << bits) - 1


def _plane(device: FlashDevice, pages: Ints) -> Ints:
    """Return planes of pages, counted through all targets."""
    target, die, plane = device.places(pages)
    found: Ints = (target * device.dies_per_target + die) * device.planes + plane
    return found


def _numbered(values: Ints) -> tuple[Ints, Ints]:
    """Return the distinct values in the order of first use, and which one each is.

    In that order the records that the loop needs next lie side by side.
    """
    found, first, which = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return found[order], rank[which.reshape(-1)]
