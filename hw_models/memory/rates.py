"""From commands to rates: the share of its data bus that a channel sustains, computed once.

Prices need one number for a stream of reads, a mix of reads and writes, or pages at random places.
It is what the command kernel delivers, over the peak. The kernel counts ticks: at another command
clock all times scale alike, so that the share is a property of the technology, and a given
bandwidth scales the rate. Shares of the shipped memories under the default controller are kept in
`rates.json` (written by `scripts/memory_rates.py`, recomputed by the tests); others are computed
when they are asked for.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from opbyte.core.blocks import Block
from opbyte.core.catalog import SUFFIXES
from opbyte.core.errors import ConfigError
from opbyte.core.parameters import Bytes
from opbyte.hw_models.memory.standards import CATALOG, Standard, load_standard

__all__ = [
    "DEFAULT", "MIXED", "PAGES", "SEVERAL", "SEVERAL_READS", "TABLE", "Access", "digest",
    "page_on_channel", "refresh_share", "share", "standard_called", "tabled", "with_ranks",
    "written",
]  # fmt: skip

#: Requests of a stream: some dozen refresh intervals of every shipped memory.
REQUESTS = 1 << 17
TABLE = Path(__file__).parent / "rates.json"
#: Pages on one channel that the table holds, bytes.
PAGES = tuple(1 << n for n in range(6, 17))
#: Ranks on a channel that the table holds beside those of a memory's file.
RANKS = (2, 4)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class Access(Block):
    """How a memory's channels are used, and by what controller: the choices of `Dram.stream`."""

    port: str | None = None
    """The port at the pins; by default the memory's only one without a `stream`."""
    interleave: Bytes | None = None
    """Bytes that lie on one channel before the next one's; needed by pages alone."""
    read_pct: int = Field(100, ge=0, le=100)
    """Requests that read, per cent."""
    streams: int = Field(1, ge=1)
    """Sequential streams that take turns."""
    mapping: Annotated[str | tuple[str, ...], BeforeValidator(_as_tuple)] = "MOP4CLXOR"
    """From addresses to banks."""
    scheduler: Literal["FRFCFS", "FRFCFSRowHit"] = "FRFCFS"
    refresh: Literal["AllBank", "PerBank", "NoRefresh"] = "AllBank"
    row_policy: Literal["Open", "Closed", "ClosedAdaptive"] = "Open"
    read_queue: int = Field(32, ge=1)
    """Most reads that wait."""
    write_queue: int = Field(32, ge=1)
    """Most writes that wait."""
    source: str | None = None

    @property
    def choices(self) -> dict[str, Any]:
        """Return the controller as `Dram.stream` takes it."""
        mapping = self.mapping if isinstance(self.mapping, str) else list(self.mapping)
        names = ("scheduler", "refresh", "row_policy", "read_queue", "write_queue")
        return {"mapping": mapping, **{name: getattr(self, name) for name in names}}


DEFAULT = Access()
#: Streams that take turns on a channel of a server, and shares of reads that go with them.
SEVERAL, SEVERAL_READS = 8, (100, 75, 67, 50)
#: Two reads for each write.
MIXED = Access(read_pct=67)
#: What an access says about its memory and no channel knows.
_NO_PLACE: dict[str, None] = {"port": None, "interleave": None, "source": None}


def share(standard: Standard, access: Access = DEFAULT, page: int | None = None) -> float:
    """Return the share of the data bus's peak that one channel sustains.

    Args:
        standard: The memory.
        access: Traffic and controller.
        page: Bytes that follow each other on the channel, pages being at random places; without
            it the streams are sequential.

    Raises:
        ConfigError: For a page that is larger than the channel.
        UncoveredError: Where the memory has no such refresh.
    """
    if page is not None:
        page = -(-page // standard.burst_bytes) * standard.burst_bytes
        if not 0 < page <= standard.capacity_bytes:
            rule = f"must lie within a channel of {standard.capacity_bytes} bytes"
            raise ConfigError.one(standard.name, "page", rule, page)
    return _share(standard, access.model_copy(update=_NO_PLACE), page)


def refresh_share(standard: Standard, access: Access) -> float:
    """Return the share of time that refresh leaves: 1 - tRFC / tREFI for all banks at once.

    Refresh of single banks leaves the others working, and costs a stream nothing by itself.
    """
    if access.refresh != "AllBank":
        return 1.0
    return 1.0 - standard.ticks["nRFC"] / standard.ticks["nREFI"]


def page_on_channel(page: float, interleave: float, channels: int) -> int:
    """Return the bytes of a page that follow each other on one channel.

    A page goes round all channels, `interleave` bytes on each, as often as it is long.
    """
    rounds = -(-page // (interleave * channels))
    return int(min(page, interleave * rounds))


def standard_called(technology: str, **changes: int) -> Standard | None:
    """Return a memory of the catalog or a file; None for a name of which no timing is known.

    Args:
        changes: Other sizes and clocks than the file's, as for `load_standard`.
    """
    # A file may change while a process runs; the catalog does not.
    if technology.endswith(SUFFIXES):
        return load_standard(technology, **changes)
    return _of_catalog(technology, **changes)


def with_ranks(technology: str, ranks: int | None) -> Standard | None:
    """Return a memory with so many ranks on each channel; None for a name without known timing.

    Ranks share commands and data bus, so that the peak is the same; banks, write-to-read turns
    and refresh are each rank's own.

    Args:
        ranks: A power of two; None for those of the technology's file.
    Raises:
        ValueError: If the memory has no such ranks.
    """
    known = standard_called(technology)
    if ranks is None:
        return known
    if known is None:
        raise ValueError(
            f"`ranks` are those of a DRAM `technology` whose command timing is known, got "
            f"{technology}. give one of `opbyte list memories`, or leave out `ranks`"
        )
    if "rank" not in known.levels:
        raise ValueError(f"{technology} has no ranks. leave out `ranks`")
    if ranks & (ranks - 1):
        raise ValueError(f"`ranks` must be a power of two; got {ranks}")
    return standard_called(technology, rank=ranks)


@functools.lru_cache(maxsize=128)
def _of_catalog(name: str, **changes: int) -> Standard | None:
    return load_standard(name, **changes) if name in CATALOG.names() else None


def written(access: Access, page: int | None) -> str | None:
    """Return the name under which the table holds a share; None for another controller's."""
    traffic = {"read_pct": DEFAULT.read_pct, "streams": DEFAULT.streams}
    if access.model_copy(update={**traffic, **_NO_PLACE}) != DEFAULT:
        return None
    name = f"reads {access.read_pct}"
    if access.streams != DEFAULT.streams:
        return f"{name} streams {access.streams}" if page is None else None
    return name if page is None else f"{name} page {page}"


@functools.lru_cache(maxsize=256)
def digest(standard: Standard) -> str:
    """Return a short hash of all that decides ticks: sizes, timings and constraints."""
    decides = (
        standard.levels, standard.sizes, standard.rows, standard.columns, standard.burst_bytes,
        standard.ticks_per_clock, standard.read_latency, standard.buses, standard.refresh_level,
        standard.per_bank_refresh, standard.constraints, sorted(standard.ticks.items()),
    )  # fmt: skip
    return hashlib.sha256(repr(decides).encode()).hexdigest()[:16]


def tabled() -> list[Standard]:
    """Return the memories that the table holds: all that are shipped, those of ranks with more."""
    found = []
    for name in CATALOG.names():
        own = load_standard(name)
        found.append(own)
        if "rank" in own.levels:
            found += [load_standard(name, rank=ranks) for ranks in RANKS]
    return found


@functools.lru_cache(maxsize=1)
def _table() -> dict[str, dict[str, float]]:
    """Return the shares by the digest of their memory."""
    held = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    return {one["digest"]: one["shares"] for one in held.values()}


@functools.lru_cache(maxsize=4096)
def _share(standard: Standard, access: Access, page: int | None) -> float:
    name = written(access, page)
    known = None if name is None else _table().get(digest(standard), {}).get(name)
    if known is not None:
        return float(known)
    return computed(standard, access, page)


def computed(standard: Standard, access: Access, page: int | None = None) -> float:
    """Return the share as the kernel finds it now, without table or memory: see `share`."""
    from opbyte.hw_models.memory.dram import Dram
    from opbyte.hw_models.memory.patterns import streams_of, writes_of

    channel = Dram(standard)
    if page is not None:
        found = channel.stream(
            f"rand_{page}B", requests=REQUESTS, read_pct=access.read_pct, **access.choices
        )
    elif access.streams == 1:
        found = channel.stream("seq", requests=REQUESTS, read_pct=access.read_pct, **access.choices)
    else:
        found = channel.stream(
            streams_of(standard, access.streams, REQUESTS),
            writes_of(REQUESTS, access.read_pct), **access.choices,
        )  # fmt: skip
    return found.efficiency
