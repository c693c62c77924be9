"""What a flash device delivers: requests of a host, page by page.

`flash("mqsim-default").stream("random", block=4096, queue_depth=64)` keeps a number of requests
outstanding and returns bandwidth, latencies and what the flash did. docs/flash.md describes the
model.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import CapacityError, ConfigError, UncoveredError, WorkloadError
from opbyte.core.registry import lookup_error
from opbyte.hw_models.memory.flash_devices import SECTOR, FlashDevice, load_flash
from opbyte.hw_models.memory.flash_wear import Wear, Worn, filled, worn
from opbyte.hw_models.memory.nand_kernel.setup import Counts, job_of, numbers_of

__all__ = ["PATTERNS", "Flash", "FlashResult", "flash"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
PATTERNS = ("seq", "random")
_ALIASES = {"stream": "seq"}
#: Pieces of pages that a stream may have; each takes 16 bytes, and 128 per page that it uses.
MOST_PIECES = 1 << 24
DEPTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class FlashResult:
    """What a device did with a stream of requests. Times are seconds.

    Attributes:
        seconds: From the first request until the host had sent the last one, or, where that is
            less than two queues of requests, until the last was answered.
        bandwidth_bytes_per_s: Bytes of requests that were answered in `seconds`, over them.
        read_latency, write_latency: Of each answered request, from the doorbell to its completion
            at the host, in the order of sending.
        counts: Page operations, commands, mapping entries and buffer.
        bus_share: Share of the channels' time that data and programs took.
    """

    device: FlashDevice
    requests: int
    queue_depth: int
    seconds: float
    bandwidth_bytes_per_s: float
    requests_per_s: float
    read_latency: Floats
    write_latency: Floats
    counts: Counts
    bus_share: float

    @property
    def mean_latency_s(self) -> float:
        """Mean over all answered requests."""
        return float(np.concatenate([self.read_latency, self.write_latency]).mean())

    @property
    def mean_read_latency_s(self) -> float:
        """Mean over the reads; NaN where there were none."""
        return float(self.read_latency.mean()) if self.read_latency.size else float("nan")

    @property
    def mean_write_latency_s(self) -> float:
        """Mean over the writes; NaN where there were none."""
        return float(self.write_latency.mean()) if self.write_latency.size else float("nan")

    def latency_s(self, percentile: float) -> float:
        """Return a percentile of the latency of all answered requests.

        Raises:
            WorkloadError: If the percentile is not within 0 to 100.
        """
        if not 0 <= percentile <= 100:
            raise WorkloadError(f"a percentile must lie within 0 to 100, got {percentile}")
        return float(np.percentile(np.r_[self.read_latency, self.write_latency], percentile))

    @property
    def page_operations(self) -> int:
        """Pages that were read or programmed, for whatever reason."""
        return self.counts.reads + self.counts.programs

    @property
    def write_amplification(self) -> float:
        """Programs over those that the host's writes ask for; NaN without a write."""
        counts = self.counts
        host = counts.programs - counts.moved - counts.mapping_writes
        return counts.programs / host if host else float("nan")

    @property
    def joules(self) -> float:
        """Energy of page reads and programs, whole pages; `UncoveredError` without a source."""
        energy = self.device.energy
        if energy is None:
            raise UncoveredError(
                f"the energy of {self.device.name} is not covered: no source gives it by page. "
                "Give `energy` in a file of your own."
            )
        bits = 8 * self.device.page_bytes
        reads, programs = self.counts.reads, self.counts.programs
        return bits * (reads * energy.read_per_bit.value + programs * energy.program_per_bit.value)


class Flash:
    """One flash device with its controller, behind NVMe."""

    def __init__(self, device: FlashDevice) -> None:
        """Wrap a device."""
        self.device = device

    def __repr__(self) -> str:
        return f"Flash({self.device.name!r})"

    def stream(
        self,
        offsets: npt.ArrayLike | str = "seq",
        sizes: npt.ArrayLike | None = None,
        is_write: npt.ArrayLike | None = None,
        *,
        queue_depth: int = 32,
        block: int | None = None,
        align: int | None = None,
        requests: int | None = None,
        read_pct: int | None = None,
        seed: int | None = None,
        stop_s: float | None = None,
        fill: float | None = None,
        rounds: float | None = None,
    ) -> FlashResult:
        """Keep requests outstanding until all have been sent, and serve all that were sent.

        Args:
            offsets: Bytes from the start of the device, (requests,), or a pattern: `seq` or
                `random`.
            sizes: Bytes of each request, (requests,) or one number.
            is_write: Which requests write, (requests,); all read without it.
            queue_depth: Requests that the host keeps outstanding.
            block: Bytes of each request of a pattern; a page without it.
            align: Requests of a pattern begin at its multiples; `block` without it.
            requests: Of a pattern; without it 20,000, or less where they are longer than a page.
            read_pct: Reads of a pattern, whole per cent; which ones is drawn. 100 without it.
            seed: Of what is drawn; 1 without it.
            stop_s: When the host stops sending.
            fill: Share of the pages that hold data before; then blocks are collected. Without it
                the device is as good as new: no write needs a block to be erased.
            rounds: How often that was overwritten at random before; 0 without it.

        Raises:
            ConfigError: For an unknown pattern, with the nearest, or a number that breaks a rule.
            WorkloadError: For requests that are none of the device's, or of which none is served.
        """
        depth = _from_one(self.device.name, "queue_depth", queue_depth)
        named = {
            "block": block, "align": align, "requests": requests, "read_pct": read_pct,
            "seed": seed,
        }  # fmt: skip
        if isinstance(offsets, str):
            if sizes is not None or is_write is not None:
                raise WorkloadError("sizes and is_write belong to given offsets, not to a pattern")
            given = self._pattern(offsets, **named)
        else:
            of_pattern = [name for name, value in named.items() if value is not None]
            if of_pattern:
                raise WorkloadError(f"{', '.join(of_pattern)} belong to a pattern: seq or random")
            given = self._given(offsets, sizes, is_write)
        if stop_s is not None and not stop_s > 0:
            raise ConfigError.one(self.device.name, "stop_s", "must be a time above 0", stop_s)
        from opbyte.hw_models.memory.nand_kernel.loops import replay

        blocks = self._blocks(fill, rounds, 1 if seed is None else seed)
        numbers = numbers_of(self.device, depth, stop_s, blocks is not None)
        job = job_of(self.device, numbers, *given, blocks)
        return _result(self.device, depth, given, *replay(job))

    def _blocks(
        self, fill: float | None, rounds: float | None, seed: int
    ) -> npt.NDArray[np.int32] | None:
        if fill is None:
            if rounds is not None:
                rule = "needs `fill`, what was overwritten"
                raise ConfigError.one(self.device.name, "rounds", rule, rounds)
            return None
        return filled(self.device, fill, 0.0 if rounds is None else rounds, seed)

    def queue_curve(
        self, pattern: str = "random", depths: tuple[int, ...] = DEPTHS, **choices: Any
    ) -> list[FlashResult]:
        """Return the results of one pattern for growing queue depths."""
        return [self.stream(pattern, queue_depth=depth, **choices) for depth in depths]

    def rates(self, page: int | None = None) -> dict[str, float]:
        """Return what the device sustains in bytes/s with deep queues: `stream`, and `page`.

        Args:
            page: Bytes that lie together at random places; the device's page without it.
        """
        from opbyte.hw_models.memory.flash_rates import page_rate, stream_rate

        size = self.device.page_bytes if page is None else page
        return {"stream": stream_rate(self.device), "page": page_rate(self.device, size)}

    def wear(self, pattern: str = "kv", **choices: Any) -> Worn:
        """Return what garbage collection adds to writes: `flash_wear.worn`."""
        return worn(self.device, pattern, **choices)

    def endurance(self, bytes_per_day: float, write_amplification: float = 1.0) -> Wear:
        """Return how long the device stands a rate of writes: `flash_wear.Wear`."""
        return Wear.of(self.device, bytes_per_day, write_amplification)

    def hold(self, bytes_: float, what: str = "data") -> None:
        """Check that data fit.

        Raises:
            CapacityError: If they do not, with needed and available bytes.
        """
        available = self.device.capacity_bytes
        if bytes_ > available:
            raise CapacityError(what, self.device.name, bytes_, available)

    def _pattern(
        self, name: str, block: int | None, align: int | None, requests: int | None,
        read_pct: int | None, seed: int | None,
    ) -> tuple[Ints, Ints, Ints]:  # fmt: skip
        device = self.device
        kind = _ALIASES.get(name, name)
        if kind not in PATTERNS:
            raise lookup_error("pattern", name, (*PATTERNS, *_ALIASES))
        size = _sectors(device, "block", device.page_bytes if block is None else block)
        step = _sectors(device, "align", size if align is None else align)
        share = 100 if read_pct is None else read_pct
        if isinstance(share, bool) or share != int(share) or not 0 <= share <= 100:
            rule = "must be a whole number from 0 to 100"
            raise ConfigError.one(device.name, "read_pct", rule, share)
        usual = max(2000, min(20_000, 20_000 * device.page_bytes // size))
        count = _from_one(device.name, "requests", usual if requests is None else requests)
        if count > MOST_PIECES:
            rule = f"must be at most {MOST_PIECES}: a request takes a page or more"
            raise ConfigError.one(device.name, "requests", rule, count, "send fewer")
        first = 1 if seed is None else seed
        if isinstance(first, bool) or first != int(first) or first < 0:
            rule = "must be a whole number from 0 on"
            raise ConfigError.one(device.name, "seed", rule, seed)
        rng = np.random.default_rng(first)
        places = (device.capacity_bytes - size) // step + 1
        if places < 1:
            rule = f"must fit into {device.capacity_bytes} bytes"
            raise ConfigError.one(device.name, "block", rule, size)
        stride = -(-size // step)
        if kind == "seq":
            offsets = np.arange(count, dtype=np.int64) * stride % places * step
        else:
            offsets = rng.integers(0, places, count) * step
        writes = (rng.random(count) * 100 >= share).astype(np.int64)
        return self._checked(offsets, np.full(count, size, np.int64), writes)

    def _given(
        self, offsets: npt.ArrayLike, sizes: npt.ArrayLike | None, is_write: npt.ArrayLike | None
    ) -> tuple[Ints, Ints, Ints]:
        at = np.asarray(offsets)
        if at.ndim != 1 or not at.size or at.dtype.kind not in "iu":
            raise WorkloadError("offsets must be whole numbers of bytes, one per request")
        size = np.asarray(self.device.page_bytes if sizes is None else sizes)
        writes = np.asarray(False if is_write is None else is_write)
        for name, array, kinds in (("sizes", size, "iu"), ("is_write", writes, "b")):
            if array.dtype.kind not in kinds or array.shape not in ((), at.shape):
                rule = "whole numbers" if kinds == "iu" else "true or false"
                raise WorkloadError(f"{name} must be {rule}, one for all or one per request")
        size = np.broadcast_to(size, at.shape).astype(np.int64)
        flags = np.broadcast_to(writes, at.shape).astype(np.int64)
        return self._checked(at.astype(np.int64), size, flags)

    def _checked(self, at: Ints, sizes: Ints, writes: Ints) -> tuple[Ints, Ints, Ints]:
        device = self.device
        if at.min() < 0 or sizes.min() < 1 or int((at + sizes).max()) > device.capacity_bytes:
            raise WorkloadError(
                f"requests must lie within the {device.capacity_bytes} bytes of {device.name}"
            )
        if (at % SECTOR).any() or (sizes % SECTOR).any():
            raise WorkloadError(f"requests must be whole sectors of {SECTOR} bytes")
        page = device.page_bytes
        pieces = int(((at + sizes - 1) // page - at // page + 1).sum())
        if pieces > MOST_PIECES:
            raise WorkloadError(
                f"{len(at)} requests take {pieces} pages, at most {MOST_PIECES} are simulated. "
                "send fewer or smaller ones"
            )
        return at, sizes, writes


def flash(name_or_path: str | os.PathLike[str], **changes: Any) -> Flash:
    """Return a flash device.

    Args:
        name_or_path: Catalog name, such as `mqsim-default`, or a file of kind `flash`.
        changes: Other values than the file's, as it would write them: `channels=4`,
            `read="25 us"`, `mapping={"ideal": True}`.

    Raises:
        ConfigError: If there is no such device, with the nearest name, or a value breaks a rule.
    """
    return Flash(load_flash(name_or_path, **changes))


def _result(
    device: FlashDevice, depth: int, given: tuple[Ints, Ints, Ints], entered: Ints, done: Ints,
    counts: Counts,
) -> FlashResult:  # fmt: skip
    sizes, writes = given[1], given[2].astype(bool)
    answered = done >= 0
    sent = int(answered.sum())
    end = int(done.max())
    until = int(entered[answered].max()) if sent > 2 * depth else end
    inside = answered & (done <= until)
    seconds = until * 1e-12
    latency = (done - entered) * 1e-12
    return FlashResult(
        device=device,
        requests=sent,
        queue_depth=depth,
        seconds=seconds,
        bandwidth_bytes_per_s=float(sizes[inside].sum()) / seconds,
        requests_per_s=float(inside.sum()) / seconds,
        read_latency=latency[answered & ~writes],
        write_latency=latency[answered & writes],
        counts=counts,
        bus_share=counts.bus / (end * device.channels),
    )


def _from_one(where: str, path: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ConfigError.one(where, path, "must be a whole number from 1 on", value)
    return int(value)


def _sectors(device: FlashDevice, path: str, value: Any) -> int:
    size = _from_one(device.name, path, value)
    if size % SECTOR:
        raise ConfigError.one(device.name, path, f"must be whole sectors of {SECTOR} bytes", value)
    return size
